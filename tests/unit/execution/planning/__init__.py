"""Unit tests of `pipeline/execution/planning/`."""
