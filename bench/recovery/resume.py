"""Measures how long a killed run takes to resume: `.venv/bin/python -m bench.recovery.resume`.

Runs the demo with real vLLM, kills the driver and all its child processes once some summaries are written, repeats the
same command, and measures the time from the command to the first new row. `chaos.py` checks that nothing is lost.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from bench.print_table import median_and_range

ROOT = Path(__file__).parents[2]
TIMEOUT = 600.0  # seconds


def start(run: Path, log: Path) -> "subprocess.Popen[bytes]":
    """Start the demo with small batches of articles, so that some are written before others."""
    command = [sys.executable, "-m", "jobs.cli", "run", "configs/demo.yaml", f"run={run}", "rounds=1"]
    command += ["articles.limit=240", "hardware.policy.batch_size=4", "hardware.judge.batch_size=4"]
    with log.open("ab") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=os.environ | {"PYTHONPATH": str(ROOT)})


def kill(driver: "subprocess.Popen[bytes]") -> None:
    """Kill a driver, then every process that it had started."""
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    for child in children:
        if child.is_running():
            child.kill()


def wait_for(condition: Callable[[], bool], driver: "subprocess.Popen[bytes]", log: Path) -> float:
    """Wait until a condition holds. Returns the seconds waited.

    Raises:
        SystemExit: with the driver's log, if the driver ended or `TIMEOUT` passed before.
    """
    began = time.monotonic()
    while not condition():
        if driver.poll() is not None or time.monotonic() - began > TIMEOUT:
            raise SystemExit(log.read_text(errors="replace"))
        time.sleep(0.05)
    return time.monotonic() - began


def measure() -> float:
    """Kill a run and resume it. Returns the seconds from the second command to the first new part file."""
    with tempfile.TemporaryDirectory() as folder:
        run, log = Path(folder, "run"), Path(folder, "log")

        def parts() -> set[Path]:
            return set((run / "round-01").glob("*/part-*.parquet"))

        driver = start(run, log)
        wait_for(lambda: len(parts()) > 3, driver, log)
        kill(driver)
        parts_before = parts()
        driver = start(run, log)
        seconds = wait_for(lambda: bool(parts() - parts_before), driver, log)
        kill(driver)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=3, help="how many runs to kill and resume (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the seconds of every run")
    options = parser.parse_args()
    seconds = [measure() for _ in range(options.runs)]
    print(f"seconds from the command to the first new row: {median_and_range(seconds)}")
    if options.json:
        result = {"seconds": statistics.median(seconds), "runs": seconds}
        options.json.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
