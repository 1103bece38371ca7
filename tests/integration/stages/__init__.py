"""Integration tests of `pipeline/stages/`."""
