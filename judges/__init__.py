"""Judges write prompts for questions and answers, and read the replies. They run no model.

No Ray, torch or pipeline. Only `text` needs libraries: sentencex, py3langid and regex.
"""
