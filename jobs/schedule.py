"""Plays one more round at each firing of a timetable, each in a process of its own, which is gone with its memory.

The child is `rondo run … rounds=K`, so a round goes on where one was cut off, and the run's lock keeps two from being
played at once, whoever starts them. Left out: when to fire (`pipeline/timetable.py`), and what a round is.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NoReturn

from jobs.cron import CronSchedule, time_zone
from pipeline.config import UserError
from pipeline.execution.preflight import check_rounds
from pipeline.execution.progress import Display, format_duration
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.lock import InUse

_PATIENCE = 90  # seconds that a child has to let go of Ray and of the run's lock, once it is asked to end


def schedule(
    path: str,
    overrides: Sequence[str],
    cron: str | None,
    timezone: str | None,
    now: bool,
    once: bool,
    max_failures: int | None,
) -> None:
    """Keep the schedule until somebody ends it: SIGTERM with status 0, Ctrl-C with 130.

    Raises:
        UserError: wrong options or settings; with `max_failures`, so many rounds failed one after the other; with
            `once`, the round failed.
    """
    if once == bool(cron) or (once and (now or timezone or max_failures)):
        raise UserError('give --cron, as in --cron "0 2 * * *", or --once, which takes no other option')
    table = CronSchedule(cron, time_zone(timezone)) if cron else None
    if given := [override for override in overrides if override.startswith("rounds=")]:
        raise UserError(f"{given[0]} is given: a schedule plays one round more each time. Remove it")
    display = Display()
    _, book = check_rounds(path, overrides, display)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the shell turns off for what runs in background
    command = [sys.executable, "-m", "jobs.run", path, *overrides]
    rounds = Rounds(command, book, display, 1 if once else max_failures)
    if now or once:
        rounds.play()
    if table is not None:
        for _ in table.firings(lambda: datetime.now(UTC), time.sleep, rounds.say):
            rounds.play()


def _end(*_: object) -> NoReturn:
    sys.exit(0)


class Rounds:
    """Starts rounds, tells of them, and counts those that failed in a row.

    Args:
        command: what plays them, but for `rounds=K`.
        book: the run's folder.
        max_failures: the last failed round in a row that is borne is the one before; None: all are.
    """

    def __init__(self, command: Sequence[str], book: Ledger, display: Display, max_failures: int | None = None) -> None:
        self.command, self.book, self.display, self.max_failures = command, book, display, max_failures
        self.failures = 0

    def say(self, text: str) -> None:
        self.display.say(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}  {text}", style="bold")

    def play(self) -> None:
        """One round more than are finished. Raises UserError if it is the last that may fail."""
        try:
            made = finished(self.book)
            self.say(f"round {made + 1} begins")
            began = time.monotonic()
            status, last_line = _run([*self.command, f"rounds={made + 1}"])
            took = format_duration(time.monotonic() - began)
            if status == InUse.status:
                self.say(f"round {made + 1} is left out: {last_line.removeprefix('error: ')}")
                return
            if status == 0:
                made_one = self.book.find(f"round-{made + 1:02d}/evaluation")
                what = "is made" if made_one else "adds nothing: no pairs were found, or a rule says stop (above)"
                self.say(f"round {made + 1} {what}, after {took}")
                self.failures = 0
                return
            how = f"with exit status {status}" if status > 0 else f"by signal {-status}"
            why = f"round {made + 1} ended {how} after {took}: {last_line or '(it said nothing)'}"
        except (UserError, OSError) as error:  # the run's folder is away, or damaged: it may be mended by the next time
            why = f"no round began: {error}"
        self.failures += 1
        if self.failures == self.max_failures:
            in_a_row = f"{self.failures} rounds in a row have failed. The last: " if self.failures > 1 else ""
            raise UserError(f"{in_a_row}{why}")
        self.say(f"{why}\nThe next firing tries again, from what is finished")


def finished(book: Ledger) -> int:
    """How many rounds of a run are over, from the first on: those with an evaluation, or found to give no pairs."""
    count = 0
    while book.find(f"round-{count + 1:02d}/evaluation") or _is_fruitless(book.find(f"round-{count + 1:02d}/pairs")):
        count += 1
    return count


def _is_fruitless(pairs: Artifact | None) -> bool:
    return pairs is not None and pairs.record.get("kept") == 0


def _run(command: Sequence[str]) -> tuple[int, str]:
    """A child until it ends: its exit status, below 0 for a signal, and the last line that it wrote as an error.

    What it says goes on to where ours goes. If this process is asked to end, so is the child, and waited for.
    """
    # In a session of its own, it is asked to end by us alone, and not by the terminal's Ctrl-C beside.
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True)
    last_lines: list[str] = []

    def pass_on() -> None:
        assert child.stderr is not None
        for line in child.stderr:
            sys.stderr.write(line)
            sys.stderr.flush()
            if line.strip():
                last_lines[:] = [line.strip()]

    reader = threading.Thread(target=pass_on, daemon=True)
    reader.start()
    try:
        child.wait()
    finally:
        if child.poll() is None:
            _stop(child)
        reader.join(timeout=5)  # what the child leaves behind may hold the pipe open
    return child.returncode, last_lines[0] if last_lines else ""


def _stop(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGINT)
    try:
        child.wait(_PATIENCE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt, SystemExit):  # or somebody has less patience
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
