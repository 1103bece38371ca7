"""Draws the report's plot: the win rate by round with its interval, and accuracy over compression.

For a judge that gives scores, the mean score takes the place of accuracy.
"""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREEN, _ORANGE, _GREY = "#0b6e4f", "#d98324", "#555555"
_RULES = (("strict", _GREEN, -0.03), ("reference", _ORANGE, 0.03))  # with an offset, so that intervals do not overlap


def draw_plot(metrics: dict[str, Any], writers: list[tuple[str, dict[str, Any]]]) -> bytes:
    """The plot as a PNG.

    Args:
        metrics: see `metrics.collect_metrics`.
        writers: the name of each writer, and its figures; see `comparison.describe_writer`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import PercentFormatter

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    _draw_win_rates(left, metrics)
    _draw_accuracy(right, metrics["threshold"], writers)
    counts_answers = any("accuracy" in figures for _, figures in writers)
    for axis in (left.yaxis, right.xaxis, *([right.yaxis] if counts_answers else [])):
        axis.set_major_formatter(PercentFormatter(1))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    plt.close(figure)
    return stream.getvalue()


def _draw_win_rates(axes: "Axes", metrics: dict[str, Any]) -> None:
    """Win rate against the base by round, for each rule."""
    for rule, colour, offset in _RULES:
        points = [(entry["round"], entry["vs_base"][rule]) for entry in metrics["rounds"] if entry["vs_base"].get(rule)]
        if points:
            x = [number + offset for number, _ in points]
            y = [rate["win_rate"] for _, rate in points]
            error = [
                [rate["win_rate"] - rate["low"] for _, rate in points],
                [rate["high"] - rate["win_rate"] for _, rate in points],
            ]
            axes.errorbar(x, y, yerr=error, marker="o", capsize=4, color=colour, label=f"{rule} rule")
    axes.axhline(0.5, color="grey", linewidth=1, linestyle=":")
    confidence = metrics["confidence"] * 100
    axes.set(title=f"Win rate against the base, {confidence:g} % interval", xlabel="round", ylim=(0, 1))
    axes.set_xticks([entry["round"] for entry in metrics["rounds"]])
    axes.set_xlim(0.5, max(1, len(metrics["rounds"])) + 0.5)
    if metrics["rounds"]:
        axes.legend(loc="lower right", frameon=False)


def _draw_accuracy(axes: "Axes", threshold: int, writers: list[tuple[str, dict[str, Any]]]) -> None:
    """Accuracy, or the mean score, over compression: one point for each writer."""
    counts_answers = any("accuracy" in figures for _, figures in writers)
    key = "accuracy" if counts_answers else "value_mean"
    points = sorted((figures["compression_median"], figures[key], name) for name, figures in writers if key in figures)
    for number, (compression, score, name) in enumerate(points):
        axes.scatter(compression, score, color=_GREEN if name.startswith("round") else _GREY)
        # Neighbours have their names at different heights, because a name is longer than the way to the next point.
        offset = 6, 4 + 12 * (number % 2)
        axes.annotate(name, (compression, score), xytext=offset, textcoords="offset points")
    axes.set(
        title=f"Accuracy (≥ {threshold} right) over length" if counts_answers else "Mean score over length",
        xlabel="compression, median",
    )
    if counts_answers:
        axes.set_ylim(-0.05, 1.15)  # with room for a name at the top
    axes.margins(x=0.2)
