"""Integration tests of `pipeline/evaluation/`."""
