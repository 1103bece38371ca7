"""Which of two scored summaries is better: pure functions of (questions right, words), for training and evaluation.

Left out: what can be compared at all (a summary cut off, an answer unread): whoever calls sees to that.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.config import Pairs

Score = Mapping[str, Any]  # a row of the column `scores`


def prefer(a: Score, b: Score, settings: Pairs) -> int:
    """What training prefers, and the *strict* rule of the evaluation.

    Both at `threshold` or above: the shorter one, if at least `min_word_gap` words shorter. Otherwise: more right.
    Otherwise: a tie.

    Args:
        a, b: scores, of which `correct` and `words` count.

    Returns:
        1 if a is better, -1 if b is, 0 for a tie. Antisymmetric, and without cycles.
    """
    if min(a["correct"], b["correct"]) >= settings.threshold:
        gap = b["words"] - a["words"]
        return (gap > 0) - (gap < 0) if abs(gap) >= settings.min_word_gap else 0
    return (a["correct"] > b["correct"]) - (a["correct"] < b["correct"])


def prefer_short(a: Score, b: Score, settings: Pairs) -> int:
    """The *reference* rule, by which the published 74 % was counted: a tie in accuracy is broken by fewer words.

    Both at `threshold` or above count as equal in accuracy, as in training. It differs from `prefer` in that one word
    is gap enough, and that no accuracy is too low for length to decide: even at 0 right the shorter wins, which is
    what the *shorten-only* baseline is there to show.
    """
    if min(a["correct"], b["correct"]) < settings.threshold and a["correct"] != b["correct"]:
        return 1 if a["correct"] > b["correct"] else -1
    return (a["words"] < b["words"]) - (a["words"] > b["words"])


RULES: dict[str, Callable[[Score, Score, Pairs], int]] = {"strict": prefer, "reference": prefer_short}
