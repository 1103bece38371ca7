"""A judge without a model: its questions are sentences of the article with a name, a number or a rare word blanked out.

It works in any language, is cheap, and does not guess, but it does not recognise a key that a summary says in other
words. Use it as a second opinion, and to train on real text without an LLM. `spots.py` finds what can be blanked out,
`questions.py` chooses what matters, `options.py` adds wrong options, and `matching.py` answers from a passage.
"""

from judges.cloze.judge import ClozeJudge as ClozeJudge

__all__ = ["ClozeJudge"]
