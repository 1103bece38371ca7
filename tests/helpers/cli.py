"""Drivers that tests start and end: `rondo …` in a process of its own."""

import os
import signal
import subprocess
import sys
import time

import psutil

from tests.helpers.paths import ROOT

PACE = 900  # seconds that a small run may take on a busy machine


def environment():
    return {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")} | {"COLUMNS": "120"}


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(what, process=None):
    """Until `what()` holds; a driver, if one is given, that ends before is a failure, with all that it said."""
    deadline = time.monotonic() + PACE
    while not (found := what()):
        assert process is None or process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.05)
    return found


def kill(process):
    """SIGKILL for a driver that we started, then for what it leaves behind."""
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
