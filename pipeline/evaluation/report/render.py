"""Renders the figures of a run: tables for the terminal, report.md, report.png and report.html."""

import json
from pathlib import Path
from typing import Any

import jinja2
from rich.table import Table
from rich.text import Text

from judges.text.words import WORD_UNIT
from pipeline.config import Config
from pipeline.config.messages import markdown_environment
from pipeline.evaluation import judge_card
from pipeline.evaluation.benchmark.models import current_digests
from pipeline.evaluation.benchmark.table import benchmark_table, read_comparisons, up_to_date
from pipeline.evaluation.comparison import CountingSettings
from pipeline.evaluation.report.metrics import format_rate
from pipeline.evaluation.report.page.html import report_page
from pipeline.evaluation.report.plot import draw_plot
from pipeline.evaluation.report.tables import TableLines, named_writers, result_tables
from pipeline.storage.ledger import Ledger


def terminal_tables(*tables: TableLines) -> list[Table]:
    """Tables for the terminal."""
    rich_tables = []
    for heading, *lines in tables:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in heading:
            is_text = name in ("", "rule", "of", "figure")
            table.add_column(Text(name), justify="left" if is_text else "right", no_wrap=name != "of")
        for line in lines:
            # The lines that matter most: trained rounds by the rule that training used.
            is_result = line[0].startswith("round") and line[1].startswith("strict")
            table.add_row(*map(Text, line), style="bold green" if is_result else None)
        rich_tables.append(table)
    return rich_tables


def template_environment() -> jinja2.Environment:
    """The environment of report.md.j2."""
    return markdown_environment(Path(__file__).parent)


def write_report(metrics: dict[str, Any], examples: list[dict[str, Any]], config: Config, ledger: Ledger) -> None:
    """Write metrics.json, report.png, report.md and report.html into the run's folder.

    Args:
        metrics: see `metrics.collect_metrics`.
        examples: see `examples.choose_examples`.
    """
    ledger.write("metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    ledger.write("report.png", draw_plot(metrics, named_writers(metrics)))
    comparisons = up_to_date(read_comparisons(ledger), current_digests(ledger))
    template = template_environment().get_template("report.md.j2")
    report = template.render(
        metrics=metrics,
        config=config,
        word_unit=WORD_UNIT,
        tables=result_tables(metrics, wide=True),
        judge_card=judge_card.card_lines(metrics["judge"]),
        benchmark=benchmark_table([line for entry in comparisons.values() for line in entry["lines"]]),
        comparisons=comparisons,
        examples=examples,
        rate=format_rate,
        second_rule=_second_rule(config),
        nats=_format_nats,
    )
    ledger.write("report.md", report)
    ledger.write("report.html", report_page(metrics, config, ledger))


def _second_rule(config: Config) -> str | None:
    """The name of the strict rule of the second judge, if it is not the first judge's."""
    counting = CountingSettings.from_config(config)
    own = counting.second_rules["strict"]
    return own.__name__ if own is not counting.rules["strict"] else None


def _format_nats(value: float, error: float | None) -> str:
    return f"{value:.3g}" + (f" ± {error:.2g}" if error is not None else "")
