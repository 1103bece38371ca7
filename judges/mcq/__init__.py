"""Holds the judge that lets an LLM write and answer multiple-choice questions.

`judge.py` makes the prompts and their grammars, and reads replies in the strict form. `free_replies.py` reads other
replies as a person would. `languages.py` knows names of languages and how their questions end.
"""

from judges.mcq.judge import McqJudge

__all__ = ["McqJudge"]
