"""Shares a file among the training workers of a node, and leaves none behind.

The first worker writes the file, and the others wait for it. Each maps it. When all have done so, its name is removed,
and the kernel frees its space when the last of them ends, even if it is killed. If workers are killed before that, the
next training of this user on the node removes the file.
"""

import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.storage.model_files.node_cache import exclusive_lock, user_folder


@contextmanager
def shared_file(name: str, write: Callable[[Path], None]) -> Iterator[Path]:
    """While the block runs, give a file of this node. When it ends, remove the file; what is mapped stays readable.

    Args:
        name: of the file, unique for each training, and the same on all its workers.
        write: called with the path of a temporary file, by one process of the node. It may run again in another
            process after an error.

    Raises:
        ValueError: the node's disk is full.
        UserError: the folder for such files belongs to another user.
    """
    # The name of the node, because nodes may share this folder, and perhaps no locks.
    folder, suffix = user_folder("examples"), f"-{socket.gethostname()}"
    own = folder / f"{name}{suffix}"
    path, lock = own / "examples", own / "lock"
    with exclusive_lock(folder):
        _remove_unheld(folder, suffix)
        lock.mkdir(parents=True, exist_ok=True)
        held = os.open(own, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_SH)
    try:
        with exclusive_lock(lock):  # the other workers wait, and no other training does
            if not path.exists():
                _write(path, own / "part", write)
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(held)
        with exclusive_lock(folder):
            _remove_unheld(folder, suffix)


def _write(path: Path, temporary: Path, write: Callable[[Path], None]) -> None:
    try:
        write(temporary)
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(path.parent).free / 2**30
        raise ValueError(
            f"the rows to train on do not fit into {path.parent}, where each node keeps them during training "
            f"({free:.1f} GiB are free): free space there, or set TMPDIR to a folder on a larger local disk"
        ) from error


def _remove_unheld(folder: Path, suffix: str) -> None:
    """Remove the folders that no process holds. The caller has the lock of `folder`."""
    for own in folder.glob(f"*{suffix}"):
        held = os.open(own, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(own)
        except BlockingIOError:
            pass  # a worker holds it
        finally:
            os.close(held)
