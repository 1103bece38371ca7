"""Tests of the report: escaping of texts, figures of faults."""
