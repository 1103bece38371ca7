"""Writes and reads one checkpoint: each worker's shards of some tensors, and a small JSON state.

A folder holds `rank-00000-of-00002.safetensors`, …, and `state.json`. A shard is a block of rows (FSDP2 shards the
first dimension, in order of rank), so the whole tensor is the concatenation of its shards, and any number of workers
can read it. If there are as many workers as before, each reads only its own file. Nothing is pickled. The caller
decides where checkpoints are stored and how many are kept (`CheckpointStore` in `loop.py`).
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.training.modeling.fsdp import local_shard

STATE = "state.json"


def save(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], state: dict[str, Any], *, rank: int, workers: int
) -> None:
    """Write this worker's shards; rank 0 also writes the state, as JSON."""
    # clone: a shard can be a view of a padded buffer, and the file must hold only the shard
    shards = {name: local_shard(tensor).cpu().clone() for name, tensor in tensors}
    save_file(shards, folder / _file_name(rank, workers))
    if rank == 0:
        (folder / STATE).write_text(json.dumps(state), encoding="utf-8")


def has_all_parts(names: Sequence[str]) -> bool:
    """Whether names of files of shards are those of all workers."""
    return bool(names) and all(name.endswith(f"-of-{len(names):05d}.safetensors") for name in names)


def files_to_read(names: Sequence[str], *, rank: int, workers: int) -> list[str]:
    """Of the names of all files of shards, those that a worker reads: all if there were more or fewer workers."""
    own = _file_name(rank, workers)
    return [own] if own in names else sorted(names)


@torch.no_grad()
def load(folder: Path, tensors: Iterable[tuple[str, Tensor]], *, rank: int, workers: int) -> dict[str, Any]:
    """Copy saved tensors back into `tensors`. The checkpoint may come from another number of workers.

    Returns:
        The state.

    Raises:
        ValueError: a file is missing, damaged or of another model.
    """
    names = [path.name for path in folder.glob("rank-*.safetensors")]
    files = files_to_read(names, rank=rank, workers=workers)
    is_own = files == [_file_name(rank, workers)]
    if not (is_own or has_all_parts(files)) or not (folder / STATE).is_file():
        raise ValueError(
            f"the checkpoint {folder.name} is not complete: it has {files}. Remove the folder of the unfinished policy "
            "to train it from the beginning"
        )
    try:
        parts = [safe_open(folder / name, framework="pt") for name in files]
        for name, tensor in tensors:
            shard = local_shard(tensor)
            saved = torch.cat([part.get_tensor(name) for part in parts])
            expected = shard.shape if is_own else tensor.shape
            if saved.shape != expected:
                raise ValueError(f"{name} is {tuple(saved.shape)}, and should be {tuple(expected)}")
            rows_per_shard = -(-len(tensor) // workers)  # as FSDP2 and torch.chunk cut: the last shards may be shorter
            first = 0 if is_own else min(rank * rows_per_shard, len(tensor))
            shard.copy_(saved[first : first + len(shard)])
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"the checkpoint {folder.name} is damaged, or another model's ({error}). Remove the folder of the "
            "unfinished policy to train it from the beginning"
        ) from None


def _file_name(rank: int, workers: int) -> str:
    return f"rank-{rank:05d}-of-{workers:05d}.safetensors"
