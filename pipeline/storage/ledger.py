"""Artifacts on disk: readable addresses, a record written last, reuse, refusal on drift, a lock.

`runs/<run>/round-02/scores/` holds Parquet parts, `skipped/` and `record.json`. No record: not finished. Everything
goes through `pyarrow.fs`, so a run's folder may be a path or a URI such as `s3://bucket/run`. Left out: how a lock is
held (`lock.py`); what a stage does, and in which order (`round.py`).
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs as pafs

from pipeline.config import UserError
from pipeline.storage.files import RunFiles
from pipeline.storage.lock import Claim, hold_lock

RECORD = "record.json"
BEGUN = "begun.json"  # while an artifact is being made
REMAKE = "remake.json"


@dataclass(frozen=True)
class Artifact:
    """Something made: its address within the run, and its record."""

    root: str
    address: str
    record: dict[str, Any]

    @property
    def build(self) -> str:
        """The id of this making of it: two makings by the same recipe have two ids."""
        return self.record["build"]

    @property
    def uri(self) -> str:
        return f"{self.root}/{self.address}"


@dataclass(frozen=True)
class Ledger(RunFiles):
    """A run folder: its artifacts, each at its address, and the lock that lets one driver write.

    Attributes:
        root: a path or a URI.
        claim: the lock, while this process holds it.
    """

    claim: Claim | None = field(init=False, repr=False, compare=False, default=None)

    def write(self, address: str, content: str | bytes) -> None:
        """Write a file: whole, or not at all.

        Raises:
            UserError: the file cannot be written, or another driver has taken the run.
        """
        if self.claim:
            self.claim.check()
        super().write(address, content)

    # Artifacts

    def find(self, address: str) -> Artifact | None:
        """The finished artifact at an address, or None."""
        try:
            text = self.read(f"{address}/{RECORD}")
            if text is None:
                return None
            record = json.loads(text)
            if not isinstance(record["build"], str) or not isinstance(record["recipe"], dict):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{self.root}/{address}/{RECORD} is damaged: remove the folder {address}/ to have it made again"
            ) from None
        return Artifact(self.root, address, record)

    def addresses(self) -> list[str]:
        """The addresses of all finished artifacts, sorted."""
        ending = f"/{RECORD}"
        return [name.removesuffix(ending) for name in self.files() if name.endswith(ending)]

    def artifacts(self) -> list[Artifact]:
        """All finished artifacts, in the order of their addresses. Raises UserError if a record is damaged."""
        return [artifact for address in self.addresses() if (artifact := self.find(address))]

    def clear(self, address: str) -> None:
        """Remove what an unfinished or stale making left."""
        self.check_held()
        if self.fs.get_file_info(self.path(address)).type == pafs.FileType.NotFound:
            return
        # The record goes first: cut off half way, what is left must not look finished.
        self.delete_file(f"{address}/{RECORD}")
        self.delete_folder(address)

    def begin(self, address: str, begun: dict[str, Any]) -> None:
        """Note build and recipe of an artifact that is being made, for whoever has to go on with it."""
        self.write(f"{address}/{BEGUN}", json.dumps(begun))

    def begun(self, address: str) -> dict[str, Any] | None:
        """Build and recipe of an unfinished artifact at an address; None if there is none, or it is finished."""
        text = self.read(f"{address}/{BEGUN}")
        if text is None or self.find(address):
            return None
        try:
            found = json.loads(text)
            return {"build": found["build"], "recipe": found["recipe"]}
        except (ValueError, KeyError, TypeError):
            return None  # damaged: it is made from the beginning

    def has_more(self, address: str) -> bool:
        """Whether an unfinished artifact has anything but the note that it was begun."""
        folder = pafs.FileSelector(self.path(address), recursive=True, allow_not_found=True)
        files = (info for info in self.fs.get_file_info(folder) if info.type == pafs.FileType.File)
        return any(info.base_name != BEGUN and info.extension != "tmp" for info in files)

    def finish(self, address: str, record: dict[str, Any]) -> Artifact:
        """Write the record: from now on the artifact is there."""
        self.check_held()
        self.write(f"{address}/{RECORD}", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        self.delete_file(f"{address}/{BEGUN}")
        return Artifact(self.root, address, record)

    # A remake that was asked for

    def to_remake(self, address: str) -> str | None:
        """The build that is still to be remade at this address, if a remake of it has begun."""
        return json.loads(self.read(REMAKE) or "{}").get(address)

    @contextlib.contextmanager
    def remaking(self, addresses: Iterable[str]) -> Iterator[None]:
        """Note which builds a remake is to replace, until the run that asked for it is through."""
        if builds := {address: found.build for address in addresses if (found := self.find(address))}:
            self.write(REMAKE, json.dumps({a: self.to_remake(a) or build for a, build in builds.items()}))
        yield
        self.delete_file(REMAKE)

    # The lock

    @contextlib.contextmanager
    def lock(self, say: Callable[[str], None]) -> Iterator[None]:
        """Hold the run: one driver at a time. Meanwhile `write` and `finish` refuse if another has taken it.

        Args:
            say: is told of a dead owner from whom the lock is taken over.

        Raises:
            InUse: a living driver holds it.
        """
        with hold_lock(self, say) as claim:
            object.__setattr__(self, "claim", claim)
            try:
                yield
            finally:
                object.__setattr__(self, "claim", None)

    def check_held(self) -> None:
        """Before anything is removed or finished: raises UserError if another driver has taken the run."""
        if self.claim:
            self.claim.check(thoroughly=True)


def utc_now() -> str:
    """The time as records have it: UTC, ISO 8601, seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
