"""Tests of `rondo judge-eval`, which compares a judge with people."""
