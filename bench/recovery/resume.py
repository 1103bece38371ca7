"""How long a killed run takes to go on: `.venv/bin/python -m bench.recovery.resume`.

Plays the demo with real vLLM, kills the driver and all it started when some summaries are written, gives the same
command again, and measures from there to the first new row. Left out: whether anything is lost (`chaos.py`).
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

from bench.print_table import spread

ROOT = Path(__file__).parents[2]
ENDLESS = 600.0  # seconds after which something is broken


def start(run: Path, log: Path) -> "subprocess.Popen[bytes]":
    """The demo with its articles in small batches, so that some are written while others are not."""
    command = [sys.executable, "-m", "jobs.cli", "run", "configs/demo.yaml", f"run={run}", "rounds=1"]
    command += ["articles.limit=240", "hardware.policy.batch_size=4", "hardware.judge.batch_size=4"]
    with log.open("ab") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=os.environ | {"PYTHONPATH": str(ROOT)})


def kill(driver: "subprocess.Popen[bytes]") -> None:
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    for child in children:
        if child.is_running():
            child.kill()


def wait_for(what: Callable[[], bool], driver: "subprocess.Popen[bytes]", log: Path) -> float:
    began = time.monotonic()
    while not what():
        if driver.poll() is not None or time.monotonic() - began > ENDLESS:
            raise SystemExit(log.read_text(errors="replace"))
        time.sleep(0.05)
    return time.monotonic() - began


def measure() -> float:
    """Seconds from the command to the first part that was not there before."""
    with tempfile.TemporaryDirectory() as folder:
        run, log = Path(folder, "run"), Path(folder, "log")

        def parts() -> set[Path]:
            return set((run / "round-01").glob("*/part-*.parquet"))

        driver = start(run, log)
        wait_for(lambda: len(parts()) > 3, driver, log)
        kill(driver)
        before = parts()
        driver = start(run, log)
        seconds = wait_for(lambda: bool(parts() - before), driver, log)
        kill(driver)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = [measure() for _ in range(given.runs)]
    print(f"seconds from the command to the first new row: {spread(found)}")
    if given.json:
        given.json.write_text(json.dumps({"seconds": statistics.median(found), "runs": found}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
