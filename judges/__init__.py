"""Judges: who asks questions about an article and reads the answers. They run no model; standard library only."""
