"""`rondo schedule`: runs one more round at each firing of a cron schedule.

Each round is a child process, `rondo run … rounds=K`, so its memory is free when it ends. The child resumes an
interrupted round, and the run's lock keeps two drivers from working at the same time. `cron.py` computes when to fire.
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

from jobs.scheduling.cron import CronSchedule, time_zone
from pipeline.config import UserError
from pipeline.config.loader import load_config
from pipeline.execution.preflight import check_rounds
from pipeline.execution.progress import Display, format_duration
from pipeline.storage.ledger import Ledger
from pipeline.storage.lock import InUse
from pipeline.storage.run_folder import round_folder

_SECONDS_TO_STOP = 90  # time for a child to stop Ray and release the run's lock, before it is killed


def schedule(
    path: str,
    overrides: Sequence[str],
    cron: str | None,
    timezone: str | None,
    now: bool,
    once: bool,
    max_failures: int | None,
) -> None:
    """Keep the schedule until a signal ends it: SIGTERM with exit status 0, Ctrl-C with 130.

    Raises:
        UserError: the options or the settings are wrong; `max_failures` rounds in a row have failed; or with `once`
            the round failed.
    """
    if once == bool(cron) or (once and (now or timezone or max_failures)):
        raise UserError('give --cron, as in --cron "0 2 * * *", or --once, which takes no other option')
    cron_schedule = CronSchedule(cron, time_zone(timezone)) if cron else None
    if rounds_given := [override for override in overrides if override.startswith("rounds=")]:
        raise UserError(f"{rounds_given[0]} is given: a schedule runs one round more each time. Remove it")
    display = Display()
    ledger = check_rounds(load_config(path, overrides), display)
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell turns it off for background processes
    command = [sys.executable, "-m", "jobs.run", path, *overrides]
    rounds = ScheduledRounds(command, ledger, display, 1 if once else max_failures)
    if now or once:
        rounds.run_next()
    if cron_schedule is not None:
        for _ in cron_schedule.firings(lambda: datetime.now(UTC), time.sleep, rounds.say):
            rounds.run_next()


def _exit(*_: object) -> NoReturn:
    sys.exit(0)


class ScheduledRounds:
    """Runs rounds in child processes, reports on them, and counts the failed ones.

    Args:
        command: the child's command, without `rounds=K`.
        ledger: the run folder.
        max_failures: raise after so many failed rounds in a row; None: never.
    """

    def __init__(
        self, command: Sequence[str], ledger: Ledger, display: Display, max_failures: int | None = None
    ) -> None:
        self.command, self.ledger, self.display, self.max_failures = command, ledger, display, max_failures
        self.failures = 0

    def say(self, text: str) -> None:
        self.display.say(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}  {text}", style="bold")

    def run_next(self) -> None:
        """Run the round after the last finished round.

        Raises:
            UserError: `max_failures` rounds in a row have failed.
        """
        try:
            failure = self._play()
        except (UserError, OSError) as error:  # the run folder is out of reach or damaged: it may be mended later
            failure = f"no round began: {error}"
        if failure is None:
            return
        self.failures += 1
        if self.failures == self.max_failures:
            in_a_row = f"{self.failures} rounds in a row have failed. The last: " if self.failures > 1 else ""
            raise UserError(f"{in_a_row}{failure}")
        self.say(f"{failure}\nThe next firing tries again, from what is finished")

    def _play(self) -> str | None:
        """Run a round. Returns why it failed; None if it did not, or if another driver holds the run."""
        number = count_finished_rounds(self.ledger) + 1
        self.say(f"round {number} begins")
        started = time.monotonic()
        status, last_line = _run_child([*self.command, f"rounds={number}"])
        duration = format_duration(time.monotonic() - started)
        if status == InUse.status:
            self.say(f"round {number} is left out: {last_line.removeprefix('error: ')}")
            return None
        if status != 0:
            how = f"with exit status {status}" if status > 0 else f"by signal {-status}"
            return f"round {number} ended {how} after {duration}: {last_line or '(no message)'}"
        is_new = self.ledger.find(f"{round_folder(number)}/evaluation")
        result = "is made" if is_new else "adds nothing: no pairs were found, or a rule says stop (above)"
        self.say(f"round {number} {result}, after {duration}")
        self.failures = 0
        return None


def count_finished_rounds(ledger: Ledger) -> int:
    """Count a run's finished rounds, from the first up to a gap. A round without pairs counts as finished."""
    count = 0
    while _is_finished(ledger, count + 1):
        count += 1
    return count


def _is_finished(ledger: Ledger, number: int) -> bool:
    if ledger.find(f"{round_folder(number)}/evaluation"):
        return True
    pairs = ledger.find(f"{round_folder(number)}/pairs")
    return pairs is not None and pairs.record.get("kept") == 0


def _run_child(command: Sequence[str]) -> tuple[int, str]:
    """Run a child process to its end, and pass on its output. If this process is told to stop, stop the child too.

    Returns:
        the exit status, below 0 for a signal; and the last line that the child wrote to standard error.
    """
    # A child in its own session gets no Ctrl-C from the terminal: only this process tells it to stop.
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True)
    last_line = ""

    def pass_on_errors() -> None:
        nonlocal last_line
        assert child.stderr is not None
        for line in child.stderr:
            sys.stderr.write(line)
            sys.stderr.flush()
            last_line = line.strip() or last_line

    reader = threading.Thread(target=pass_on_errors, daemon=True)
    reader.start()
    try:
        child.wait()
    finally:
        if child.poll() is None:
            _stop(child)
        reader.join(timeout=5)  # processes that the child leaves behind may hold the pipe open
    return child.returncode, last_line


def _stop(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGINT)
    try:
        child.wait(_SECONDS_TO_STOP)
    except (subprocess.TimeoutExpired, KeyboardInterrupt, SystemExit):  # a second signal kills the child at once
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
