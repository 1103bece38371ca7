"""One driver at a time: a claim on a run's folder, renewed for as long as its owner lives.

Each driver writes a file of its own, `lock-TOKEN.json`, and holds the run when a listing made after that shows no
other. An object store, where no file can be made exclusively, needs no more than that. On the machine where a claim
was made, its process tells whether it is alive. From elsewhere only its beats tell, and they are watched on the
watcher's own clock: two machines' clocks need not agree. Left out: what is done under the lock (`ledger.py`).
"""

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from pipeline.config import UserError
from pipeline.storage.files import RunFiles

BEAT = 10.0  # seconds between two beats
STALE = 60.0  # seconds without one, after which an owner on another machine counts as gone
_SETTLE = 10.0  # seconds that two who came at the same moment have to find out which of them goes on
_NAME = re.compile(r"lock-(\w+)\.json")
_FIELDS = ("token", "pid", "started", "host", "machine", "since", "instead", "beat")


class InUse(UserError):
    """Another driver holds the run."""

    status = 75  # as sysexits.h has it: nothing is wrong, try again later


class Claim:
    """A driver's hold on a run.

    Attributes:
        token: the name of this claim.
    """

    def __init__(self, files: RunFiles, instead: list[str]):
        self.files, self.token = files, uuid.uuid4().hex
        self.content: dict[str, Any] = {
            "token": self.token,
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "host": socket.gethostname(),
            "machine": _machine(),
            "since": None,  # until it holds the run
            "instead": instead,  # claims of owners that are gone
            "beat": 0,
        }
        self.lost: str | None = None
        self.seen = _now()

    def write(self, **changed: Any) -> None:
        self.content |= changed
        # Always of one length: of an object store, size and contents are two questions, with a write between them.
        self.files.write(_file(self.token), json.dumps(self.content).ljust(1000))

    def withdraw(self) -> None:
        for token in (self.token, *self.content["instead"]):
            _remove(self.files, token)

    def look(self) -> None:
        """Look whether the run is still held."""
        claims = _read(self.files)
        taker = next((claim for claim in claims.values() if self.token in claim["instead"]), None)
        if taker or self.token not in claims:
            self.lost = _who(taker) if taker else "somebody who removed its lock"
        else:
            self.seen = _now()

    def beat(self) -> None:
        """Give a sign of life. A claim that is lost is never written again."""
        self.look()
        if self.lost is None:
            self.write(beat=self.content["beat"] + 1)

    def check(self, thoroughly: bool = False) -> None:
        """Raise UserError if another driver has taken the run.

        Args:
            thoroughly: ask the storage, whatever the last beat has found.
        """
        # The beats of a machine that slept came to nothing, and its other threads may wake before they do.
        if self.lost is None and (thoroughly or _now() - self.seen > 2 * BEAT):
            self.look()
        if self.lost is not None:
            raise UserError(
                f"{self.files.root} was taken over by {self.lost}: this driver had given no sign of life for some "
                "time. It stops and finishes nothing more; what it had finished is there for the other"
            )


@contextmanager
def hold_lock(
    files: RunFiles, say: Callable[[str], None], *, beat: float = BEAT, stale: float = STALE
) -> Iterator[Claim]:
    """Hold a run's folder while the block runs.

    Args:
        say: is told when a lock is watched, and when that of a dead owner is taken over.
        beat, stale: seconds between two beats, and without one until an owner elsewhere counts as gone.

    Raises:
        InUse: a living driver holds it.
        UserError: a claim cannot be read.
    """
    instead = [token for token, claim in _read(files).items() if _is_gone(files, claim, say, stale)]
    mine = Claim(files, instead)
    stop = threading.Event()
    try:
        mine.write()  # within: a Ctrl-C may come when the claim is there already
        _settle(mine)
        mine.write(since=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        for token in instead:
            _remove(files, token)
        thread = threading.Thread(target=_keep_beating, args=(mine, beat, stop), name="lock", daemon=True)
        thread.start()
        try:
            yield mine
        finally:
            stop.set()
            thread.join()
    finally:
        mine.withdraw()


def _settle(mine: Claim) -> None:
    """Until no other claim is there. Of two that came at the same moment, the lower token goes on."""
    deadline = time.monotonic() + _SETTLE
    while rivals := {t: c for t, c in _read(mine.files).items() if t not in (mine.token, *mine.content["instead"])}:
        first = min(rivals)
        holds = next((claim for claim in rivals.values() if claim["since"]), None)
        if holds or first < mine.token or time.monotonic() > deadline:
            raise InUse(f"{mine.files.root} was taken at this moment by {_who(holds or rivals[first])}: wait for it")
        time.sleep(0.05)


def _keep_beating(mine: Claim, beat: float, stop: threading.Event) -> None:
    while not stop.wait(beat) and mine.lost is None:
        with suppress(Exception):  # storage that is away for a moment; if it stays away, somebody else may take over
            mine.beat()


def _is_gone(files: RunFiles, claim: dict[str, Any], say: Callable[[str], None], stale: float) -> bool:
    """Whether a claim's owner is dead; False if it gave the run back meanwhile. Raises InUse if it lives."""
    if claim["machine"] == _machine():
        lives = claim["started"] is not None and _started(claim["pid"]) == claim["started"]
    else:
        say(f"{files.root} is claimed by {_who(claim)}: watching for {stale:.0f} s whether that driver lives")
        now = _watch(files, claim, stale)
        if now is None:
            return False
        lives = now != claim
    if lives:
        raise InUse(f"{files.root} is in use by {_who(claim)}: wait for it, or choose another run=")
    say(f"took over the lock of a driver that is gone ({_who(claim)})")
    return True


def _watch(files: RunFiles, claim: dict[str, Any], stale: float) -> dict[str, Any] | None:
    """A claim as soon as it is another than it was, or as it still is after so many seconds; None once it is gone."""
    deadline = time.monotonic() + stale
    now: dict[str, Any] | None = claim
    while now == claim and time.monotonic() < deadline:
        time.sleep(min(2.0, stale / 10))
        now = _read(files).get(claim["token"])
    return now


def _read(files: RunFiles) -> dict[str, dict[str, Any]]:
    """The claims on a run, by token, without those that another has taken the place of."""
    listed = files.fs.get_file_info(pafs.FileSelector(files.base, allow_not_found=True))
    names = [match for info in listed if (match := _NAME.fullmatch(info.base_name))]
    claims = {match[1]: claim for match in names if (claim := _claim(files, match[0]))}
    replaced = {token for claim in claims.values() if claim["since"] for token in claim["instead"]}
    return {token: claim for token, claim in claims.items() if token not in replaced}


def _claim(files: RunFiles, name: str) -> dict[str, Any] | None:
    """What a claim says; None if it is gone. An object that is written while it is read may fail to be read once."""
    for tries_left in (2, 1, 0):
        try:
            if (text := files.read(name)) is None:
                return None
            claim = json.loads(text)
            if any(field not in claim for field in _FIELDS):
                raise ValueError
            return claim
        except (ValueError, TypeError, OSError) as error:
            if not tries_left:
                why = "cannot be read" if isinstance(error, OSError) else "is damaged"
                raise UserError(f"{files.root}/{name} {why}: if no driver is at work there, remove it") from None
            time.sleep(0.1)
    raise AssertionError("the last try returns or raises")


def _remove(files: RunFiles, token: str) -> None:
    path = files.path(_file(token))
    try:
        files.fs.delete_file(path)
    except OSError:  # it is gone; or it was never there, in a folder where nothing can be written
        if files.fs.get_file_info(path).type != pafs.FileType.NotFound:
            raise


def _file(token: str) -> str:
    return f"lock-{token}.json"


def _who(claim: dict[str, Any]) -> str:
    since = f", since {claim['since']}" if claim["since"] else ""
    return f"process {claim['pid']} on {claim['host']}{since}"


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # counts on while a machine sleeps; no clock that is set


def _machine() -> str:
    """Where a pid means something: this boot of this machine, and this container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _started(pid: int) -> int | None:
    """When a process began, in ticks since the boot: no other has the same pid and this, and no clock that is set
    changes it. None: there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
