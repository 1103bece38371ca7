"""Integration tests of `pipeline/inference/`."""
