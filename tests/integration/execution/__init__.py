"""Integration tests of `pipeline/execution/`."""
