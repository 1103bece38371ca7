"""Unit tests of `pipeline/evaluation/`."""
