"""Unit tests of `pipeline/judging/`."""
