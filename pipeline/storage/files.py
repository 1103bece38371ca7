"""Opens, reads, atomically replaces and removes files by path or URI.

All access goes through `pyarrow.fs`, so a run folder may be a path or a URI such as `s3://bucket/run`.
"""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs as pafs

from pipeline.config import UserError


def open_location(location: str) -> tuple[pafs.FileSystem, str]:
    """Open the file system of a path or a URI.

    Returns:
        the file system, and the location's name in it, without a slash at the end.
    """
    fs, path = pafs.FileSystem.from_uri(location if "://" in location else os.path.abspath(location))
    return fs, path.rstrip("/")


@contextlib.contextmanager
def atomic_writer(fs: pafs.FileSystem, path: str) -> Iterator[Any]:
    """Open a binary stream to a temporary file, which replaces `path` when the block ends without an error.

    No reader sees a half-written file. After an error the temporary file is removed.
    """
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with fs.open_output_stream(temporary) as stream:
            yield stream
        fs.move(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            fs.delete_file(temporary)  # on a full disk, half a file takes space that others need
        raise


def remove_folder(location: str) -> None:
    """Remove a folder and its contents, if it exists."""
    fs, path = open_location(location)
    with contextlib.suppress(FileNotFoundError):
        fs.delete_dir(path)


@dataclass(frozen=True)
class RunFiles:
    """The files of a run folder.

    Attributes:
        root: the folder, an absolute path or a URI, without a slash at the end.
        fs: its file system.
        base: the folder's path in that file system.

    Raises:
        UserError: the folder cannot be opened, or is a file.
    """

    root: str
    fs: pafs.FileSystem = field(init=False, repr=False, compare=False)
    base: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        root = self.root if "://" in self.root else os.path.abspath(self.root)
        try:
            fs, base = open_location(root)
        except Exception as error:  # unknown scheme, no credentials, …: pyarrow has no common class for these errors
            raise UserError(f"run is {self.root!r}, which cannot be opened: {error}") from None
        if isinstance(fs, pafs.LocalFileSystem) and os.path.isfile(base):
            raise UserError(f"run is {self.root!r}, which is a file: it should be a run folder")
        object.__setattr__(self, "root", root.rstrip("/"))
        object.__setattr__(self, "fs", fs)
        object.__setattr__(self, "base", base)

    def path(self, address: str) -> str:
        """The path in `fs` of a file or folder of the run.

        Args:
            address: its path relative to the run folder.
        """
        return f"{self.base}/{address}"

    def files(self) -> list[str]:
        """The addresses of all files of the run, sorted. Empty if the run folder does not exist."""
        listed = self.fs.get_file_info(pafs.FileSelector(self.base, recursive=True, allow_not_found=True))
        return sorted(info.path[len(self.base) + 1 :] for info in listed if info.is_file)

    def read(self, address: str) -> str | None:
        """Read a text file. Returns None if it does not exist.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            with self.fs.open_input_stream(self.path(address)) as stream:
                return stream.read().decode()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{self.root}/{address} cannot be read: {error}") from error

    def write(self, address: str, content: str | bytes) -> None:
        """Write a file atomically. Text is written as UTF-8.

        Raises:
            UserError: the file cannot be written.
        """
        target = self.path(address)
        try:
            self.fs.create_dir(target.rsplit("/", 1)[0])
            with atomic_writer(self.fs, target) as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
        except OSError as error:
            raise UserError(f"{self.root}/{address} cannot be written: {error}") from error

    def delete_file(self, address: str) -> None:
        """Delete a file, if it exists. Raises UserError if it cannot be deleted."""
        self._delete(self.fs.delete_file, address)

    def delete_folder(self, address: str) -> None:
        """Delete a folder and its contents, if it exists. Raises UserError if it cannot be deleted."""
        self._delete(self.fs.delete_dir, address)

    def _delete(self, delete: Callable[[str], None], address: str) -> None:
        try:
            delete(self.path(address))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise UserError(f"{self.root}/{address} cannot be removed: {error}") from error
