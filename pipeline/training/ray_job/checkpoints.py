"""Keeps a training's checkpoints in a folder that all nodes can read: the last one, and the best weights.

Ray Train's own checkpoints belong to one job. These belong to one training, which any later job can resume.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch.distributed as dist
from pyarrow.fs import FileSelector, FileSystem, LocalFileSystem, copy_files

from pipeline.storage.files import atomic_writer, open_location, remove_folder
from pipeline.training.checkpoint import STATE, files_to_read, has_all_parts

_OWNER_FILE = "owner"  # the token of the driver whose workers may write
_BEST = "best"  # the folder of the best weights


def claim(location: str, token: str) -> None:
    """Write a driver's token into the folder of a training's checkpoints, so that workers of earlier drivers stop."""
    filesystem, folder = open_location(location)
    filesystem.create_dir(folder, recursive=True)
    with filesystem.open_output_stream(f"{folder}/{_OWNER_FILE}") as stream:
        stream.write(token.encode())


@dataclass(frozen=True)
class SharedCheckpointStore:
    """A `CheckpointStore` for all workers of a training.

    Attributes:
        location: the folder, a path or URI.
        token: token of the driver. Workers can outlive a driver that was killed. Their files must not mix with those
            of the next driver's workers.
        rank: this worker's number.
    """

    location: str
    token: str
    rank: int

    @property
    def fs(self) -> FileSystem:
        return open_location(self.location)[0]

    @property
    def path(self) -> str:
        return open_location(self.location)[1]

    def check_owner(self) -> None:
        """Raise RuntimeError if another driver has taken over."""
        with self.fs.open_input_stream(f"{self.path}/{_OWNER_FILE}") as stream:
            if stream.read().decode() != self.token:
                raise RuntimeError("another driver trains here now: the driver of this worker is gone")

    def save(self, name: str, folder: Path) -> None:
        state = folder / STATE
        text = state.read_bytes() if self.rank == 0 else b""
        state.unlink(missing_ok=True)
        self._copy(name, folder)
        if self.rank == 0:
            # The state comes last: a checkpoint that has one is complete.
            with atomic_writer(self.fs, f"{self.path}/{name}/{STATE}") as stream:
                stream.write(text)
            for other in self._complete():
                if other.name != name:
                    self.fs.delete_dir(str(other))

    def save_best(self, name: str, folder: Path) -> None:
        self._copy(f"{_BEST}/{name}", folder)

    def _copy(self, name: str, folder: Path) -> None:
        """Copy this worker's part into a folder of all workers' parts. When it returns, all parts are there."""
        self.check_owner()
        if self.rank == 0:
            remove_folder(f"{self.location}/{name}")  # an earlier attempt may have had another number of workers
            self.fs.create_dir(f"{self.path}/{name}", recursive=True)
        dist.barrier()
        copy_files(str(folder), f"{self.path}/{name}", destination_filesystem=self.fs)
        dist.barrier()

    @contextmanager
    def load_last(self) -> Iterator[Path | None]:
        """While the block runs, give a folder with what this worker reads of the last complete checkpoint, if any."""
        complete = self._complete() if self.rank == 0 else {}
        chosen = [str(max(complete, key=lambda folder: complete[folder])) if complete else None]
        dist.broadcast_object_list(chosen)  # a worker on another node may see an older listing
        if chosen[0] is None:
            yield None
            return
        with self._fetch(chosen[0]) as folder:
            yield folder

    @contextmanager
    def load_best(self, name: str) -> Iterator[Path]:
        with self._fetch(f"{self.path}/{_BEST}/{name}") as folder:
            yield folder

    @contextmanager
    def _fetch(self, path: str) -> Iterator[Path]:
        if isinstance(self.fs, LocalFileSystem):
            yield Path(path)
            return
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, PurePosixPath(path).name)  # errors name it
            folder.mkdir()
            names = [info.base_name for info in self.fs.get_file_info(FileSelector(path)) if info.base_name != STATE]
            for name in [STATE, *files_to_read(names, rank=self.rank, workers=dist.get_world_size())]:
                copy_files(f"{path}/{name}", str(folder / name), source_filesystem=self.fs)
            yield folder

    def _complete(self) -> dict[PurePosixPath, int]:
        """The steps of the complete checkpoints by their folders, which may be deeper: 0.1.0 left them to Ray Train."""
        found = self.fs.get_file_info(FileSelector(self.path, allow_not_found=True, recursive=True))
        files = {PurePosixPath(info.path) for info in found}
        steps = {}
        for state in files:
            if state.name == STATE and state.parent.parent.name != _BEST:
                parts = [file.name for file in files if file.parent == state.parent and file != state]
                with self.fs.open_input_stream(str(state)) as stream, suppress(ValueError):
                    if has_all_parts(parts):
                        steps[state.parent] = int(json.loads(stream.read())["step"])
        return steps

    def prune(self, keep: Sequence[str]) -> None:
        if self.rank == 0:
            for info in self.fs.get_file_info(FileSelector(f"{self.path}/{_BEST}", allow_not_found=True)):
                if info.base_name not in keep:
                    self.fs.delete_dir(info.path)
