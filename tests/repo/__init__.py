"""Tests of the repository: imports, packaging, deployment files and the newsroom."""
