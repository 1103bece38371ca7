"""Runs the command `rondo` in its own process, waits for conditions, and kills drivers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil

from tests.helpers.paths import ROOT

RUN_TIMEOUT = 900  # seconds; a small run takes less even on a busy machine
RONDO = [sys.executable, "-m", "jobs.cli"]


def environment() -> dict[str, str]:
    """This process's environment without RAY_ADDRESS and PYTHONPATH, which Ray or the tests may have set.

    The terminal is 120 columns wide, so that messages break in the same places everywhere.
    """
    return {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")} | {"COLUMNS": "120"}


def run_rondo(*arguments: object, timeout: float = RUN_TIMEOUT, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `rondo` to its end in the root of the repository. `variables` are added to its environment."""
    return subprocess.run(
        [*RONDO, *map(str, arguments)],
        cwd=ROOT,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start_rondo(*arguments: object) -> subprocess.Popen[str]:
    """Start `rondo` in a session of its own. Its stdout has its output and its errors."""
    return subprocess.Popen(
        [*RONDO, *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(
    condition: Callable[[], Any], process: subprocess.Popen[str] | None = None, timeout: float = RUN_TIMEOUT
) -> Any:
    """Wait until `condition()` is true and return its value.

    If `process` is given and ends first, the test fails and shows all that the process has written.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert process is None or process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, f"not true after {timeout} seconds"
        time.sleep(0.05)
    return value


def kill(process: subprocess.Popen[str]) -> None:
    """Send SIGKILL to a driver that a test has started, then to every process that it leaves behind."""
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
