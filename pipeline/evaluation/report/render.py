"""The report for people: tables for the terminal, report.md and report.png."""

import json
from pathlib import Path
from typing import Any

import jinja2
from rich.table import Table
from rich.text import Text

from pipeline.config import Config
from pipeline.config.sanitize import escape_markdown, printable
from pipeline.evaluation import judge_card
from pipeline.evaluation.report.metrics import format_rate
from pipeline.evaluation.report.plot import draw_plot
from pipeline.storage.ledger import Ledger

_METRICS = (
    ("accuracy", "accuracy ≥{threshold}", "{:.1%}"),
    ("accuracy_above", "accuracy ≥{more}", "{:.1%}"),
    ("correct_mean", "right, mean", "{:.2f}"),
    ("questions_mean", "questions, mean", "{:.2f}"),
    ("words_median", "words, median", "{:.0f}"),
    ("compression_median", "compression, median", "{:.1%}"),
    ("compression_mean", "compression, mean", "{:.1%}"),
    ("too_long", "too long", "{:.1%}"),
    ("invalid_chars", "invalid characters", "{:.1%}"),
    ("cut_off", "cut off", "{:.1%}"),
    ("empty", "empty", "{:.1%}"),
)


def _nats(value: float, error: float | None) -> str:
    return f"{value:.3g}" + (f" ± {error:.2g}" if error is not None else "")


def _writers(metrics: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    named = [("base", metrics["base"])] + [(f"round {r['round']}", r) for r in metrics["rounds"]]
    return named + list(metrics["compared"].items()) + list(metrics["baselines"].items())


def _quality(metrics: dict[str, Any]) -> list[list[str]]:
    """The table of the reference setting: a heading, then a line per metric with a cell per writer."""
    names, columns = zip(*_writers(metrics), strict=True)
    lines = [["", *names], ["articles", *(str(values["n"]) for values in columns)]]
    lines.append(["  with an answer unread", *(str(values["unread"]) for values in columns)])
    for key, name, shape in _METRICS:
        label = name.format(threshold=metrics["threshold"], more=metrics["threshold"] + 1)
        lines.append([label, *(shape.format(values[key]) if key in values else "–" for values in columns)])
    return lines


def _wins(metrics: dict[str, Any], second: bool) -> list[list[str]]:
    """A heading, then a line for each comparison by each rule, and with `second` one more by the second judge."""
    agree_too = ["agree"] if second else []
    lines = [["", "rule", "win rate", "interval", "win/tie/loss", "n", *agree_too]]
    for name, values in _writers(metrics):
        for against in ("base", "previous"):
            if against == "previous" and not values.get("previous"):
                continue  # the policy before the first is the base
            for rule, rate in values.get(f"vs_{against}", {}).items():
                who = f"{name} against " + ("base" if against == "base" else f"round {values['previous']}")
                lines.append([who, rule, *_cells(rate), *("" for _ in agree_too)])
                if agree_too and "second" in values:  # it judges no model at a server
                    other = values["second"][f"vs_{against}"][rule]
                    same = other["agreement"]["same"]
                    agreed = "–" if same is None else f"{same:.1%}"
                    lines.append([who, f"{rule}, 2nd judge", *_cells(other["rate"]), agreed])
    return lines


def _cells(rate: dict[str, Any] | None) -> list[str]:
    """Win rate, interval, counts and n."""
    if not rate:
        return ["–"] * 4
    interval = f"{rate['low'] * 100:.1f}–{rate['high']:.1%}"
    counts = "/".join(str(rate[kind]) for kind in ("wins", "ties", "losses"))
    return [f"{rate['win_rate']:.1%}", interval, counts, str(rate["n"])]


def result_tables(metrics: dict[str, Any], second: bool = False) -> list[list[list[str]]]:
    """What came of the run in two tables: each writer's summaries, and who wins against whom.

    Args:
        second: with what the second judge found; a terminal has no room for it.
    """
    return [_quality(metrics), _wins(metrics, second)]


def terminal_tables(*tables: list[list[str]]) -> list[Table]:
    """Tables as the terminal shows them: a heading, then lines."""
    made = []
    for heading, *lines in tables:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in heading:
            table.add_column(
                Text(name), justify="left" if name in ("", "rule", "of") else "right", no_wrap=name != "of"
            )
        for line in lines:
            # What the run is about: a trained round, by the rule that training used.
            matters = line[0].startswith("round") and line[1].startswith("strict")
            table.add_row(*map(Text, line), style="bold green" if matters else None)
        made.append(table)
    return made


def template_environment() -> jinja2.Environment:
    """Where report.md.j2 is, and its filters: `text` for what anybody wrote, `code` for what stands in backquotes."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters |= {"text": escape_markdown, "code": lambda text: printable(text).replace("`", "'")}
    return made


def write_report(metrics: dict[str, Any], examples: list[dict[str, Any]], config: Config, ledger: Ledger) -> None:
    """Write metrics.json, report.md and report.png into the run's folder."""
    ledger.write("metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    ledger.write("report.png", draw_plot(metrics, _writers(metrics)))
    text = (
        template_environment()
        .get_template("report.md.j2")
        .render(
            metrics=metrics,
            config=config,
            tables=result_tables(metrics, second=bool(config.second_judge)),
            judge_card=judge_card.card_lines(metrics["judge"]),
            examples=examples,
            rate=format_rate,
            nats=_nats,
        )
    )
    ledger.write("report.md", text)
