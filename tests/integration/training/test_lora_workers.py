"""An adapter trained by two processes equals one trained by one process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from tests.helpers.training import learnable_examples, lora_loop, save_lora_base, train_lora_round


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lora_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def round_1(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_lora_round(base, tmp_path_factory.mktemp("round-1") / "policy")


def _train_two_rounds(rank: int, base: Path, folder: Path) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    for before, after in ((base, folder / "round-1"), (folder / "round-1", folder / "round-2")):
        part = lora_loop(before, learnable_examples(before), rank, 2)
        part.run()
        part.save(after)
        dist.barrier()
    dist.destroy_process_group()


def test_two_workers_give_the_same_adapter_as_one(base: Path, round_1: Path, tmp_path: Path) -> None:
    """The base is frozen and sharded, and the adapter's 3 rows do not divide by 2. Round 2 continues the adapter."""
    second = lora_loop(round_1, learnable_examples(round_1))
    second.run()
    second.save(tmp_path / "alone")
    torch.multiprocessing.spawn(_train_two_rounds, args=(base, tmp_path), nprocs=2)

    for ours, theirs in ((tmp_path / "round-1", round_1), (tmp_path / "round-2", tmp_path / "alone")):
        states = [load_file(folder / "adapter_model.safetensors") for folder in (ours, theirs)]
        torch.testing.assert_close(*states, rtol=1e-3, atol=1e-4)
