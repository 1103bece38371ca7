"""One copy a node of a model that is elsewhere: every engine, scorer and rank of this user reads the same.

A copy is named by its URI and by what lies there, so a model that was changed is copied anew. A process holds the
copies it reads; one that nobody holds, and nobody has asked for in a day, goes when another is made. Left out: what
else a model's name may mean (`models.py`).
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.fs as pafs

from pipeline.config import UserError
from pipeline.storage.ledger import BEGUN, RECORD

_UNUSED = 24 * 3600.0  # seconds until a copy that nobody holds may go: the next stage or round may want it again
_MANY = 8  # files that are fetched at a time
_PART = "part-"  # of a folder that is no copy yet, or no longer
_held: dict[Path, int] = {}  # copies that this process reads, each an open folder under a lock that ends with us


def local_copy(uri: str, fs: pafs.FileSystem, path: str) -> str:
    """The folder on this node that has what a folder elsewhere has.

    Args:
        path: of the folder elsewhere, as `fs` names it.

    Raises:
        UserError: the place for copies belongs to somebody else.
        OSError: the folder cannot be read, or the copy cannot be written.
    """
    place = _place()
    found = place / _name(uri, fs, path)
    if not _hold(found):
        with _alone(place):  # the others of this node wait: they will want the same
            if not _hold(found):
                _tidy(place)
                _make(found, fs, path)
    return str(found)


def release_copies() -> None:
    """This process reads no copy any more. What it fetched before it must fetch again."""
    while _held:
        os.close(_held.popitem()[1])


def _place() -> Path:
    ours = Path(tempfile.gettempdir(), f"rondo-{os.getuid()}")
    with suppress(FileExistsError):
        ours.mkdir(mode=0o700)
    found = ours.lstat()
    # Who could write there could give us other weights.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UserError(
            f"{ours} is where models are kept that were fetched, and should be a folder that only this user can open "
            "(mode 0700): remove it, or set TMPDIR to another place"
        )
    place = ours / "models"
    place.mkdir(mode=0o700, exist_ok=True)
    return place


def _files(fs: pafs.FileSystem, path: str) -> list[pafs.FileInfo]:
    """A model's files. What a run has beside a policy is none, and comes and goes: notes, a folder of checkpoints."""
    found = fs.get_file_info(pafs.FileSelector(path))
    return [info for info in found if info.is_file and info.base_name not in (BEGUN, RECORD)]


def _name(uri: str, fs: pafs.FileSystem, path: str) -> str:
    there = sorted((info.base_name, info.size, info.mtime_ns) for info in _files(fs, path))
    return hashlib.sha256(json.dumps([uri, there]).encode()).hexdigest()


def _make(found: Path, fs: pafs.FileSystem, path: str) -> None:
    """Beside it, then moved: what has the name of a copy is whole."""
    part = Path(tempfile.mkdtemp(prefix=_PART, dir=found.parent))

    def fetch(info: pafs.FileInfo) -> None:
        pafs.copy_files(info.path, str(part / info.base_name), source_filesystem=fs)

    try:
        with ThreadPoolExecutor(_MANY) as pool:
            list(pool.map(fetch, _files(fs, path)))
        part.rename(found)
    except OSError as error:
        # Where a file system has locks for one node only and several share the folder, another may have been first.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _hold(found)


def _hold(found: Path) -> bool:
    """Keep a copy from being removed for as long as this process reads it. False: there is none."""
    try:
        if found not in _held:
            lock = os.open(found, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_SH)
            _held[found] = lock
        # Before the lock was ours, what we opened may have been removed.
        if os.path.samestat(os.fstat(_held[found]), os.stat(found)):
            os.utime(found)  # its day counts from now
            return True
    except FileNotFoundError:
        pass
    if found in _held:
        os.close(_held.pop(found))
    return False


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    lock = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _tidy(place: Path) -> None:
    """Remove what nobody holds and nobody has asked for in a day; so too what a killed process had begun to copy."""
    for old in list(place.iterdir()):
        lock = os.open(old, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - old.stat().st_mtime > _UNUSED:
                gone = tempfile.mkdtemp(prefix=_PART, dir=place)
                old.rename(gone)  # first: whoever comes meanwhile finds all of it, or nothing
                shutil.rmtree(gone, ignore_errors=True)
        except BlockingIOError:
            pass  # somebody reads it
        finally:
            os.close(lock)
