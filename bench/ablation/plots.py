"""Draws the plots of a study as SVG: win rates of all arms, each choice by its values, and hours.

The background is transparent, and lines and text are grey, so that the plots can be read on a light and on a dark page.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.ablation.figures import STEPS
from bench.ablation.summary import Rate, Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GREY = "#7d8590"
_SERIES = (  # the attribute of a summary, its name in the legend, colour, marker
    ("vs_base", "first judge", "#1f9d73", "o"),
    ("second_vs_base", "second judge", "#d98324", "s"),
    ("test_vs_base", "first judge, test articles", "#5b7fd6", "D"),
)
_STEP_COLOURS = ("#5b7fd6", "#1f9d73", "#d98324", "#a371c9")
_PANELS = (  # title, the setting whose values are the labels (None: the arms' names), arms in order
    ("rounds and pairs", None, ("dpo-1", "offline", "dpo-2", "replay", "dpo-3", "champion")),
    ("beta", "training.beta", ("beta-low", "dpo-1", "beta-high")),
    ("learning rate", "training.learning_rate", ("lr-low", "dpo-1", "lr-high")),
    ("loss", "training.loss_type", ("dpo-1", "ipo", "hinge", "apo-zero", "sft")),
)


def draw_win_rates(arms: Sequence[Summary]) -> bytes:
    """The win rate of every arm against the base, with its intervals, as SVG."""
    shown = [arm for arm in arms if arm.vs_base][::-1]
    series = [each for each in _SERIES if any(getattr(arm, each[0]) for arm in shown)]
    figure, axes = _figure(1, height=1.1 + 0.36 * len(shown))
    for place, (attribute, label, colour, marker) in enumerate(series):
        offset = 0.14 * ((len(series) - 1) / 2 - place)
        points = [(row, getattr(arm, attribute)) for row, arm in enumerate(shown) if getattr(arm, attribute)]
        axes.errorbar(
            [rate["win_rate"] for _, rate in points],
            [row + offset for row, _ in points],
            xerr=_errors([rate for _, rate in points]),
            fmt=marker,
            markersize=5,
            capsize=3,
            color=colour,
            label=label,
        )
    axes.axvline(0.5, color=_GREY, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(shown)), [arm.name for arm in shown])
    axes.set(xlim=(0, 1), xlabel="strict win rate against the base")
    _percent_axis(axes.xaxis)
    axes.figure.legend(loc="outside upper center", ncols=max(1, len(series)), frameon=False, labelcolor=_GREY)
    return _svg(figure)


def draw_choices(arms: Sequence[Summary], settings: Mapping[str, Any]) -> bytes:
    """The win rate against the base by the values of each choice, as SVG.

    Args:
        arms: the arms.
        settings: the settings of the configuration.
    """
    by_name = {arm.name: arm for arm in arms if arm.vs_base}
    panels = [(title, setting, [by_name[n] for n in names if n in by_name]) for title, setting, names in _PANELS]
    panels = [panel for panel in panels if len(panel[-1]) > 1]
    figure, *all_axes = _figure(max(1, len(panels)), height=3.2)
    for axes, (title, setting, found) in zip(all_axes, panels, strict=False):
        for place, (attribute, _, colour, marker) in enumerate(_SERIES[:2]):
            points = [(x, getattr(arm, attribute)) for x, arm in enumerate(found) if getattr(arm, attribute)]
            if points:
                rates = [rate for _, rate in points]
                axes.errorbar(
                    [x + 0.12 * place for x, _ in points],
                    [rate["win_rate"] for rate in rates],
                    yerr=_errors(rates),
                    fmt=marker,
                    markersize=5,
                    capsize=3,
                    color=colour,
                )
        axes.axhline(0.5, color=_GREY, linewidth=1, linestyle=":")
        axes.set_title(title, color=_GREY, fontsize=10)
        axes.set_xticks(range(len(found)), [_label(arm, setting, settings) for arm in found], rotation=40, ha="right")
        axes.set(ylim=(0, 1), xlim=(-0.5, len(found) - 0.4))
        _percent_axis(axes.yaxis)
    all_axes[0].set_ylabel("win rate against the base")
    return _svg(figure)


def _label(arm: Summary, setting: str | None, settings: Mapping[str, Any]) -> str:
    """The arm's value of a setting, or its name."""
    if setting is None:
        return arm.name
    name, _, value = arm.choice.partition(" ")[0].partition("=")
    section, _, key = setting.partition(".")
    return value if name == setting else str(settings[section][key])


def draw_hours(arms: Sequence[Summary]) -> bytes:
    """The hours of every arm by step, with what it shares with other arms, as SVG."""
    shown = [arm for arm in arms if arm.hours][::-1]
    figure, axes = _figure(1, height=1.1 + 0.28 * len(shown))
    left = [0.0] * len(shown)
    for step, colour in zip(STEPS, _STEP_COLOURS, strict=True):
        widths = [arm.hours.get(step, 0.0) for arm in shown]
        axes.barh(range(len(shown)), widths, left=left, color=colour, height=0.6, label=step)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(shown)), [arm.name for arm in shown])
    axes.set_xlabel("hours, mean over seeds")
    axes.figure.legend(loc="outside upper center", ncols=len(STEPS), frameon=False, labelcolor=_GREY)
    return _svg(figure)


def _errors(rates: Sequence[Rate]) -> list[list[float]]:
    found: list[Any] = list(rates)
    return [
        [rate["win_rate"] - rate["low"] for rate in found],
        [rate["high"] - rate["win_rate"] for rate in found],
    ]


def _figure(columns: int, height: float) -> tuple[Any, ...]:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "rondo"  # so that the same figures give the same file
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(9, height), layout="constrained", squeeze=False)
    for each in axes.flat:
        each.spines[["top", "right"]].set_visible(False)
        each.spines[["left", "bottom"]].set_color(_GREY)
        each.tick_params(colors=_GREY, labelsize=9)
        each.xaxis.label.set_color(_GREY)
        each.yaxis.label.set_color(_GREY)
        each.patch.set_alpha(0)
    figure.patch.set_alpha(0)
    return figure, *axes.flat


def _percent_axis(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1))


def _svg(figure: "Figure") -> bytes:
    from matplotlib import pyplot as plt

    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    plt.close(figure)
    return stream.getvalue()
