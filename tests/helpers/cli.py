"""Runs `rondo …` in a process of its own, waits for it, and kills it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil

from tests.helpers.paths import ROOT

PACE = 900  # seconds that a small run may take on a busy machine
RONDO = [sys.executable, "-m", "jobs.cli"]


def environment() -> dict[str, str]:
    """This process's environment without what the tests' own Ray has put there."""
    return {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")} | {"COLUMNS": "120"}


def rondo(*arguments: object, timeout: float = PACE, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, at the root of the repository; `variables` are added to its environment."""
    return subprocess.run(
        [*RONDO, *map(str, arguments)],
        cwd=ROOT,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start the command in a session of its own; its output and its errors are one stream."""
    return subprocess.Popen(
        [*RONDO, *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None, timeout: float = PACE) -> Any:
    """Wait until `condition()` is true and return its value.

    If `process` is given and ends first, the test fails with all that the process has written.
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
