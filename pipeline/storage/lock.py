"""Lets one driver at a time write to a run folder, by a lock that the driver renews for as long as it lives.

Each driver writes its own file, `lock-TOKEN.json`, called its claim. It holds the run if a listing made after that
write shows no other claim. This needs no exclusive creation of files, so it also works on an object store. On the
machine where a claim was written, its process id tells whether the owner lives. On another machine only the claim's
heartbeats tell. The waiting driver times them with its own clock, so the clocks of two machines need not agree.
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

BEAT = 10.0  # seconds between two heartbeats
STALE = 60.0  # seconds without a heartbeat after which an owner on another machine counts as gone
_RIVALS_TIMEOUT = 10.0  # seconds in which drivers that start at the same moment find out who holds the run
_FILE_NAME = re.compile(r"lock-(\w+)\.json")
_FIELDS = ("token", "pid", "started", "host", "machine", "since", "instead", "beat")
_BYTES = 1000  # length of a lock file

ClaimData = dict[str, Any]  # what a lock file holds


class InUse(UserError):
    """A living driver holds the run.

    Attributes:
        status: 75, EX_TEMPFAIL of sysexits.h: nothing is wrong, try again later.
    """

    status = 75


class Claim:
    """A driver's claim on a run: its lock file, and whether it still holds the run.

    Attributes:
        token: names this claim and its file.
        content: what the lock file holds.
        lost: describes the driver that took the run over; None while this claim holds it.
        confirmed: when the storage last showed that this claim holds the run, by `_boot_clock`.
    """

    def __init__(self, files: RunFiles, gone_tokens: list[str]):
        """Prepare a claim; `write` makes it visible.

        Args:
            files: the run folder.
            gone_tokens: claims of owners that are gone, which this one replaces.
        """
        self.files, self.token = files, uuid.uuid4().hex
        self.content: ClaimData = {
            "token": self.token,
            "pid": os.getpid(),
            "started": _process_start(os.getpid()),
            "host": socket.gethostname(),
            "machine": _machine_id(),
            "since": None,  # a time once the claim holds the run
            "instead": gone_tokens,
            "beat": 0,
        }
        self.lost: str | None = None
        self.confirmed = _boot_clock()

    def write(self, **changed: Any) -> None:
        """Write the lock file, with some fields changed."""
        self.content |= changed
        # Always of equal length: an object store returns size and content in two requests, with a write in between.
        self.files.write(_file_name(self.token), json.dumps(self.content).ljust(_BYTES))

    def withdraw(self) -> None:
        """Remove the lock file, and those that it replaced."""
        for token in (self.token, *self.content["instead"]):
            _remove_claim(self.files, token)

    def refresh(self) -> None:
        """Read the storage to see whether this claim still holds the run."""
        claims = _read_claims(self.files)
        taker = next((claim for claim in claims.values() if self.token in claim["instead"]), None)
        if taker or self.token not in claims:
            self.lost = _describe_owner(taker) if taker else "somebody who removed its lock"
        else:
            self.confirmed = _boot_clock()

    def beat(self) -> None:
        """Send a heartbeat. A lost claim is never written again."""
        self.refresh()
        if self.lost is None:
            self.write(beat=self.content["beat"] + 1)

    def check(self, reread: bool = False) -> None:
        """Raise UserError if another driver has taken the run over.

        Args:
            reread: read the storage even if a recent heartbeat confirmed the claim.
        """
        # Without recent heartbeats, as after a machine's sleep, this thread may run before the heartbeat thread does.
        if self.lost is None and (reread or _boot_clock() - self.confirmed > 2 * BEAT):
            self.refresh()
        if self.lost is not None:
            raise UserError(
                f"{self.files.root} was taken over by {self.lost}, because this driver sent no heartbeat for some "
                "time. This driver stops now; the other one uses what it has finished"
            )


@contextmanager
def hold_lock(
    files: RunFiles, warn: Callable[[str], None], *, beat: float = BEAT, stale: float = STALE
) -> Iterator[Claim]:
    """Hold a run folder while the block runs.

    Args:
        files: the run folder.
        warn: receives a message when another machine's lock is watched, and when a dead owner's lock is taken over.
        beat: seconds between two heartbeats.
        stale: seconds without a heartbeat after which an owner on another machine counts as gone.

    Yields:
        the claim that holds the run.

    Raises:
        InUse: a living driver holds the run.
        UserError: a lock file cannot be read.
    """
    gone_tokens = [token for token, claim in _read_claims(files).items() if _owner_is_gone(files, claim, warn, stale)]
    own = Claim(files, gone_tokens)
    stop = threading.Event()
    try:
        own.write()  # inside `try`: a Ctrl-C may come as soon as the file exists
        _wait_for_rivals(own)
        own.write(since=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        for token in gone_tokens:
            _remove_claim(files, token)
        thread = threading.Thread(target=_keep_beating, args=(own, beat, stop), name="lock", daemon=True)
        thread.start()
        try:
            yield own
        finally:
            stop.set()
            thread.join()
    finally:
        own.withdraw()


def _wait_for_rivals(own: Claim) -> None:
    """Wait until there is no other claim. Of drivers that start at the same moment, the one with the lowest token wins.

    Raises:
        InUse: another driver wins, or has won.
    """
    deadline = time.monotonic() + _RIVALS_TIMEOUT
    while True:
        claims = _read_claims(own.files)
        rivals = {t: claim for t, claim in claims.items() if t not in (own.token, *own.content["instead"])}
        if not rivals:
            return
        lowest = min(rivals)
        holder = next((claim for claim in rivals.values() if claim["since"]), None)
        if holder or lowest < own.token or time.monotonic() > deadline:
            winner = _describe_owner(holder or rivals[lowest])
            raise InUse(f"{own.files.root} was just taken by {winner}: wait until it is free")
        time.sleep(0.05)


def _keep_beating(own: Claim, beat: float, stop: threading.Event) -> None:
    while not stop.wait(beat) and own.lost is None:
        # The storage may be unreachable for a moment. If it stays so, another driver may take the run over.
        with suppress(Exception):
            own.beat()


def _owner_is_gone(files: RunFiles, claim: ClaimData, warn: Callable[[str], None], stale: float) -> bool:
    """Find out whether the owner of a claim is dead.

    Returns:
        True if it is dead, False if it removed its claim meanwhile.

    Raises:
        InUse: the owner is alive.
    """
    if claim["machine"] == _machine_id():
        is_alive = claim["started"] is not None and _process_start(claim["pid"]) == claim["started"]
    else:
        warn(f"{files.root} is claimed by {_describe_owner(claim)}: watching for {stale:.0f} s whether it is alive")
        latest = _wait_for_change(files, claim, stale)
        if latest is None:
            return False
        is_alive = latest != claim
    if is_alive:
        raise InUse(f"{files.root} is in use by {_describe_owner(claim)}: wait for it, or choose another run=")
    warn(f"took over the lock of a driver that is gone ({_describe_owner(claim)})")
    return True


def _wait_for_change(files: RunFiles, claim: ClaimData, seconds: float) -> ClaimData | None:
    """Wait at most `seconds` until a claim changes. Returns its latest content, or None if it was removed."""
    deadline = time.monotonic() + seconds
    latest: ClaimData | None = claim
    while latest == claim and time.monotonic() < deadline:
        time.sleep(min(2.0, seconds / 10))
        latest = _read_claims(files).get(claim["token"])
    return latest


def _read_claims(files: RunFiles) -> dict[str, ClaimData]:
    """The claims on a run by token, without those that the holder of the run has replaced."""
    listing = files.fs.get_file_info(pafs.FileSelector(files.base, allow_not_found=True))
    matches = [match for info in listing if (match := _FILE_NAME.fullmatch(info.base_name))]
    claims = {match[1]: claim for match in matches if (claim := _read_claim(files, match[0]))}
    replaced = {token for claim in claims.values() if claim["since"] for token in claim["instead"]}
    return {token: claim for token, claim in claims.items() if token not in replaced}


def _read_claim(files: RunFiles, name: str) -> ClaimData | None:
    """Read a lock file. Returns None if it is gone.

    It tries three times: reading an object while another process writes it may fail once.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    for tries_left in (2, 1, 0):
        try:
            if (text := files.read(name)) is None:
                return None
            claim = json.loads(text)
            if any(field not in claim for field in _FIELDS):
                raise ValueError
            return claim
        except (ValueError, TypeError) as error:
            if not tries_left:
                problem = "cannot be read" if isinstance(error, UserError) else "is damaged"
                raise UserError(f"{files.root}/{name} {problem}: if no driver works on this run, remove it") from None
            time.sleep(0.1)
    raise AssertionError("the last try returns or raises")


def _remove_claim(files: RunFiles, token: str) -> None:
    path = files.path(_file_name(token))
    try:
        files.fs.delete_file(path)
    except OSError:  # it is gone, or was never there because nothing can be written to this folder
        if files.fs.get_file_info(path).type != pafs.FileType.NotFound:
            raise


def _file_name(token: str) -> str:
    return f"lock-{token}.json"


def _describe_owner(claim: ClaimData) -> str:
    since = f", since {claim['since']}" if claim["since"] else ""
    return f"process {claim['pid']} on {claim['host']}{since}"


def _boot_clock() -> float:
    """Seconds since the boot. This clock also runs while the machine sleeps, and nobody sets it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _machine_id() -> str:
    """Names the scope of process ids: this boot of this machine, and this container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _process_start(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot. None if there is no such process.

    No two processes share both a pid and this number, and setting a clock does not change it.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
