"""Unit tests of `pipeline/inference/`."""
