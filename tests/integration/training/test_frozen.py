"""A frozen policy that two processes hold together gives the values of a whole one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import FileStore
from torch.distributed.tensor import DTensor

from pipeline.training.modeling import loading
from pipeline.training.modeling.frozen import FrozenPolicy, FrozenShard
from tests.helpers.training import save_lora_base, train_lora_round

CPU = torch.device("cpu")
ARTICLES = [
    ([1 + n % 7 for n in range(3 + 5 * (i % 4))], [[10 + j, 20 + i, *range(30, 31 + j)] for j in range(4)])
    for i in range(7)
]
UNSCORED = [[(0, 1)] * 4 for _ in ARTICLES]
BATCH = (ARTICLES, 60, UNSCORED)  # 3 rows, so that one of two workers has to wait for the other


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A complete model, and an adapter on it."""
    base = save_lora_base(tmp_path_factory.mktemp("base"))
    return [base, train_lora_round(base, tmp_path_factory.mktemp("round-1") / "policy")]


def score(shard: FrozenShard, address: list[Any]) -> list[Any]:
    shard.join(*address)
    assert all(isinstance(parameter, DTensor) for parameter in shard.policy.parameters())
    values = [shard.logps(*BATCH), shard.token_logps(*BATCH)]
    dist.barrier()
    dist.destroy_process_group()
    return values


def worker(rank: int, policies: list[Path], folder: Path) -> None:
    """Score with every policy. The workers are processes of their own, because this one may be in a group already."""
    of_policies = []
    for number, policy in enumerate(policies):
        shard = FrozenShard(loading.load_model(policy, "float32"), CPU, rank, 2, "127.0.0.1", cpu_offload=False)
        store = FileStore(str(folder / "store"), 2)
        if rank == 0:
            store.set(f"address-{number}", json.dumps(shard.listen()))
        of_policies.append(score(shard, json.loads(store.get(f"address-{number}"))))
    torch.save(of_policies, folder / f"values-{rank}")


def test_two_shards_give_the_values_of_a_whole_policy(policies: list[Path], tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, args=(policies, tmp_path), nprocs=2)
    of_workers = [torch.load(tmp_path / f"values-{rank}") for rank in range(2)]
    for policy, *workers in zip(policies, *of_workers, strict=True):
        whole = FrozenPolicy(loading.load_model(policy, "float32"), CPU)
        for expected, *parts in zip((whole.logps(*BATCH), whole.token_logps(*BATCH)), *workers, strict=True):
            for article, *values in zip(expected, *parts, strict=True):
                (mine,) = [value for value in values if value[0] is not None]
                assert mine == [pytest.approx(value, abs=1e-5) for value in article]
