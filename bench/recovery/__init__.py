"""Kills runs on purpose, and measures what they lose and how fast they resume."""
