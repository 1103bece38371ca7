"""Unit tests of `pipeline/execution/`."""
