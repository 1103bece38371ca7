"""Keeps the comparisons of a folder in benchmark.json, and makes their table."""

import json
from collections.abc import Sequence
from typing import Any

from pipeline.config import UserError
from pipeline.evaluation.benchmark.comparison import Line
from pipeline.storage.ledger import Ledger

COMPARISONS = "benchmark.json"


def read_comparisons(ledger: Ledger) -> dict[str, Any]:
    """The comparisons by name of the task: `lines`, with the options that they were made with. Empty if there are none.

    Raises:
        UserError: the file is damaged.
    """
    try:
        content = json.loads(ledger.read(COMPARISONS) or "{}")
        return {task: {**entry, "lines": [Line(**line) for line in entry["lines"]]} for task, entry in content.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{ledger.root}/{COMPARISONS} is damaged: remove it, and run the benchmark again") from None


def add_comparisons(ledger: Ledger, comparisons: dict[str, Any]) -> None:
    """Write comparisons, in place of older ones of the same tasks."""
    merged = {**read_comparisons(ledger), **comparisons}
    ledger.write(
        COMPARISONS, json.dumps(merged, indent=2, ensure_ascii=False, default=lambda line: line.as_dict()) + "\n"
    )


def up_to_date(comparisons: dict[str, Any], digests: dict[str, str]) -> dict[str, Any]:
    """The comparisons without lines about policies that were trained again since.

    Args:
        comparisons: see `read_comparisons`.
        digests: the digest of each policy that the run has now, by the name of its folder in `benchmark/`.
    """
    kept = {}
    for task, entry in comparisons.items():
        lines = [line for line in entry["lines"] if digests.get(line.slot, line.digest) == line.digest]
        if any(line.difference is not None for line in lines) and lines[0].difference is None:
            kept[task] = {**entry, "lines": lines}
    return kept


def benchmark_table(lines: Sequence[Line]) -> list[list[str]]:
    """A heading, then a line for each task, metric and model."""
    table = [["task", "metric", "model", "figure", "against base", "interval", "shown", "n"]]
    for line in lines:
        difference = "–" if line.difference is None else f"{line.difference:+.4f}"
        sign = "" if line.difference is None else "+"
        interval = f"{line.low:{sign}.4f} to {line.high:{sign}.4f}"
        figure = f"{line.figure:.4f}"
        table.append([line.task, line.metric, line.label, figure, difference, interval, line.verdict, str(line.n)])
    return table
