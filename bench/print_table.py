"""How results are printed: a table by rich, or plain columns where rich is not installed. Left out: what they mean."""

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows, whose columns are the keys of the first."""
    columns = list(rows[0])
    cells = [[str(row.get(column, "")) for column in columns] for row in rows]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(map(len, [column, *(line[i] for line in cells)])) for i, column in enumerate(columns)]
        print(f"\n{title}")
        for line in [columns, *cells]:
            print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
        return
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for line in cells:
        table.add_row(*line)
    console = Console()
    # In a file there is no width to keep to: a table that is cut says nothing.
    Console(width=console.width if console.is_terminal else 180).print(table)


def spread(values: Sequence[float]) -> str:
    """Median, and from the least to the largest."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def machine(device: str, threads: int) -> dict[str, Any]:
    """What the numbers were taken on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else (names or [platform.processor()])[0],
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg()[0],
        **{name: _version(name) for name in ("torch", "transformers", "trl", "peft")},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
