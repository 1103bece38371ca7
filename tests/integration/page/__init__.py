"""Tests of the page of a run: report.html, and `rondo view`."""
