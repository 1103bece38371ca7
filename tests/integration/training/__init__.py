"""Integration tests of `pipeline/training/`."""
