"""Which of an article's informative pairs (those that the preference does not call a tie) are trained on, by name.

Every selection is called as `select(pairs, scores, most, rng)`: (chosen, rejected) indices into `scores`, the
article's scores, `pairs.max_per_article`, and a generator of the article's own. Left out: the preference, and what
may be paired at all (`pairs.py`).
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence

from pipeline.preference import Score

Pair = tuple[int, int]
Selection = Callable[[Sequence[Pair], Sequence[Score], int, random.Random], list[Pair]]


def draw(pairs: Sequence[Pair], scores: Sequence[Score], most: int, rng: random.Random) -> list[Pair]:
    """Up to `most` of them, at random: the reference setting's."""
    return rng.sample(pairs, min(most, len(pairs)))


def best_worst(pairs: Sequence[Pair], scores: Sequence[Score], most: int, rng: random.Random) -> list[Pair]:
    """One pair: the summary preferred most over the one preferred least.

    Counted over all pairs: preferred how often, less rejected how often (Copeland, 1951). Where those two at the ends
    tie with each other, which a rule that compares some pairs only may do, the pair that is nearest to it.
    """
    standing = Counter(chosen for chosen, _ in pairs)
    standing.subtract(rejected for _, rejected in pairs)
    return _widest(pairs, 1, rng, lambda pair: (standing[pair[0]] - standing[pair[1]],))


def widest_margin(pairs: Sequence[Pair], scores: Sequence[Score], most: int, rng: random.Random) -> list[Pair]:
    """Up to `most` of them, the furthest apart in questions right first; then in words, if the chosen is shorter.

    A pair that was decided by length, whose chosen has no more right, so comes after all that accuracy decided.
    """

    def margin(pair: Pair) -> tuple[int, int]:
        chosen, rejected = scores[pair[0]], scores[pair[1]]
        return max(0, chosen["correct"] - rejected["correct"]), rejected["words"] - chosen["words"]

    return _widest(pairs, most, rng, margin)


def every(pairs: Sequence[Pair], scores: Sequence[Score], most: int, rng: random.Random) -> list[Pair]:
    """All of them, and each weighs 1 / (how many there are): an article with many weighs no more than one with one."""
    return list(pairs)


def _widest(
    pairs: Sequence[Pair], most: int, rng: random.Random, margin: Callable[[Pair], tuple[int, ...]]
) -> list[Pair]:
    """The first by margin, equals in an order drawn."""
    return sorted(rng.sample(pairs, len(pairs)), key=margin, reverse=True)[:most]


SELECTIONS: dict[str, Selection] = {
    "random": draw,
    "best_worst": best_worst,
    "widest_margin": widest_margin,
    "all": every,
}
