"""References and drift of a policy that two workers hold together: the values are those of a whole policy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.data import Dataset

from pipeline.config import Config
from pipeline.config.loader import load_config
from pipeline.config.training import References
from pipeline.execution.resources import provide_resources
from pipeline.inference.actors.residents import ResidentPools
from pipeline.inference.base import EngineStep
from pipeline.inference.pool import EnginePool
from pipeline.stages.drift import drift_from_base, is_compared
from pipeline.stages.references import load_reference, reference_logprobs
from pipeline.storage.ledger import Artifact
from pipeline.storage.schema import Outcome, Row, to_dataset
from pipeline.training.modeling import loading
from tests.helpers.paths import DEMO
from tests.helpers.training import save_lora_base, train_lora_round

# `tests/integration/training/test_frozen.py` compares the shards of two processes without Ray, and quickly.
pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lora_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_lora_round(base, tmp_path_factory.mktemp("round-1") / "policy")


@pytest.fixture
def residents() -> Iterator[ResidentPools]:
    pools = ResidentPools()
    yield pools
    pools.end()


def settings(**hardware: Any) -> Config:
    trainer = {"workers": 2, "cpus_per_worker": 0.5, "tokens_per_batch": 60} | hardware
    return load_config(DEMO, ["run=/nowhere", f"hardware.trainer={trainer}", "policy.dtype=float32"])


def scorers(config: Config, residents: ResidentPools, **policies: Path) -> dict[str, EnginePool]:
    inputs = {
        name: Artifact("", "", {"model": str(folder), "digest": loading.weights_digest(folder)})
        for name, folder in policies.items()
    }
    names = [f"{name}_scorer" for name in policies]
    return provide_resources(names, config, inputs, "", "", None, print, residents)


def articles(count: int) -> list[dict[str, Any]]:
    """Articles that are all compared with the base. Of four summaries, the third is in no pair."""
    names = [name for name in (f"a{i}" for i in range(16 * count * 2)) if is_compared(name)][:count]
    return [
        {
            "article_id": name,
            "article": "",
            "split": "train",
            "writer": "w",
            "prompt_ids": [1 + n % 7 for n in range(3 + 5 * (i % 4))],
            "summaries": [
                {"text": "", "token_ids": [10 + j, 20 + i, *range(30, 31 + j)], "finish_reason": "stop"}
                for j in range(4)
            ],
            "pairs": [{"chosen": 0, "rejected": 1, "reason": ""}, {"chosen": 3, "rejected": 1, "reason": ""}],
        }
        for i, name in enumerate(names)
    ]


def test_drift_by_two_workers_is_that_of_whole_policies(base: Path, adapter: Path, residents: ResidentPools) -> None:
    config, rows = settings(shard_references=True), articles(7)
    trainer = config.hardware.trainer
    pools = scorers(config, residents, policy=adapter, base=base)
    found = drift_from_base(to_dataset(rows), "policy", "base", dtype="float32", trainer=trainer, **pools).take_all()
    by_id = {row["article_id"]: row for row in found}
    assert by_id.keys() == {row["article_id"] for row in rows}
    batch = [(row["prompt_ids"], [summary["token_ids"] for summary in row["summaries"]]) for row in rows]
    for column, folder in (("policy_logps", adapter), ("base_logps", base)):
        whole = load_reference(str(folder), "float32", loading.weights_digest(folder), trainer)
        for row, expected in zip(rows, whole.logps(batch, 60), strict=True):
            assert by_id[row["article_id"]][column] == pytest.approx(expected, abs=1e-5)
    assert found[0]["policy_logps"] != pytest.approx(found[0]["base_logps"], abs=1e-3)


def kill_once(flag: Path, step: EngineStep, policy: Any, rows: list[Row]) -> Sequence[Outcome]:
    if not flag.exists():
        flag.touch()
        ray.kill(policy.group._actors[1])
    return step(policy, rows)


@dataclass
class KillingPool:
    """A pool of which a worker of a policy dies in the first batch."""

    pool: EnginePool
    flag: Path

    def map(self, rows: Dataset, step: EngineStep, writes: Sequence[str]) -> Dataset:
        return self.pool.map(rows, partial(kill_once, self.flag, step), writes)


def test_references_are_complete_after_a_worker_was_killed(
    adapter: Path, residents: ResidentPools, tmp_path: Path
) -> None:
    config, rows = settings(shard_references=True), articles(5)
    trainer, digest = config.hardware.trainer, loading.weights_digest(adapter)
    options = {"dtype": "float32", "references": References(), "ld_alpha": 0.5, "trainer": trainer}
    pool = scorers(config, residents, reference=adapter)["reference_scorer"]
    killing = KillingPool(pool, tmp_path / "killed")
    found = reference_logprobs(to_dataset(rows), digest, reference_scorer=killing, **options).take_all()
    assert killing.flag.exists() and {row["reference_digest"] for row in found} == {digest}
    whole = load_reference(str(adapter), "float32", digest, trainer)
    by_id = {row["article_id"]: row for row in found}
    for row in rows:
        chosen = [row["summaries"][i]["token_ids"] for i in (0, 1, 3)]
        ((first, second, last),) = whole.logps([(row["prompt_ids"], chosen)], 60)
        close = [pytest.approx(value, abs=1e-5) for value in (first, second, None, last)]
        assert by_id[row["article_id"]]["reference_logps"] == close
        ((begin,),) = whole.logps([(row["prompt_ids"], [chosen[2][: len(chosen[1])]])], 60)
        shared = by_id[row["article_id"]]["reference_shared_logps"][1]
        assert shared == {"chosen": pytest.approx(begin, abs=1e-5), "rejected": close[1]}
