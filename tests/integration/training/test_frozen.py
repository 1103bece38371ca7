"""A frozen policy that two processes hold together gives the values of a whole one."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
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


def load_shard(policy: Path, rank: int) -> FrozenShard:
    return FrozenShard(loading.load_model(policy, "float32"), CPU, rank, 2, "127.0.0.1", cpu_offload=False)


def score(shard: FrozenShard, address: tuple[str, int]) -> list[Any]:
    shard.join(*address)
    assert all(isinstance(parameter, DTensor) for parameter in shard.policy.parameters())
    values = [shard.logps(*BATCH), shard.token_logps(*BATCH)]
    dist.barrier()
    dist.destroy_process_group()
    return values


def second_worker(_: int, policies: list[Path], addresses: list[tuple[str, int]], out: Path) -> None:
    by_policy = [score(load_shard(policy, 1), address) for policy, address in zip(policies, addresses, strict=True)]
    torch.save(by_policy, out)


def test_two_shards_give_the_values_of_a_whole_policy(policies: list[Path], tmp_path: Path) -> None:
    """This process is the first worker."""
    shards = [load_shard(policy, 0) for policy in policies]
    addresses = [shard.listen() for shard in shards]
    out = tmp_path / "second"
    second = torch.multiprocessing.spawn(second_worker, args=(policies, addresses, out), nprocs=1, join=False)
    first = [score(shard, address) for shard, address in zip(shards, addresses, strict=True)]
    second.join()
    for policy, *of_workers in zip(policies, first, torch.load(out), strict=True):
        whole = FrozenPolicy(loading.load_model(policy, "float32"), CPU)
        for expected, *parts in zip((whole.logps(*BATCH), whole.token_logps(*BATCH)), *of_workers, strict=True):
            for article, *values in zip(expected, *parts, strict=True):
                (mine,) = [value for value in values if value[0] is not None]
                assert mine == [pytest.approx(value, abs=1e-5) for value in article]
