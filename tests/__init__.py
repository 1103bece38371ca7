"""Tests of Rondo."""
