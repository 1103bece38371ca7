"""Writes and reads one checkpoint: each worker's shards of some tensors, and a small JSON state.

A folder holds `rank-00000-of-00002.safetensors`, …, and `state.json`. A shard is a block of rows (FSDP2 shards the
first dimension, in order of rank), so the whole tensor is the concatenation of its shards, and any number of workers
can read it. Nothing is pickled. The caller decides where checkpoints are stored and how many are kept
(`CheckpointStore` in `loop.py`).
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
    save_file(shards, folder / f"rank-{rank:05d}-of-{workers:05d}.safetensors")
    if rank == 0:
        (folder / STATE).write_text(json.dumps(state), encoding="utf-8")


def has_all_parts(names: Sequence[str]) -> bool:
    """Whether names of files of shards are those of all workers."""
    return bool(names) and all(name.endswith(f"-of-{len(names):05d}.safetensors") for name in names)


@torch.no_grad()
def load(folder: Path, tensors: Iterable[tuple[str, Tensor]], *, rank: int, workers: int) -> dict[str, Any]:
    """Copy saved tensors back into `tensors`. The checkpoint may come from another number of workers.

    Returns:
        The state.

    Raises:
        ValueError: a part is missing, damaged or of another model.
    """
    paths = sorted(folder.glob("rank-*.safetensors"))
    if not has_all_parts([path.name for path in paths]) or not (folder / STATE).is_file():
        raise ValueError(
            f"the checkpoint {folder.name} is not complete: it has {[path.name for path in paths]}. Remove the folder "
            "of the unfinished policy to train it from the beginning"
        )
    try:
        parts = [safe_open(path, framework="pt") for path in paths]
        for name, tensor in tensors:
            shard = local_shard(tensor)
            rows_per_shard = -(-len(tensor) // workers)  # as FSDP2 and torch.chunk cut: the last shards may be shorter
            first = min(rank * rows_per_shard, len(tensor))
            whole = torch.cat([part.get_tensor(name) for part in parts])
            if whole.shape != tensor.shape:
                raise ValueError(f"{name} is {tuple(whole.shape)}, and should be {tuple(tensor.shape)}")
            shard.copy_(whole[first : first + len(shard)])
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"the checkpoint {folder.name} is damaged, or another model's ({error}). Remove the folder of the "
            "unfinished policy to train it from the beginning"
        ) from None
