"""Prints benchmark results as a table: with rich where it is installed, otherwise as plain columns."""

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table. The keys of the first row are the columns."""
    columns = list(rows[0])
    cells = [[str(row.get(column, "")) for column in columns] for row in rows]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        _print_plain(title, columns, cells)
        return
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for line in cells:
        table.add_row(*line)
    console = Console()
    # Rich takes a file for 80 columns wide and would cut the cells.
    Console(width=console.width if console.is_terminal else 180).print(table)


def _print_plain(title: str, columns: list[str], cells: list[list[str]]) -> None:
    widths = [max(map(len, [column, *(line[i] for line in cells)])) for i, column in enumerate(columns)]
    print(f"\n{title}")
    for line in [columns, *cells]:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def median_and_range(values: Sequence[float]) -> str:
    """The median, then the smallest and the largest value in brackets."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def machine_info(device: str, threads: int) -> dict[str, Any]:
    """The hardware and package versions that a benchmark ran with."""
    cpu_info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu_names = [line.split(":")[1].strip() for line in cpu_info.splitlines() if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else (cpu_names or [platform.processor()])[0],
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg()[0],
        **{name: _installed_version(name) for name in ("torch", "transformers", "trl", "peft")},
    }


def _installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
