"""Unit tests of `pipeline/storage/`."""
