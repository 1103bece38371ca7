"""Judges write prompts, and read the replies: questions and answers, or scores. They run no model.

No Ray, torch or pipeline: only regex, and in `text` sentencex and py3langid.
"""
