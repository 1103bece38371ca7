"""Integration tests of `pipeline/storage/`."""
