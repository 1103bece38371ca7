"""Unit tests of `pipeline/config/`."""
