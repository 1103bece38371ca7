"""Draws the plot of `rondo judge-eval`: the judge's score against each rating, and all correlations with intervals."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREEN, _ORANGE, _BLUE, _GREY = "#0b6e4f", "#d98324", "#2b6cb0", "#8a8a8a"
_SCORES = (("judge", _GREEN), ("soft", _BLUE), ("preference", _ORANGE), ("words", _GREY))
_BINS = 6
_COLUMNS = 3


def draw_agreement(result: Mapping[str, Any]) -> bytes:
    """The plot as a PNG. `result` is that of `evaluate.evaluate`.

    The first panel has Spearman per article of each score with its bootstrap interval, and what one rater reaches. With
    people's choices there is a panel for them. A panel for each rating has a point for each summary: value and rating,
    each less its mean in the article. The line joins the mean ratings of summaries with about equal values; its bars
    are 1.96 standard errors.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ratings, choices = result["ratings"], result["choices"]
    panels = len(ratings) + bool(ratings) + bool(choices)
    rows = math.ceil(panels / _COLUMNS)
    columns = min(panels, _COLUMNS)
    figure, grid = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.6 * rows), layout="constrained", squeeze=False)
    free = iter(grid.flat)
    if ratings:
        _draw_correlations(next(free), result)
    if choices:
        _draw_choices(next(free), result)
    for name, rating in ratings.items():
        _draw_points(next(free), name, result["points"][name], rating["scores"]["judge"]["per_article"]["spearman"])
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    for axes in free:
        axes.set_visible(False)
    figure.suptitle(
        f"{result['judge']} and people: {result['summaries']:,} summaries of {result['articles']:,} articles",
        fontsize=11,
    )
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    plt.close(figure)
    return stream.getvalue()


def _draw_points(axes: "Axes", name: str, points: Sequence[Sequence[float]], rho: Mapping[str, Any]) -> None:
    if points:
        x, y = np.array(points).T
        # Many values and ratings are equal; a little noise shows how many points lie on one another.
        rng = np.random.default_rng(0)
        noise = [rng.uniform(-0.01, 0.01, len(side)) * max(float(np.ptp(side)), 1e-9) for side in (x, y)]
        axes.scatter(x + noise[0], y + noise[1], s=7, alpha=max(0.2, min(0.7, 200 / len(x))), color=_GREY, linewidths=0)
        means = _binned(x, y)
        if means:
            centres, heights, errors = map(list, zip(*means, strict=True))
            axes.errorbar(centres, heights, yerr=errors, color=_GREEN, marker="o", markersize=4, capsize=3)
    axes.axhline(0, color="grey", linewidth=0.8, linestyle=":")
    axes.axvline(0, color="grey", linewidth=0.8, linestyle=":")
    value = "undefined" if rho["value"] is None else f"{rho['value']:+.2f} [{rho['low']:+.2f}, {rho['high']:+.2f}]"
    axes.set_title(f"{name}\nSpearman per article {value}", fontsize=10)
    axes.set_xlabel("judge's score, less the article's mean", fontsize=9)
    axes.set_ylabel("rating, less the article's mean", fontsize=9)


def _binned(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float, float]]:
    """Mean value, mean rating and the rating's half interval of groups of equal size, ordered by value."""
    means = []
    edges = np.unique(np.quantile(x, np.linspace(0, 1, _BINS + 1)))
    group = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, max(0, len(edges) - 2))
    for i in np.unique(group):
        own = group == i
        if own.sum() > 1:
            error = 1.96 * float(y[own].std(ddof=1)) / math.sqrt(own.sum())
            means.append((float(x[own].mean()), float(y[own].mean()), error))
    return means


def _draw_correlations(axes: "Axes", result: Mapping[str, Any]) -> None:
    """Spearman per article with its interval, for each rating and score."""
    names = list(result["ratings"])
    for row, rating in enumerate(result["ratings"].values()):
        shown = [(name, colour) for name, colour in _SCORES if name in rating["scores"]]
        for i, (score, colour) in enumerate(shown):
            estimate = rating["scores"][score]["per_article"]["spearman"]
            label = result["preference"] if score == "preference" else {"words": "words alone"}.get(score, score)
            _draw_interval(axes, estimate, row + 0.16 * (i - (len(shown) - 1) / 2), colour, label if not row else None)
        if (people := rating["people"]) and people["per_article"]["spearman"]["value"] is not None:
            value = people["per_article"]["spearman"]["value"]
            label = "one rater and the others" if not row else None
            axes.plot([value] * 2, [row - 0.4, row + 0.4], color="black", linewidth=1.5, label=label)
    axes.axvline(0, color="grey", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_title("Spearman per article", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)


def _draw_choices(axes: "Axes", result: Mapping[str, Any]) -> None:
    """The share of people's choices ranked alike, where a tie counts half."""
    shown = [(name, colour) for name, colour in _SCORES if name in result["choices"]]
    for row, (score, colour) in enumerate(shown):
        _draw_interval(axes, result["choices"][score]["with_half_ties"], row, colour, None)
    axes.axvline(0.5, color="grey", linewidth=0.8, linestyle=":")
    labels = [result["preference"] if name == "preference" else name for name, _ in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=9)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_title("people's choices ranked alike, ties as half", fontsize=10)


def _draw_interval(axes: "Axes", estimate: Mapping[str, Any], y: float, colour: str, label: str | None) -> None:
    if estimate["value"] is None or estimate["low"] is None:
        return
    # A mean can lie outside the interval of its resamples by rounding only; matplotlib refuses negative lengths.
    error = [[max(0.0, estimate["value"] - estimate["low"])], [max(0.0, estimate["high"] - estimate["value"])]]
    axes.errorbar([estimate["value"]], [y], xerr=error, fmt="o", markersize=4, capsize=3, color=colour, label=label)
