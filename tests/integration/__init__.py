"""Tests that need Ray or vLLM, in the folders of the packages that they test."""
