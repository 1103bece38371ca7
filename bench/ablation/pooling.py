"""Puts the verdicts of several seeds together: a win rate with an interval over articles and seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.win_rate import sign_test

INTERVAL = (
    "The intervals are bootstrap intervals over articles and seeds: each resample draws the articles once and the "
    "seeds once, both with replacement, and takes every drawn article in every drawn seed (Owen, 2007)"
)
_RESAMPLES = 5000
_CHUNK = 500  # resamples at a time, which bounds the memory


def pool_verdicts(
    by_seed: Sequence[Mapping[str, int]], confidence: float, resamples: int = _RESAMPLES
) -> dict[str, Any] | None:
    """The mean win rate over seeds, (wins + ties / 2) / n in each.

    All seeds have the same held-out articles, so articles and seeds are crossed: the bootstrap resamples both (Owen,
    2007, "The pigeonhole bootstrap"). With one seed it is the bootstrap over articles.

    Args:
        by_seed: for each seed the verdict of each article: 1 (win), 0 (tie) or -1 (loss).
        confidence: of the interval.
        resamples: number of bootstrap samples.

    Returns:
        `win_rate`, `low` and `high`; `n`, the number of articles; `seeds`; and `shown`: 1 if a win is shown, -1 if a
        loss is shown, else 0. As in `evaluation.win_rate`, the interval must exclude 50 %, and a sign test must agree;
        an article counts as a win if it wins in more seeds than it loses. None if no seed has a verdict.
    """
    by_seed = [verdicts for verdicts in by_seed if verdicts]
    if not by_seed:
        return None
    articles = sorted({article for verdicts in by_seed for article in verdicts})
    # (seeds, articles): the score of each article; 0 and not known where a seed has no verdict.
    known = np.array([[article in verdicts for article in articles] for verdicts in by_seed], dtype=float)
    scores = np.array([[(verdicts.get(article, -1) + 1) / 2 for article in articles] for verdicts in by_seed])
    rates = _resample(scores, known, resamples)
    low, high = np.quantile(rates, [(1 - confidence) / 2, (1 + confidence) / 2])
    sums = [sum(verdicts.get(article, 0) for verdicts in by_seed) for article in articles]
    wins, losses = sum(total > 0 for total in sums), sum(total < 0 for total in sums)
    # Above 1000 the interval is reliable by itself, and the exact sum would take long.
    is_clear = wins + losses > 1000 or sign_test(wins, losses) <= 1 - confidence
    return {
        "win_rate": float(np.mean((scores * known).sum(1) / known.sum(1))),
        "low": float(low),
        "high": float(high),
        "n": len(articles),
        "seeds": len(by_seed),
        "shown": int(is_clear) * (int(low > 0.5) - int(high < 0.5)),
    }


def _resample(scores: np.ndarray, known: np.ndarray, resamples: int) -> np.ndarray:
    """(resamples,): the mean over the drawn seeds of the mean over the drawn articles."""
    rng = np.random.default_rng(0)
    seeds, n = scores.shape
    means = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        articles = rng.multinomial(n, np.full(n, 1 / n), size=size)
        drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
        by_seed = articles @ (scores * known).T / np.maximum(1, articles @ known.T)
        means.append((by_seed * drawn).sum(1) / seeds)
    return np.concatenate(means)
