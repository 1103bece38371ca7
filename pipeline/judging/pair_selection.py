"""Chooses which pairs of an article are trained on, and how much each one weighs in the loss.

Every selection is called as `select(pairs, scores, max_pairs, rng)`. `pairs` are the article's pairs without a tie, as
(chosen, rejected) indices into `scores`, the article's scores. `max_pairs` is `pairs.max_per_article`, and `rng` a
generator that is seeded for this article. `stages/pairs.py` decides which summaries may be paired at all.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence

from pipeline.judging.preference import Score, judged_value

Pair = tuple[int, int]
Selection = Callable[[Sequence[Pair], Sequence[Score], int, random.Random], list[Pair]]


def random_pairs(pairs: Sequence[Pair], scores: Sequence[Score], max_pairs: int, rng: random.Random) -> list[Pair]:
    """Up to `max_pairs` pairs, drawn at random. This is the reference setting's selection."""
    return rng.sample(pairs, min(max_pairs, len(pairs)))


def best_worst(pairs: Sequence[Pair], scores: Sequence[Score], max_pairs: int, rng: random.Random) -> list[Pair]:
    """One pair: the summary that is preferred most often against the one that is preferred least often.

    A summary's rank is the number of pairs that prefer it minus the number that reject it (Copeland, 1951). If the best
    and the worst tie with each other, which is possible if a rule compares only some pairs, the pair with the largest
    difference in rank is taken.
    """
    rank = Counter(chosen for chosen, _ in pairs)
    rank.subtract(rejected for _, rejected in pairs)
    return _widest(pairs, 1, rng, lambda pair: (rank[pair[0]] - rank[pair[1]],))


def widest_margin(pairs: Sequence[Pair], scores: Sequence[Score], max_pairs: int, rng: random.Random) -> list[Pair]:
    """Up to `max_pairs` pairs, those with the largest difference in right answers first.

    For a judge that gives scores it is the difference in value. Pairs with the same difference are ordered by the
    difference of the soft scores, if there are any, and then by how many words shorter the chosen summary is. A pair
    whose chosen summary does not have more right answers was decided by length. Such pairs come after all pairs that
    accuracy decided.
    """

    def margin(pair: Pair) -> tuple[float, ...]:
        chosen, rejected = scores[pair[0]], scores[pair[1]]
        better, words = judged_value(chosen) - judged_value(rejected), rejected["words"] - chosen["words"]
        return (better, soft_margin(chosen, rejected) or 0.0, words) if better > 0 else (0, 0.0, words)

    return _widest(pairs, max_pairs, rng, margin)


def all_pairs(pairs: Sequence[Pair], scores: Sequence[Score], max_pairs: int, rng: random.Random) -> list[Pair]:
    """All pairs. Each weighs 1 / (number of pairs), so that every article weighs the same in training."""
    return list(pairs)


def soft_margin(chosen: Score, rejected: Score) -> float | None:
    """The chosen summary's soft score minus the rejected one's; None if either has no soft score."""
    chosen_soft, rejected_soft = chosen.get("soft"), rejected.get("soft")
    return None if chosen_soft is None or rejected_soft is None else chosen_soft - rejected_soft


def pair_weights(pairs: Sequence[Pair], scores: Sequence[Score], mean: float, weighting: str) -> list[float]:
    """The weight of each of an article's pairs in the loss. Their mean is `mean`.

    Args:
        weighting: "none" gives all pairs the same weight. "margin" weighs in proportion to the soft margin. A soft
            margin of 0 or less means that the judge itself does not believe the verdict: such a pair weighs nothing. A
            pair that length decided weighs as much as a margin of one question. If no pair would weigh anything, or a
            summary has no soft score, all pairs weigh the same.
    """
    margins = [soft_margin(scores[chosen], scores[rejected]) for chosen, rejected in pairs]
    known_margins = [margin for margin in margins if margin is not None]
    if weighting == "none" or len(known_margins) < len(pairs):
        return [mean] * len(pairs)
    by_length = [scores[chosen]["correct"] <= scores[rejected]["correct"] for chosen, rejected in pairs]
    sizes = [
        1.0 if decided_by_length else max(0.0, margin)
        for decided_by_length, margin in zip(by_length, known_margins, strict=True)
    ]
    total = sum(sizes)
    return [mean * len(pairs) * size / total for size in sizes] if total else [mean] * len(pairs)


def _widest(
    pairs: Sequence[Pair], max_pairs: int, rng: random.Random, margin: Callable[[Pair], tuple[float, ...]]
) -> list[Pair]:
    """The `max_pairs` pairs with the largest margin. Pairs with equal margins come in random order."""
    return sorted(rng.sample(pairs, len(pairs)), key=margin, reverse=True)[:max_pairs]


SELECTIONS: dict[str, Selection] = {
    "random": random_pairs,
    "best_worst": best_worst,
    "widest_margin": widest_margin,
    "all": all_pairs,
}
