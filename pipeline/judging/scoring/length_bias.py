"""Counts how far a judge's values rise with the length of summaries, for the judge card of any kind of judge.

Only summaries of one article are compared. A judge may be right that longer summaries are better; the card shows the
figures, and a reader decides.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from pipeline.judging import tallies
from pipeline.judging.preference import judged_value
from pipeline.storage.schema import Row

_FEWEST = 3  # summaries of an article for a correlation: two always correlate fully


def count_length_bias(texts: Sequence[str], scores: Sequence[Row]) -> dict[str, int]:
    """Count over the distinct summaries of one article that the judge could read. Empty if there is nothing to count.

    Args:
        texts: the summaries.
        scores: a row of the column `scores` for each.
    """
    read = [score for score in dict(zip(texts, scores, strict=True)).values() if not score["unread"]]
    points = [(judged_value(score), score["words"]) for score in read]
    decided = [(a[0] > b[0]) == (a[1] > b[1]) for a, b in combinations(points, 2) if a[0] != b[0] and a[1] != b[1]]
    counts = {tallies.LENGTHS_DECIDED: len(decided), tallies.LONGER_WON: sum(decided)} if decided else {}
    values, words = np.array(points).reshape(-1, 2).T
    if len(points) >= _FEWEST and np.ptp(values) > 0 and np.ptp(words) > 0:
        correlation = float(np.corrcoef(_ranks(values), _ranks(words))[0, 1])
        counts |= {tallies.LENGTH_CORRELATIONS: 1, tallies.LENGTH_CORRELATION_SUM: round(1e6 * correlation)}
    return counts


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 on; equal values share the mean of their ranks, as in Spearman's correlation."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: np.ndarray = (last - (count + 1) / 2)[place]
    return ranks
