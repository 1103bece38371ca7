"""Unit tests of `pipeline/training/batches/`."""
