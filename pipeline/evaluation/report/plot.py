"""The report's plot: win rate by round with its interval, and accuracy over compression. Left out: the numbers."""

import io
from typing import Any


def draw_plot(metrics: dict[str, Any], writers: list[tuple[str, dict[str, Any]]]) -> bytes:
    """The plot as a PNG.

    Args:
        metrics: see `report.measure`.
        writers: each by name, with what it did; see `evaluation.describe`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import PercentFormatter

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for rule, colour, offset in (("strict", "#0b6e4f", -0.03), ("reference", "#d98324", 0.03)):
        points = [(r["round"], r["vs_base"][rule]) for r in metrics["rounds"] if r["vs_base"][rule]]
        if points:
            x = [number + offset for number, _ in points]
            y = [rate["win_rate"] for _, rate in points]
            error = [
                [rate["win_rate"] - rate["low"] for _, rate in points],
                [rate["high"] - rate["win_rate"] for _, rate in points],
            ]
            left.errorbar(x, y, yerr=error, marker="o", capsize=4, color=colour, label=f"{rule} rule")
    left.axhline(0.5, color="grey", linewidth=1, linestyle=":")
    left.set(
        title=f"Win rate against the base, {metrics['confidence'] * 100:g} % interval", xlabel="round", ylim=(0, 1)
    )
    left.set_xticks([r["round"] for r in metrics["rounds"]])
    left.set_xlim(0.5, max(1, len(metrics["rounds"])) + 0.5)
    left.yaxis.set_major_formatter(PercentFormatter(1))
    if metrics["rounds"]:
        left.legend(loc="lower right", frameon=False)
    for name, values in writers:
        if "accuracy" in values:
            colour = "#0b6e4f" if name.startswith("round") else "#555555"
            right.scatter(values["compression_median"], values["accuracy"], color=colour)
            right.annotate(
                name, (values["compression_median"], values["accuracy"]), xytext=(6, 4), textcoords="offset points"
            )
    right.set(title=f"Accuracy ≥{metrics['threshold']} over length", xlabel="compression, median", ylim=(-0.05, 1.05))
    right.margins(x=0.2)
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    plt.close(figure)
    return stream.getvalue()
