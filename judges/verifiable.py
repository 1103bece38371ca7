"""A judge that is a function of the article and the summary, for tasks whose result can be checked without a model.

As in reinforcement learning with verifiable rewards (Lambert et al. 2024, arXiv 2411.15124): a format, a number of
words, the words of a reference, a unit test.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from judges.base import Judgement, Prompt, Sample, ScoringJudge

RETURNS = "it should return a finite number, true or false, or a list of these"


class VerifiableJudge(ScoringJudge):
    """Scores each summary by a function. The value of a list is its mean, and the list's members are the items.

    A summary for which the function fails, or returns something else, is unread, and the reason is counted.

    Args:
        function: called as `function(article, summary)`. The same texts must give the same result.
        seed: not used: the function decides.
    """

    engine = "none"
    reorders = False

    def __init__(self, function: Callable[[str, str], Any], seed: int = 0):
        self.function = function

    def ask_scores(self, article: str, summaries: Sequence[str], order: int = 0) -> list[Prompt]:
        return []

    def read_scores(
        self, article: str, summaries: Sequence[str], replies: Sequence[Sequence[Sample]], order: int = 0
    ) -> list[Judgement]:
        return [self._score(article, summary) for summary in summaries]

    def _score(self, article: str, summary: str) -> Judgement:
        try:
            return read_result(self.function(article, summary))
        except Exception as error:
            return Judgement(None, reason=f"the function fails: {type(error).__name__}")


def read_result(result: Any) -> Judgement:
    """The judgement that a function's result means. One that cannot be used has no value, and a reason."""
    if not isinstance(result, list | tuple):
        value = _number(result)
        return Judgement(value, reason=None if value is not None else _refusal(result))
    items = [number for number in map(_number, result) if number is not None]
    if not items or len(items) < len(result):
        return Judgement(None, reason=_refusal(result))
    return Judgement(sum(items) / len(items), tuple(items))


def _refusal(result: Any) -> str:
    return f"the function returns a {type(result).__name__} that is no score"


def _number(value: Any) -> float | None:
    """A number from a function, also of numpy or torch; None for anything else."""
    if isinstance(value, str | bytes):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if math.isfinite(number) else None
