"""Correlates a judge's scores with people's ratings: per article, pooled and by system, with bootstrap intervals.

The levels and the resampling are those of Deutsch, Dror and Roth (2021), "A Statistical Analysis of Summarization
Evaluation Metrics Using Resampling Methods". A resample draws whole articles, so summaries of one article stay
together. It is held as the number of times that each article was drawn, and all resamples are computed at once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

Array = np.ndarray
Estimate = dict[str, Any]  # value, low, high (None if undefined), n
Measure = Callable[[Array, Array], float | None]

_CELLS = 4_000_000  # of a matrix in memory
_RANKED = 2_000  # resamples of which all summaries are ranked: each costs as much as all other figures


def pearson(a: Array, b: Array) -> float | None:
    """Pearson's r of two (n,). None if a side is constant or has fewer than two values."""
    # scipy's pearsonr and spearmanr also test for significance, which takes ten times as long as the rest.
    if _is_constant(a) or _is_constant(b):
        return None
    with np.errstate(invalid="ignore", divide="ignore"):  # where a side's variance is rounded to 0
        return _finite(np.corrcoef(a, b)[0, 1])


def spearman(a: Array, b: Array) -> float | None:
    """Spearman's rho of two (n,); equal values share a rank. None if a side is constant or has fewer than two."""
    return pearson(stats.rankdata(a), stats.rankdata(b))


def kendall(a: Array, b: Array) -> float | None:
    """Kendall's tau-b of two (n,), which corrects for ties (Kendall, 1945). None if a side is constant."""
    return None if _is_constant(a) or _is_constant(b) else _finite(stats.kendalltau(a, b).statistic)


MEASURES: dict[str, Measure] = {"pearson": pearson, "spearman": spearman, "kendall": kendall}


def _is_constant(side: Array) -> bool:
    return len(side) < 2 or bool(np.ptp(side) == 0)


def _finite(value: float) -> float | None:
    """None for what rounding makes of a nearly constant side."""
    return float(value) if np.isfinite(value) else None


class Bootstrap:
    """Resamples of articles.

    Args:
        articles: number of articles.
        resamples: number of resamples.
        confidence: of the intervals, such as 0.95.
        seed: the same seed gives the same resamples.
    """

    def __init__(self, articles: int, resamples: int, confidence: float = 0.95, seed: int = 0):
        self.confidence = confidence
        rng = np.random.default_rng(seed)
        self.counts: Array | None = None  # (resamples, articles): how often each article was drawn
        if articles:
            drawn = rng.multinomial(articles, np.full(articles, 1 / articles), size=resamples)
            self.counts = drawn.astype(float)  # products of floats are faster than those of integers

    def mean(self, values: Sequence[float | None]) -> Estimate:
        """The mean over articles (None: the article has no value), with its interval."""
        defined = np.array([value is not None for value in values])
        numbers = np.array([0.0 if value is None else float(value) for value in values])
        return self.ratio(numbers, defined.astype(float))

    def ratio(self, parts: Array, wholes: Array) -> Estimate:
        """The sum of `parts` divided by the sum of `wholes`, each (articles,), with its interval. `n` is the sum."""
        whole = float(wholes.sum())
        if not whole:
            return estimate(None, 0)
        assert self.counts is not None
        drawn_wholes = self.counts @ wholes
        drawn = (self.counts @ parts)[drawn_wholes > 0] / drawn_wholes[drawn_wholes > 0]
        return estimate(float(parts.sum()) / whole, round(whole), self._interval(drawn))

    def pooled(self, name: str, sides: Sequence[tuple[Array, Array]]) -> Estimate:
        """The correlation over all summaries. `sides` has for each article two arrays of its summaries."""
        a, b = (np.concatenate(side) for side in zip(*sides, strict=True)) if sides else (np.empty(0), np.empty(0))
        value = MEASURES[name](a, b)
        if value is None:
            return estimate(None, len(a))
        article = np.repeat(np.arange(len(sides)), [len(side[0]) for side in sides])
        assert self.counts is not None
        match name:
            case "pearson":
                drawn = _drawn_pearson(a, b, article, self.counts)
            case "spearman":
                drawn = _drawn_spearman(a, b, article, self.counts[:_RANKED])
            case _:
                drawn = _drawn_kendall(a, b, article, self.counts)
        return estimate(value, len(a), self._interval(drawn))

    def system_level(self, name: str, sums: tuple[Array, Array], summaries: Array) -> Estimate:
        """The correlation of the systems' mean scores and mean ratings. `n` is the number of systems.

        Args:
            name: of the measure.
            sums: of scores and of ratings, each (articles, systems).
            summaries: (articles, systems), how many summaries were added up.
        """
        present = summaries.sum(0) > 0
        sums, summaries = (sums[0][:, present], sums[1][:, present]), summaries[:, present]
        total = summaries.sum(0)
        value = MEASURES[name](sums[0].sum(0) / total, sums[1].sum(0) / total) if present.any() else None
        if value is None:
            return estimate(None, int(present.sum()))
        assert self.counts is not None
        drawn_total = self.counts @ summaries
        complete = (drawn_total > 0).all(1)  # a resample without any summary of some system is left out
        a, b = ((self.counts @ side)[complete] / drawn_total[complete] for side in sums)
        if not len(a):
            return estimate(value, int(present.sum()))
        return estimate(value, int(present.sum()), self._interval(_of_rows(name, a, b)))

    def _interval(self, drawn: Array) -> tuple[float, float] | None:
        drawn = drawn[np.isfinite(drawn)]
        if not len(drawn):
            return None
        tail = (1 - self.confidence) / 2
        return float(np.quantile(drawn, tail)), float(np.quantile(drawn, 1 - tail))


def estimate(value: float | None, n: int, interval: tuple[float, float] | None = None) -> Estimate:
    """A figure with its interval and the number of articles, summaries, systems or pairs that it is computed from."""
    low, high = interval or (None, None)
    return {"value": value, "low": low, "high": high, "n": n}


def partial_spearman(a: Array, b: Array, given: Array) -> float | None:
    """Spearman's rho of two (n,) with the ranks of a third held constant (Kendall, 1942). None if it is undefined."""
    ab, ac, bc = spearman(a, b), spearman(a, given), spearman(b, given)
    if ab is None or ac is None or bc is None:
        return ab  # a constant third side explains nothing
    norm = np.sqrt(max(0.0, (1 - ac**2) * (1 - bc**2)))
    return float(np.clip((ab - ac * bc) / norm, -1, 1)) if norm > 1e-6 else None


def one_rater_and_the_others(ratings: Array, measure: Measure) -> float | None:
    """The correlation of one rater with the mean of the others, as a mean over raters (Snow et al., 2008).

    Args:
        ratings: (summaries, raters); NaN where a rater gave no rating.
        measure: the correlation.
    """
    values = []
    for rater in range(ratings.shape[1]):
        others = np.delete(ratings, rater, axis=1)
        rated = ~np.isnan(ratings[:, rater]) & ~np.isnan(others).all(1)
        if rated.sum() > 1 and (value := measure(ratings[rated, rater], np.nanmean(others[rated], 1))) is not None:
            values.append(value)
    return float(np.mean(values)) if values else None


def _drawn_pearson(a: Array, b: Array, article: Array, counts: Array) -> Array:
    """Pearson's r in each resample, from sums over the summaries of each article."""
    a, b = a - a.mean(), b - b.mean()  # keeps the differences below precise
    articles = counts.shape[1]
    n, x, y, xx, yy, xy = (
        counts @ np.bincount(article, values, articles) for values in (np.ones(len(a)), a, b, a * a, b * b, a * b)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return (n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y))


def _drawn_spearman(a: Array, b: Array, article: Array, counts: Array) -> Array:
    """Spearman's rho in each resample, whose values are ranked anew."""
    drawn = []
    rows = max(1, _CELLS // len(a))
    for begin in range(0, len(counts), rows):
        weights = counts[begin : begin + rows, article]
        drawn.append(_weighted_pearson(_drawn_ranks(a, weights), _drawn_ranks(b, weights), weights))
    return np.concatenate(drawn)


def _weighted_pearson(x: Array, y: Array, weights: Array) -> Array:
    total = weights.sum(1, keepdims=True)
    x = x - (weights * x).sum(1, keepdims=True) / total
    y = y - (weights * y).sum(1, keepdims=True) / total
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights * x * y).sum(1) / np.sqrt((weights * x * x).sum(1) * (weights * y * y).sum(1))


def _drawn_ranks(values: Array, weights: Array) -> Array:
    """Ranks of the values in resamples in which value i occurs `weights[:, i]` times; equal values share a rank."""
    order = np.argsort(values, kind="stable")
    _, first, group = np.unique(values[order], return_index=True, return_inverse=True)
    group_weights = np.add.reduceat(weights[:, order], first, axis=1)
    middle = np.cumsum(group_weights, axis=1) - (group_weights - 1) / 2
    ranks = np.empty_like(weights)
    ranks[:, order] = middle[:, group]
    return ranks


def _drawn_kendall(a: Array, b: Array, article: Array, counts: Array) -> Array:
    """Kendall's tau-b in each resample, from sums over the pairs of each two articles."""
    articles = counts.shape[1]
    begins = np.searchsorted(article, np.arange(articles))
    filled = np.flatnonzero(np.bincount(article, minlength=articles))
    sums = np.zeros((3, articles, articles))
    for i in filled:  # the rows of one article: a full matrix would take gigabytes at n = 20,000
        own = article == i
        x, y = np.sign(a[own][:, None] - a), np.sign(b[own][:, None] - b)
        for total, signs in zip(sums, (x * y, x * x, y * y), strict=True):
            total[i, filled] = np.add.reduceat(signs.sum(0), begins[filled])
    concordance, untied_a, untied_b = (((counts @ total) * counts).sum(1) for total in sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        return concordance / np.sqrt(untied_a * untied_b)


def _of_rows(name: str, a: Array, b: Array) -> Array:
    """The correlation of each row of two (resamples, systems); NaN if it is undefined."""
    if name == "kendall":
        rows = max(1, _CELLS // a.shape[1] ** 2)
        return np.concatenate([_kendall_of_rows(a[i : i + rows], b[i : i + rows]) for i in range(0, len(a), rows)])
    if name == "spearman":
        a, b = stats.rankdata(a, axis=1), stats.rankdata(b, axis=1)
    return _weighted_pearson(a, b, np.ones_like(a))


def _kendall_of_rows(a: Array, b: Array) -> Array:
    x, y = (np.sign(side[:, :, None] - side[:, None, :]) for side in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum((1, 2)) / np.sqrt((x * x).sum((1, 2)) * (y * y).sum((1, 2)))
