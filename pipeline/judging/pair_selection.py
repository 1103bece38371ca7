"""Chooses which pairs of an article are trained on, and how much each one weighs in the loss.

Every selection is called as `select(pairs, scores, max_pairs, rng)`. `pairs` are the article's pairs without a tie, as
(chosen, rejected) indices into `scores`, the article's scores. `max_pairs` is `pairs.max_per_article`, and `rng` a
generator that is seeded for this article. Before the selection, `beyond_noise` drops pairs whose difference may be
chance. `stages/pairs.py` decides which summaries may be paired at all.
"""

import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.config.judging import Pairs
from pipeline.judging.preference import Score, decided_by_score, judged_value, score_items, vote_lead

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

    For a judge that gives scores it is the difference in value, and for a jury the lead in its votes. Pairs with the
    same difference are ordered by the difference of the soft scores, if there are any, and then by how many words
    shorter the chosen summary is. A pair whose chosen summary does not have more right answers was decided by length.
    Such pairs come after all pairs that accuracy decided.
    """

    def margin(pair: Pair) -> tuple[float, ...]:
        chosen, rejected = scores[pair[0]], scores[pair[1]]
        is_voted = chosen.get("weights") is not None
        better = vote_lead(chosen, rejected) if is_voted else judged_value(chosen) - judged_value(rejected)
        words = rejected["words"] - chosen["words"]
        return (better, soft_margin(chosen, rejected) or 0.0, words) if better > 0 else (0, 0.0, words)

    return _widest(pairs, max_pairs, rng, margin)


def all_pairs(pairs: Sequence[Pair], scores: Sequence[Score], max_pairs: int, rng: random.Random) -> list[Pair]:
    """All pairs. Each weighs 1 / (number of pairs), so that every article weighs the same in training."""
    return list(pairs)


def beyond_noise(
    pairs: Sequence[Pair], scores: Sequence[Score], questions: Sequence[Mapping[str, Any]], settings: Pairs
) -> list[Pair]:
    """The pairs whose difference is `pairs.min_standard_errors` standard errors or more: see `standard_errors`.

    Pairs that the score did not decide are kept, because its noise says nothing about them.
    """
    if not settings.min_standard_errors:
        return list(pairs)

    def is_clear(chosen: int, rejected: int) -> bool:
        if not decided_by_score(scores[chosen], scores[rejected], settings):
            return True
        difference = standard_errors(*(score_items(scores[i], questions) for i in (chosen, rejected)))
        return difference is not None and difference >= settings.min_standard_errors

    return [pair for pair in pairs if is_clear(*pair)]


def standard_errors(chosen: Sequence[float | None], rejected: Sequence[float | None]) -> float | None:
    """By how many of its standard errors the chosen summary's mean item is above the rejected one's.

    This is Student's paired t over the items that were read for both: the mean of the differences by their standard
    deviation (with n - 1) over the square root of n. It is infinite if all items differ by the same amount. None if
    fewer than two items were read for both, because then there is no standard deviation, or if they are other items.

    >>> standard_errors([1, 1, 1, 0, 0], [0, 0, 0, 0, 0])
    2.449489742783178
    """
    differences = [a - b for a, b in zip(chosen, rejected, strict=False) if a is not None and b is not None]
    if len(chosen) != len(rejected) or len(differences) < 2:
        return None
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return mean / error if error else math.copysign(math.inf, mean) if mean else 0.0


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
