"""Keeps one copy of a remote model on each node, which all engines, scorers and ranks of this user share.

The name of a copy is a hash of the model's URI and of the names, sizes and times of its files, so a model that has
changed is copied again. A process holds the copies that it reads. A copy that no process holds, and that none has
requested for a day, is removed when another copy is made.
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
from pipeline.storage.model_files.card import CARD

UNUSED_SECONDS = 24 * 3600.0  # how long an unused copy is kept: the next stage or round may need it again
_THREADS = 8  # files fetched at the same time
_TEMPORARY_PREFIX = "part-"  # of a folder that is being filled or removed, so it is not a copy
# The copies that this process reads: each an open folder with a shared lock, which ends with the process.
_held_copies: dict[Path, int] = {}


def local_copy(uri: str, fs: pafs.FileSystem, path: str) -> str:
    """Return a folder on this node with the files of a remote folder. Copy them unless a copy exists.

    Args:
        uri: the remote folder.
        fs: its file system.
        path: its path in that file system.

    Raises:
        UserError: the folder for copies belongs to another user.
        OSError: the remote folder cannot be read, or the copy cannot be written.
    """
    cache = user_folder("models")
    copy = cache / _copy_name(uri, fs, path)
    if not _hold(copy):
        with exclusive_lock(cache):  # other processes of this node wait: they will want the same copy
            if not _hold(copy):
                _remove_unused(cache)
                _fetch(copy, fs, path)
    return str(copy)


def release_copies() -> None:
    """Release all copies that this process holds. To read one again, it must call `local_copy` again."""
    while _held_copies:
        os.close(_held_copies.popitem()[1])


def user_folder(name: str) -> Path:
    """A folder on this node for files of this user. Raises UserError if other users can write to it."""
    parent = Path(tempfile.gettempdir(), f"rondo-{os.getuid()}")
    with suppress(FileExistsError):
        parent.mkdir(mode=0o700)
    status = parent.lstat()
    # A user who can write there could give us other weights.
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise UserError(
            f"{parent} is where a node keeps fetched models and the rows of a training, and should be a folder that "
            "only this user can open (mode 0700): remove it, or set TMPDIR to another folder"
        )
    folder = parent / name
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _model_files(fs: pafs.FileSystem, path: str) -> list[pafs.FileInfo]:
    """The files of a model.

    A run keeps other files beside its policy that come and go: begun.json, record.json and a folder of checkpoints. No
    engine reads the card, which is written after the model.
    """
    infos = fs.get_file_info(pafs.FileSelector(path))
    return [info for info in infos if info.is_file and info.base_name not in (BEGUN, RECORD, CARD)]


def _copy_name(uri: str, fs: pafs.FileSystem, path: str) -> str:
    files = sorted((info.base_name, info.size, info.mtime_ns) for info in _model_files(fs, path))
    return hashlib.sha256(json.dumps([uri, files]).encode()).hexdigest()


def _fetch(copy: Path, fs: pafs.FileSystem, path: str) -> None:
    """Copy a model to a temporary folder, then rename that folder to `copy`, so that each copy is complete."""
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=copy.parent))

    def fetch_file(info: pafs.FileInfo) -> None:
        pafs.copy_files(info.path, str(temporary / info.base_name), source_filesystem=fs)

    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(fetch_file, _model_files(fs, path)))
        temporary.rename(copy)
    except OSError as error:
        # Several nodes may share this folder while its locks work within one node only: another node was then first.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _hold(copy)


def _hold(copy: Path) -> bool:
    """Keep a copy from being removed for as long as this process reads it. Returns whether the copy exists."""
    try:
        if copy not in _held_copies:
            lock = os.open(copy, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_SH)
            _held_copies[copy] = lock
        # The folder may have been removed after it was opened and before it was locked.
        if os.path.samestat(os.fstat(_held_copies[copy]), os.stat(copy)):
            os.utime(copy)  # it counts as unused from now on
            return True
    except FileNotFoundError:
        pass
    if copy in _held_copies:
        os.close(_held_copies.pop(copy))
    return False


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """While the block runs, no other process of this node has this lock."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _remove_unused(cache: Path) -> None:
    """Remove copies that nobody holds and that nobody requested for a day, and half copies of killed processes."""
    for folder in list(cache.iterdir()):
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - folder.stat().st_mtime > UNUSED_SECONDS:
                removed = tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=cache)
                folder.rename(removed)  # rename first, so that other processes see the whole copy or no copy
                shutil.rmtree(removed, ignore_errors=True)
        except BlockingIOError:
            pass  # a process reads it
        finally:
            os.close(lock)
