"""Judges write prompts for questions and answers, and read the replies. They run no model. Standard library only."""
