"""Which of an article's informative pairs (those that the preference does not call a tie) are trained on, and how
much each weighs.

Every selection is called as `select(pairs, scores, most, rng)`: (chosen, rejected) indices into `scores`, the
article's scores, `pairs.max_per_article`, and a generator of the article's own. Left out: the preference, and what
may be paired at all (`pairs.py`).
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence

from pipeline.judging.preference import Score

Pair = tuple[int, int]
Selection = Callable[[Sequence[Pair], Sequence[Score], int, random.Random], list[Pair]]


def random_pairs(pairs: Sequence[Pair], scores: Sequence[Score], most: int, rng: random.Random) -> list[Pair]:
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

    A pair that was decided by length, whose chosen has no more right, so comes after all that accuracy decided. Among
    these, equals in questions right go by the soft score, where there is one, before words.
    """

    def margin(pair: Pair) -> tuple[float, ...]:
        chosen, rejected = scores[pair[0]], scores[pair[1]]
        right, words = chosen["correct"] - rejected["correct"], rejected["words"] - chosen["words"]
        return (right, soft_margin(chosen, rejected) or 0.0, words) if right > 0 else (0, 0.0, words)

    return _widest(pairs, most, rng, margin)


def all_pairs(pairs: Sequence[Pair], scores: Sequence[Score], most: int, rng: random.Random) -> list[Pair]:
    """All of them, and each weighs 1 / (how many there are): an article with many weighs no more than one with one."""
    return list(pairs)


def soft_margin(chosen: Score, rejected: Score) -> float | None:
    """By how much the soft score of the chosen is the higher; None where either has none."""
    high, low = chosen.get("soft"), rejected.get("soft")
    return None if high is None or low is None else high - low


def pair_weights(pairs: Sequence[Pair], scores: Sequence[Score], mean: float, weighting: str) -> list[float]:
    """What each of an article's pairs weighs in the loss; `mean` on average.

    Args:
        weighting: none: all the same. margin: in proportion to the soft margin. One of 0 or less is a verdict that
            the judge itself does not believe, and weighs nothing; a pair that accuracy did not decide weighs as if
            by a margin of one question. All the same where no pair has a margin, or any has no soft score.
    """
    margins = [soft_margin(scores[chosen], scores[rejected]) for chosen, rejected in pairs]
    known = [margin for margin in margins if margin is not None]
    if weighting == "none" or len(known) < len(pairs):
        return [mean] * len(pairs)
    by_length = [scores[chosen]["correct"] <= scores[rejected]["correct"] for chosen, rejected in pairs]
    sizes = [1.0 if shorter else max(0.0, margin) for shorter, margin in zip(by_length, known, strict=True)]
    total = sum(sizes)
    return [mean * len(pairs) * size / total for size in sizes] if total else [mean] * len(pairs)


def _widest(
    pairs: Sequence[Pair], most: int, rng: random.Random, margin: Callable[[Pair], tuple[float, ...]]
) -> list[Pair]:
    """The first by margin, equals in an order drawn."""
    return sorted(rng.sample(pairs, len(pairs)), key=margin, reverse=True)[:most]


SELECTIONS: dict[str, Selection] = {
    "random": random_pairs,
    "best_worst": best_worst,
    "widest_margin": widest_margin,
    "all": all_pairs,
}
