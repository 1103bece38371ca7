"""Compares the base with other models, document by document, with bootstrap intervals."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Aggregate = Callable[[Sequence[Any]], float]


@dataclass(frozen=True)
class Line:
    """A model's figure for one metric of a task, and its difference from the base's.

    Attributes:
        task, metric: their names.
        label: names the model.
        slot, digest: the model's folder in `benchmark/`, and the digest of its weights.
        figure: of all documents.
        low, high: the interval of the difference from the base; for the base, that of its figure.
        difference: from the base; None for the base.
        n: number of documents.
        verdict: "better" or "worse" than the base if the interval excludes 0; else "".
    """

    task: str
    metric: str
    label: str
    slot: str
    digest: str
    figure: float
    difference: float | None
    low: float
    high: float
    n: int
    verdict: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Interval:
    """A figure with the percentile interval of a bootstrap over documents."""

    value: float
    low: float
    high: float

    def verdict(self, higher_is_better: bool) -> str:
        """Whether this difference from the base is shown to be "better" or "worse"; "" if it is not shown."""
        if self.low <= 0 <= self.high:
            return ""
        return "better" if (self.low > 0) == higher_is_better else "worse"


def bootstrap(
    values: Sequence[Any],
    base: Sequence[Any] | None,
    aggregate: Aggregate,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """The figure of `values`, or its difference from the figure of `base`, with an interval.

    A resample draws documents with replacement and takes both models' values of the same documents, so the pairing
    stays intact (Efron and Tibshirani, 1993, chapter 13).

    Args:
        values: what each document contributes to the figure.
        base: the same of the base, in the same order; None: no difference.
        aggregate: makes the figure of a list of values.
    """

    def figure(chosen: Sequence[int]) -> float:
        ours = aggregate([values[i] for i in chosen])
        return ours if base is None else ours - aggregate([base[i] for i in chosen])

    assert base is None or len(base) == len(values), "values are paired by document"
    n, rng = len(values), np.random.default_rng(seed)
    figures = [figure(rng.integers(n, size=n).tolist()) for _ in range(resamples)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(figures, [tail, 1 - tail])
    return Interval(figure(range(n)), float(low), float(high))
