"""Makes the tables of the report from the figures in metrics.json, as lines of cells for any medium."""

from collections.abc import Sequence
from typing import Any

from pipeline.evaluation.report.metrics import tested_round

# Key in metrics.json, name in the table, format. A name may contain {threshold}, and {above}, which is one more.
_METRICS = (
    ("accuracy", "accuracy ≥{threshold}", "{:.1%}"),
    ("accuracy_above", "accuracy ≥{above}", "{:.1%}"),
    ("correct_mean", "right answers, mean", "{:.2f}"),
    ("questions_mean", "questions, mean", "{:.2f}"),
    ("value_mean", "judge's score, mean", "{:.3g}"),
    ("words_median", "words, median", "{:.0f}"),
    ("compression_median", "compression, median", "{:.1%}"),
    ("compression_mean", "compression, mean", "{:.1%}"),
    ("too_long", "too long", "{:.1%}"),
    ("invalid_chars", "invalid characters", "{:.1%}"),
    ("cut_off", "cut off", "{:.1%}"),
    ("empty", "empty", "{:.1%}"),
    ("copied", "copied 8-grams, mean", "{:.1%}"),
    ("lead_copied", "… from the lead, mean", "{:.1%}"),
    ("repeated", "words said twice, mean", "{:.1%}"),
    ("off_topic_end", "ends off topic", "{:.1%}"),
    ("other_language", "another language", "{:.1%}"),
)
_TEST_FAULTS = ("cut_off", "copied", "repeated", "off_topic_end")
_SHOWN_IF_FOUND = (
    "accuracy_above",
    "repeated",
    "off_topic_end",
    "other_language",
)  # these lines are left out where all are 0

_OF_ANSWERS = {"accuracy", "accuracy_above", "correct_mean", "questions_mean"}

_TEST_CELLS = 5  # of a line of the test table, before those of the held-out articles

TableLines = list[list[str]]  # a heading, then lines


def result_tables(metrics: dict[str, Any], wide: bool = False) -> list[TableLines]:
    """The results of a run: the test if there was one, the figures of each writer's summaries, and the win rates.

    Args:
        wide: add what the terminal has no room for: the held-out figures beside those of the test, and the second
            judge's win rates in the last table.
    """
    test = _test_table(metrics) if metrics["test"] else []
    tables = [test if wide else [line[:_TEST_CELLS] for line in test]] if test else []
    return [*tables, _summary_table(metrics), win_rate_table(metrics, second=wide and bool(metrics["second_judge"]))]


def _test_table(metrics: dict[str, Any]) -> TableLines:
    """Strict win rates against the base, and faults: on the test articles, and beside them on the held-out ones."""
    test = metrics["test"]
    policy = f"round {test['round']}", test["policy"], tested_round(metrics)
    baselines = [(name, figures, metrics["baselines"][name]) for name, figures in test["baselines"].items()]
    lines = [["", "figure", "test", "interval", "n", "held-out", "interval", "n"]]
    for name, *both in (policy, *baselines):
        rates = [figures["vs_base"]["strict"] for figures in both]
        lines.append([f"{name} against base", "strict", *_cells_side_by_side(rates)])
        if metrics["second_judge"]:
            rates = [figures["second"]["vs_base"]["strict"]["rate"] for figures in both]
            lines.append([f"{name} against base", "strict, 2nd judge", *_cells_side_by_side(rates)])
    for key, label, _ in _METRICS:
        for name, *both in (policy, ("base", test["base"], metrics["base"])) if key in _TEST_FAULTS else ():
            lines.append([name, label, *_cells_side_by_side([figures.get("faults", {}).get(key) for figures in both])])
    return lines


def _cells_side_by_side(figures: Sequence[dict[str, Any] | None]) -> list[str]:
    """Value, interval and n of each figure: a win rate, or a mean as in `win_rate.mean_share`."""
    return [cell for figure in figures for cell in _figure_cells(figure)]


def _figure_cells(figure: dict[str, Any] | None) -> list[str]:
    if not figure:
        return ["–"] * 3
    value = figure["win_rate"] if "win_rate" in figure else figure["mean"]
    return [f"{value:.1%}", f"{figure['low'] * 100:.1f}–{figure['high']:.1%}", str(figure["n"])]


def named_writers(metrics: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The name of each writer, and its figures."""
    rounds = [(f"round {entry['round']}", entry) for entry in metrics["rounds"]]
    return [("base", metrics["base"]), *rounds, *metrics["compared"].items(), *metrics["baselines"].items()]


def _summary_table(metrics: dict[str, Any]) -> TableLines:
    """The table of the reference setting: a line for each figure, a column for each writer."""
    names, columns = zip(*named_writers(metrics), strict=True)
    lines = [
        ["", *names],
        ["articles", *(str(figures["n"]) for figures in columns)],
        ["  with an unread answer", *(str(figures["unread"]) for figures in columns)],
    ]
    # A judge counts right answers, or it gives scores. A table without any article has no figures at all.
    other_kind = {"value_mean"} if not any("value_mean" in figures for figures in columns) else _OF_ANSWERS
    for key, name, form in _METRICS:
        if key in other_kind or (key in _SHOWN_IF_FOUND and all(figures.get(key) == 0 for figures in columns)):
            continue
        label = name.format(threshold=metrics["threshold"], above=metrics["threshold"] + 1)
        lines.append([label, *(form.format(figures[key]) if key in figures else "–" for figures in columns)])
    return lines


def win_rate_table(metrics: dict[str, Any], second: bool) -> TableLines:
    """A line for each comparison and rule. With `second`, also a line for the second judge, with the agreement."""
    lines = [["", "rule", "win rate", "interval", "win/tie/loss", "n", *(["agree"] if second else [])]]
    for name, figures in named_writers(metrics):
        lines += _comparison_lines(f"{name} against base", figures, "vs_base", second)
        if figures.get("previous"):  # 0 is the base, which has a line already
            title = f"{name} against round {figures['previous']}"
            lines += _comparison_lines(title, figures, "vs_previous", second)
    return lines


def _comparison_lines(title: str, figures: dict[str, Any], key: str, second: bool) -> TableLines:
    """The lines of one comparison, such as `vs_base`; none if it was not made."""
    lines = []
    for rule, rate in figures.get(key, {}).items():
        lines.append([title, rule, *_rate_cells(rate), *([""] if second else [])])
        # The second judge does not judge models at servers, and not by a rule that does not fit its scores.
        if second and rule in figures.get("second", {}).get(key, {}):
            result = figures["second"][key][rule]
            same = result["agreement"]["same"]
            agreement = "–" if same is None else f"{same:.1%}"
            lines.append([title, f"{rule}, 2nd judge", *_rate_cells(result["rate"]), agreement])
    return lines


def _rate_cells(rate: dict[str, Any] | None) -> list[str]:
    """Win rate, interval, counts and n."""
    win_rate, interval, n = _figure_cells(rate)
    counts = "/".join(str(rate[kind]) for kind in ("wins", "ties", "losses")) if rate else "–"
    return [win_rate, interval, counts, n]
