"""Shows the progress of a run: a bar with rate and time left while a stage works, one line when it is finished.

On a terminal the bar is drawn in place. Elsewhere (a job's log, CI) a plain line is printed every 20 seconds. The same
goes to progress.json in the run folder, for `rondo view`.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from pipeline.config import UserError
from pipeline.config.messages import printable
from pipeline.inference.base import (
    ENGINE_LOADS,
    ENGINE_MS,
    ENGINE_START_MS,
    ENGINE_STARTS,
    MICRO_USD,
    REPLIES,
    REPLIES_CUT_OFF,
    SUMMARIES,
    TOKENS_CACHED,
    TOKENS_IN,
    TOKENS_OUT,
)
from pipeline.judging.tallies import ANSWERS, JUDGED, JUDGED_AGAIN, PAIRS, UNREAD, describe_unusable
from pipeline.storage.ledger import Ledger, utc_now
from pipeline.storage.parts import MERGED
from pipeline.storage.run_folder import PROGRESS
from pipeline.storage.schema import SPLITS

_SECONDS_BETWEEN_LINES = 20.0
_SECONDS_BETWEEN_FILES = 2.0  # between two versions of progress.json; each is also a sign that the driver lives
_SECONDS_BETWEEN_REMOTE_FILES = 15.0  # on an object store, where each one is a request
_FILE_WIDTH = 160  # characters; a file or a pipe has no width of its own, and rich would cut tables at 80


class StageProgress:
    """Counts the rows or steps of one stage, and shows them.

    Attributes:
        done: how many rows or steps are finished, including those of earlier attempts.
        total: how many rows or steps there will be; None: unknown.
    """

    def __init__(self, console: Console, bar: Progress | None, name: str, total: int | None, unit: str):
        self.name, self.total, self.unit = name, total, unit
        self.done = self.done_before = 0
        self.started = self.last_line = time.monotonic()
        self.console, self.bar = console, bar
        if bar is not None:
            self.task = bar.add_task(name, total=total, rate="starting")

    def advance(self, count: int = 1) -> None:
        """Add `count` finished rows or steps."""
        self.done += count
        self._show()

    def resume(self, done: int) -> None:
        """Begin with the `done` rows that an earlier attempt finished."""
        self.done = self.done_before = done

    def reach(self, done: int, total: int | None) -> None:
        """Set how many steps are finished, and of how many. A resumed training does not begin at 0."""
        if not self.done:
            self.done_before = done - 1
        self.done, self.total = done, total
        self._show()

    @property
    def rate(self) -> float:
        """Rows or steps per second, of this attempt."""
        return (self.done - self.done_before) / max(time.monotonic() - self.started, 1e-3)

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this rate; None: unknown."""
        return (self.total - self.done) / self.rate if self.total and self.rate > 0 else None

    def _show(self) -> None:
        if self.total and self.done > self.total:
            self.total = None  # the stage makes several rows from one, so their number is unknown
        now, rate = time.monotonic(), self.rate
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, total=self.total, rate=f"{rate:.1f} {self.unit}/s")
        elif now - self.last_line > _SECONDS_BETWEEN_LINES and self.done != self.total:
            self.last_line = now
            seconds = self.seconds_left
            left = "" if seconds is None else f"  {format_duration(seconds)} left"
            of = f" of {self.total:,}" if self.total else ""
            self.console.print(f"  {self.name}  {self.done:,}{of} {self.unit}  {rate:.1f}/s{left}", style="dim")


class Display:
    """Prints lines and bars on one console. Standard error is for errors only.

    Attributes:
        stages: the stages that are working now.
        finished: addresses of the artifacts that are made, or were reused.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console(highlight=False, soft_wrap=True)
        if console is None and not self.console.is_terminal:
            self.console.width = _FILE_WIDTH
        self.stages: list[StageProgress] = []
        self.finished: set[str] = set()

    @contextmanager
    def working(self, names: Sequence[str], total: int | None, unit: str = "rows") -> Iterator[list[StageProgress]]:
        """Show a bar for each name while the block runs."""
        bar = None
        if self.console.is_terminal:
            bar = Progress(
                TextColumn("[cyan]{task.description:<22}[/]"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
            )
        with bar or nullcontext():
            self.stages = [StageProgress(self.console, bar, name, total, unit) for name in names]
            try:
                yield self.stages
            finally:
                self.stages = []

    def line(self, name: str, text: str, style: str = "") -> None:
        """Print the line of a finished stage."""
        self.console.print(Text(f"{name:<22}", style="cyan") + Text(f" {printable(text)}", style=style))

    def say(self, text: str, style: str = "") -> None:
        self.console.print(printable(text), style=style, markup=False)

    def warn(self, text: str) -> None:
        self.console.print(Text("note: ", style="yellow") + Text(printable(text)))


@contextmanager
def publishing_progress(display: Display, ledger: Ledger, addresses: Sequence[str]) -> Iterator[None]:
    """Keep progress.json in the run folder up to date while the block runs. When it ends, the file says how.

    Args:
        display: knows what is finished and what is working.
        addresses: the artifacts that the run will ask for, in order.
    """
    seconds = _SECONDS_BETWEEN_REMOTE_FILES if "://" in ledger.root else _SECONDS_BETWEEN_FILES
    stop, started = threading.Event(), utc_now()

    def publish(state: str) -> None:
        stages = [_describe_stage(address, display) for address in dict.fromkeys(addresses)]
        if state == "finished":  # the others belong to rounds that were not needed
            stages = [stage for stage in stages if stage["state"] == "made"]
        content = {"state": state, "started": started, "updated": utc_now(), "stages": stages}
        with suppress(UserError):  # a disk that is full for a moment must not end the run: only the page suffers
            ledger.write(PROGRESS, json.dumps(content) + "\n")

    def keep_publishing() -> None:
        publish("running")
        while not stop.wait(seconds):
            publish("running")

    thread = threading.Thread(target=keep_publishing, name="progress", daemon=True)
    thread.start()
    state = "stopped"
    try:
        yield
        state = "finished"
    finally:
        stop.set()
        thread.join()
        publish(state)


def _describe_stage(address: str, display: Display) -> dict[str, Any]:
    """A stage in progress.json: `state` is `made`, `working` or `to come`."""
    working = next((stage for stage in list(display.stages) if stage.name == address), None)
    if working is None:
        return {"address": address, "state": "made" if address in display.finished else "to come"}
    counts = {"done": working.done, "total": working.total, "unit": working.unit}
    return {"address": address, "state": "working", **counts, "rate": working.rate, "left": working.seconds_left}


def summarize_record(record: dict[str, Any]) -> str:
    """Summarize a record in one line: `12,480 in  12,311 kept  169 skipped (all ties 169)  3m12s`."""
    parts = []
    if "kept" in record:
        parts += [f"{record['in']:>6,} in", f"{record['kept']:>6,} kept{_describe_splits(record)}"]
        if record["skipped"]:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in record["skipped"].items())
            parts.append(f"{sum(record['skipped'].values()):,} skipped ({reasons})")
    tally = record.get("tally", {})
    if tally.get(MERGED):
        parts.append(f"{tally[MERGED]:,} merged")
    if tally.get(PAIRS):
        parts.append(f"{tally[PAIRS]:,} pairs")
    if unusable := describe_unusable(tally):
        parts.append(unusable)
    if "training" in record:
        training = record["training"]
        parts.append(f"{training['steps']} steps  loss {training['final_loss']:.4f}")
        if training.get("eval_accuracy_last") is not None:
            parts.append(f"held-out reward accuracy {training['eval_accuracy_last']:.2f}")
    if SUMMARIES in tally and tally.get(REPLIES_CUT_OFF):
        parts.append(f"{tally[REPLIES_CUT_OFF]:,} of {tally[REPLIES]:,} cut off")
    if tally.get(UNREAD):
        parts.append(f"unread {tally[UNREAD] / tally[ANSWERS]:.1%}")
    if tally.get(JUDGED) and SUMMARIES not in tally:  # an evaluation's tokens are the policy's too
        times = tally[JUDGED] + tally.get(JUDGED_AGAIN, 0)
        per = [round(tally.get(name, 0) / times) for name in (TOKENS_IN, TOKENS_OUT)]
        hits = tally[TOKENS_CACHED] / tally[TOKENS_IN] if tally.get(TOKENS_IN) else 0.0
        parts.append(f"{per[0]:,}+{per[1]:,} tokens a summary, {hits:.0%} of the first cached")
    if tally.get(MICRO_USD):
        parts.append(f"${tally[MICRO_USD] / 1e6:,.2f}")
    if "seconds" in record:
        parts.append(format_duration(record["seconds"]))
        if start := record.get("start_seconds"):
            work = max(0.0, record["seconds"] - start)
            parts[-1] += f" (start {format_duration(start)}, work {format_duration(work)})"
    return "  ".join(parts)


def _describe_splits(record: dict[str, Any]) -> str:
    """How many of the kept rows are in each split: ` (104 train, 12 eval)`. Empty if all are in one."""
    counts = {split: record.get("tally", {}).get(split, 0) for split in SPLITS}
    parts = [f"{count:,} {split}" for split, count in counts.items() if count]
    return f" ({', '.join(parts)})" if len(parts) > 1 else ""


def start_seconds(record: Mapping[str, Any]) -> float | None:
    """Seconds of a stage before its engines or workers were ready; None if it had none, or the record does not say.

    Replicas start together, so it is the mean over the engines that were started or got other weights. It is 0 if the
    engines had stayed from an earlier stage.

    Args:
        record: its `seconds`, and its `tally` or `training`.
    """
    tally = record.get("tally", {})
    if "training" in record:
        return max(0.0, float(record["seconds"] - record["training"]["seconds"]))
    if not (starts := tally.get(ENGINE_STARTS, 0) + tally.get(ENGINE_LOADS, 0)):
        return 0.0 if ENGINE_MS in tally else None
    return float(min(record["seconds"], tally[ENGINE_START_MS] / 1000 / starts))


def format_duration(seconds: float) -> str:
    """Format seconds as `8.2s`, `3m12s` or `2h05m`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"
