"""Where a run was: each worker's part of the optimizer's tensors, and one small state. Read by any number of workers.

A folder holds `rank-00000-of-00002.safetensors`, …, and `state.json`. Parts are rows (FSDP2 shards the first
dimension in order of rank), so the whole is their concatenation. Nothing is pickled. Left out: where the folder is
kept, how many of them, and which is the last (Ray Train does that).
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.dpo.optimizer import Optimizer
from pipeline.dpo.sharding import local


def save(folder: Path, optimizer: Optimizer, state: dict[str, Any], *, rank: int, workers: int) -> None:
    """Write this worker's part, and from rank 0 the state, which is JSON."""
    # clone: a shard can be a view of a padded buffer, and a file is to hold the shard only
    tensors = {name: local(tensor).cpu().clone() for name, tensor in optimizer.state()}
    save_file(tensors, folder / f"rank-{rank:05d}-of-{workers:05d}.safetensors")
    if rank == 0:
        (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")


@torch.no_grad()
def load(folder: Path, optimizer: Optimizer, *, rank: int, workers: int) -> dict[str, Any]:
    """Put the run's tensors back into the optimizer and its model; `state["step"]` says how many updates they had.

    Returns:
        The state.
    """
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    parts = [safe_open(path, framework="pt") for path in sorted(folder.glob("rank-*.safetensors"))]
    for name, tensor in optimizer.state():
        mine = local(tensor)
        rows = -(-len(tensor) // workers)  # of each shard but the last ones: FSDP2 cuts as torch.chunk does
        first = min(rank * rows, len(tensor))
        pieces = [part.get_tensor(name) for part in parts]
        mine.copy_(torch.cat(pieces)[first : first + len(mine)])
    optimizer.set_steps(state["step"])
    optimizer.publish()
    return state
