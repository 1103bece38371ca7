"""Artifacts on disk: readable addresses, a record written last, reuse, refusal on drift, a lock.

`runs/<run>/round-02/scores/` holds Parquet parts, `skipped/` and `record.json`. No record: not finished. Everything
goes through `pyarrow.fs`, so a run's folder may be a path or a URI such as `s3://bucket/run`. Left out: how a lock is
held (`lock.py`); what a stage does, and in which order (`round.py`).
"""

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs as pafs

from pipeline.config import UserError
from pipeline.lock import Claim, hold

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
class Ledger:
    """A run's folder.

    Attributes:
        root: a path or a URI.
    """

    root: str
    fs: pafs.FileSystem = field(init=False, repr=False, compare=False)
    base: str = field(init=False, repr=False, compare=False)
    claim: Claim | None = field(init=False, repr=False, compare=False, default=None)  # while the run is held

    def __post_init__(self) -> None:
        root = self.root if "://" in self.root else os.path.abspath(self.root)
        try:
            fs, base = open_place(root)
        except Exception as error:  # an unknown scheme, no credentials, …: pyarrow has no common class for them
            raise UserError(f"run is {self.root!r}, which cannot be opened: {error}") from None
        if isinstance(fs, pafs.LocalFileSystem) and os.path.isfile(base):
            raise UserError(f"run is {self.root!r}, a file: it should be a run's folder")
        object.__setattr__(self, "root", root.rstrip("/"))
        object.__setattr__(self, "fs", fs)
        object.__setattr__(self, "base", base)

    # Files

    def path(self, address: str) -> str:
        """The address as this ledger's file system names it."""
        return f"{self.base}/{address}"

    def read(self, address: str) -> str | None:
        """A text file's contents, or None where there is none.

        Raises:
            UserError: it cannot be read.
        """
        try:
            with self.fs.open_input_stream(self.path(address)) as stream:
                return stream.read().decode()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{self.root}/{address} cannot be read: {error}") from error

    def write(self, address: str, text: str) -> None:
        """Write a text file: whole or not at all.

        Raises:
            UserError: it cannot be written there.
        """
        if self.claim:
            self.claim.check()
        target = self.path(address)
        try:
            self.fs.create_dir(target.rsplit("/", 1)[0])
            with replacing(self.fs, target) as stream:
                stream.write(text.encode())
        except OSError as error:
            raise UserError(f"{self.root}/{address} cannot be written: {error}") from error

    def _delete(self, how: Callable[[str], None], address: str) -> None:
        try:
            how(self.path(address))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise UserError(f"{self.root}/{address} cannot be removed: {error}") from error

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

    def clear(self, address: str) -> None:
        """Remove what an unfinished or stale making left."""
        self.check_held()
        if self.fs.get_file_info(self.path(address)).type == pafs.FileType.NotFound:
            return
        # The record goes first: cut off half way, what is left must not look finished.
        self._delete(self.fs.delete_file, f"{address}/{RECORD}")
        self._delete(self.fs.delete_dir, address)

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
        self._delete(self.fs.delete_file, f"{address}/{BEGUN}")
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
        self._delete(self.fs.delete_file, REMAKE)

    # The lock

    @contextlib.contextmanager
    def lock(self, say: Callable[[str], None]) -> Iterator[None]:
        """Hold the run: one driver at a time. Meanwhile `write` and `finish` refuse if another has taken it.

        Args:
            say: is told of a dead owner from whom the lock is taken over.

        Raises:
            InUse: a living driver holds it.
        """
        with hold(self, say) as claim:
            object.__setattr__(self, "claim", claim)
            try:
                yield
            finally:
                object.__setattr__(self, "claim", None)

    def check_held(self) -> None:
        """Before anything is removed or finished: raises UserError if another driver has taken the run."""
        if self.claim:
            self.claim.check(thoroughly=True)


def now() -> str:
    """The time as records have it: UTC, ISO 8601, seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def differences(was: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two recipes, a line each: `settings.pairs.threshold: was 3, now 4`."""
    if isinstance(was, dict) and isinstance(now, dict):
        return [
            line
            for key in [*was, *(k for k in now if k not in was)]
            for line in differences(was.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if was == now else [f"{name}: was {_short(was)}, now {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:28]} … {text[-28:]}"


@contextlib.contextmanager
def replacing(fs: pafs.FileSystem, path: str) -> Iterator[Any]:
    """A stream to a file that takes the place of `path` when the block has ended well: whole, or not at all."""
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with fs.open_output_stream(temporary) as stream:
            yield stream
        fs.move(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            fs.delete_file(temporary)  # half a file on a full disk is room that others need
        raise


def open_place(place: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or a URI, and the place's name there, without a slash at its end."""
    fs, path = pafs.FileSystem.from_uri(place if "://" in place else os.path.abspath(place))
    return fs, path.rstrip("/")


def remove(place: str) -> None:
    """Remove a folder, if it is there."""
    fs, path = open_place(place)
    with contextlib.suppress(FileNotFoundError):
        fs.delete_dir(path)
