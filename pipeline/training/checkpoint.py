"""Where a run was: each worker's part of some tensors, and one small state. Read by any number of workers.

A folder holds `rank-00000-of-00002.safetensors`, …, and `state.json`. Parts are rows (FSDP2 shards the first
dimension in order of rank), so the whole is their concatenation. Nothing is pickled. Left out: where the folder is
kept, how many of them, and which is the last (whoever starts the run does that).
"""

import json
from collections.abc import Iterable
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
    """Write this worker's part, and from rank 0 the state, which is JSON."""
    # clone: a shard can be a view of a padded buffer, and a file is to hold the shard only
    mine = {name: local_shard(tensor).cpu().clone() for name, tensor in tensors}
    save_file(mine, folder / f"rank-{rank:05d}-of-{workers:05d}.safetensors")
    if rank == 0:
        (folder / STATE).write_text(json.dumps(state), encoding="utf-8")


@torch.no_grad()
def load(folder: Path, tensors: Iterable[tuple[str, Tensor]], *, rank: int, workers: int) -> dict[str, Any]:
    """Put saved tensors back in place, whichever number of workers saved them.

    Returns:
        The state.

    Raises:
        ValueError: a part is missing, or is not what `save` wrote.
    """
    paths = sorted(folder.glob("rank-*.safetensors"))
    if not paths or not paths[0].stem.endswith(f"-of-{len(paths):05d}") or not (folder / STATE).is_file():
        raise ValueError(
            f"the checkpoint {folder.name} is not complete: it has {[path.name for path in paths]}. Remove the folder "
            "of the unfinished policy to train it from the beginning"
        )
    try:
        parts = [safe_open(path, framework="pt") for path in paths]
        for name, tensor in tensors:
            mine = local_shard(tensor)
            rows = -(-len(tensor) // workers)  # of each shard but the last ones: FSDP2 cuts as torch.chunk does
            first = min(rank * rows, len(tensor))
            whole = torch.cat([part.get_tensor(name) for part in parts])
            if whole.shape != tensor.shape:
                raise ValueError(f"{name} is {tuple(whole.shape)}, and should be {tuple(tensor.shape)}")
            mine.copy_(whole[first : first + len(mine)])
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"the checkpoint {folder.name} is damaged, or another model's ({error}). Remove the folder of the "
            "unfinished policy to train it from the beginning"
        ) from None
