"""Keeps a run's artifacts at readable addresses, each with a record that is written last.

For example `runs/<run>/round-02/scores/` holds Parquet parts, `skipped/` and `record.json`. An artifact without a
record is not finished. `execution/executor.py` decides whether an artifact is reused, or refused because its recipe
changed. The lock is in `lock.py`.
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

RECORD = "record.json"  # in the folder of a finished artifact
BEGUN = "begun.json"  # in the folder of an artifact that is being made
REMAKE = "remake.json"  # in the run folder, while a remake is in progress


@dataclass(frozen=True)
class Artifact:
    """Something that a stage made, such as a table or a policy.

    Attributes:
        root: the run folder.
        address: its folder, relative to the run folder.
        record: how it was made, and what it contains.
    """

    root: str
    address: str
    record: dict[str, Any]

    @property
    def build(self) -> str:
        """The id of this build. Two builds of the same recipe have two ids."""
        return self.record["build"]

    @property
    def uri(self) -> str:
        """The artifact's folder, as a path or a URI."""
        return f"{self.root}/{self.address}"


@dataclass(frozen=True)
class Ledger(RunFiles):
    """A run folder: its artifacts, and the lock that lets one driver write.

    Attributes:
        root: the run folder, an absolute path or a URI.
        claim: the lock while this process holds it, else None.
    """

    claim: Claim | None = field(init=False, repr=False, compare=False, default=None)

    def write(self, address: str, content: str | bytes) -> None:
        """Write a file atomically. Text is written as UTF-8.

        Raises:
            UserError: the file cannot be written, or another driver has taken the run over.
        """
        if self.claim:
            self.claim.check()
        super().write(address, content)

    # Artifacts

    def find(self, address: str) -> Artifact | None:
        """The finished artifact at an address, or None. Raises UserError if its record is damaged."""
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
        suffix = f"/{RECORD}"
        return [name.removesuffix(suffix) for name in self.files() if name.endswith(suffix)]

    def artifacts(self) -> list[Artifact]:
        """All finished artifacts, sorted by address. Raises UserError if a record is damaged."""
        return [artifact for address in self.addresses() if (artifact := self.find(address))]

    def clear(self, address: str) -> None:
        """Remove an artifact that is unfinished or stale."""
        self.check_held()
        if self.fs.get_file_info(self.path(address)).type == pafs.FileType.NotFound:
            return
        # The record is deleted first: if this is interrupted, the rest must not look finished.
        self.delete_file(f"{address}/{RECORD}")
        self.delete_folder(address)

    def begin(self, address: str, begun: dict[str, Any]) -> None:
        """Note that an artifact is being made, so that a later driver can resume it.

        Args:
            address: the artifact's address.
            begun: its build id and recipe, as `build` and `recipe`.
        """
        self.write(f"{address}/{BEGUN}", json.dumps(begun))

    def begun(self, address: str) -> dict[str, Any] | None:
        """Build id and recipe of the unfinished artifact at an address. None if there is none, or it is finished."""
        text = self.read(f"{address}/{BEGUN}")
        if text is None or self.find(address):
            return None
        try:
            begun = json.loads(text)
            return {"build": begun["build"], "recipe": begun["recipe"]}
        except (ValueError, KeyError, TypeError):
            return None  # damaged: the artifact is made from the beginning

    def has_partial_files(self, address: str) -> bool:
        """Whether an unfinished artifact has any files besides the note that it was begun."""
        folder = pafs.FileSelector(self.path(address), recursive=True, allow_not_found=True)
        files = (info for info in self.fs.get_file_info(folder) if info.type == pafs.FileType.File)
        return any(info.base_name != BEGUN and info.extension != "tmp" for info in files)

    def finish(self, address: str, record: dict[str, Any]) -> Artifact:
        """Write the record. From now on the artifact is finished."""
        self.check_held()
        self.write(f"{address}/{RECORD}", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        self.delete_file(f"{address}/{BEGUN}")
        return Artifact(self.root, address, record)

    # A remake that the user requested

    def build_to_replace(self, address: str) -> str | None:
        """The build that a remake in progress replaces at an address, or None."""
        return json.loads(self.read(REMAKE) or "{}").get(address)

    @contextlib.contextmanager
    def remaking(self, addresses: Iterable[str]) -> Iterator[None]:
        """Note which builds a remake replaces, while the block runs.

        After an error the note stays, so that the same command, given again, remakes each build only once.
        """
        if builds := {address: artifact.build for address in addresses if (artifact := self.find(address))}:
            self.write(REMAKE, json.dumps({a: self.build_to_replace(a) or build for a, build in builds.items()}))
        yield
        self.delete_file(REMAKE)

    # The lock

    @contextlib.contextmanager
    def lock(self, warn: Callable[[str], None]) -> Iterator[None]:
        """Hold the run while the block runs. `write` and `finish` then refuse if another driver has taken it over.

        Args:
            warn: receives a message when another machine's lock is watched, or a dead owner's lock is taken over.

        Raises:
            InUse: a living driver holds the run.
        """
        with hold_lock(self, warn) as claim:
            object.__setattr__(self, "claim", claim)
            try:
                yield
            finally:
                object.__setattr__(self, "claim", None)

    def check_held(self) -> None:
        """Raise UserError if another driver has taken the run over. Call it before removing or finishing anything."""
        if self.claim:
            self.claim.check(reread=True)


def utc_now() -> str:
    """The current time as records show it: UTC, ISO 8601, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
