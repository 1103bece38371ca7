"""The stage `references`: the log-probability of each paired summary under the reference policy.

The reference is the policy that the round starts from, or the base. One function, `score_row`, scores reference and
policy, on the same article trees and in the same dtype. So at step 0 every margin is 0, and the trainer checks this.
Values are keyed by the digest of the weights, never by a name or path that a later round uses again. The digest of an
adapter covers base and adapter, and so do the values: the reference is never the base with the adapter switched off.
A reference that one GPU does not hold is sharded over the workers of `hardware.trainer`, as training shards the policy.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ray.data import Dataset

from pipeline.config.hardware import TrainerHardware
from pipeline.config.training import FourBit, References
from pipeline.inference.actors.worker_group import WorkerGroup
from pipeline.inference.base import TOKENS_IN
from pipeline.inference.pool import EnginePool
from pipeline.stages.base import stage
from pipeline.storage.schema import Outcome, Row, map_rows, sampled_logp, unscored_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pipeline.training.modeling.frozen import FrozenPolicy, FrozenShard


@stage(
    "references",
    version=2,
    inputs=("rows", "reference.digest"),
    settings=("policy.dtype", "references", "training.loss_on", "training.ld_alpha", "training.load_in_4bit"),
    uses=("reference_scorer", "trainer"),
    writes=("reference_logps", "reference_shared_logps", "reference_digest"),
    workload="references",
)
def reference_logprobs(
    rows: Dataset,
    digest: str,
    *,
    dtype: str,
    references: References,
    loss_on: str = "sequence",
    ld_alpha: float | None = None,
    load_in_4bit: FourBit | None = None,
    reference_scorer: EnginePool,
    trainer: TrainerHardware,
) -> Dataset:
    """Add `reference_logps`, aligned with `summaries`, and the digest of the weights that gave them.

    Rows stream through: articles can be scored while others are still being judged.

    Args:
        rows: articles with pairs.
        digest: of the weights that `reference_scorer` holds.
        dtype: of those weights and of all computation but the log-softmax, which is float32.
        references: where the values come from.
        loss_on: which tokens of a summary with a thought are scored, as in training.
        ld_alpha: if it is not None, `reference_shared_logps` is added too, which the loss then needs.
        reference_scorer: a pool of frozen policies instead of engines; each actor calls `load_reference` or
            `ShardedPolicy` once.
        load_in_4bit: how the base of those weights is quantized, as in training.
        trainer: for `tokens_per_batch`, so that rows are packed as in training.
    """
    columns = reference_logprobs.writes
    match references.source:
        case "none":
            return map_rows(rows, lambda row: dict.fromkeys(columns), columns)
        case "sampler":
            return map_rows(rows, partial(_take_from_sampler, digest, loss_on), columns)
        case "trainer":
            step = partial(_score, digest, trainer.tokens_per_batch, loss_on, ld_alpha is not None)
            return reference_scorer.map(rows, step, columns)


def _take_from_sampler(digest: str, loss_on: str, row: Row) -> Outcome:
    """Take the values that came with the samples. The trainer checks some of them (`training/consistency.py`)."""
    logps = [sampled_logp(summary, loss_on) for summary in row["summaries"]]
    return {"reference_logps": logps, "reference_shared_logps": None, "reference_digest": digest}


def load_reference(
    name: str, dtype: str, digest: str, trainer: TrainerHardware, load_in_4bit: FourBit | None = None
) -> "FrozenPolicy":
    """Load a frozen policy onto the device of a training worker.

    Raises:
        ValueError: the digest of its weights is another one: a file changed since the policy was recorded.
    """
    from pipeline.training.modeling.frozen import FrozenPolicy

    return FrozenPolicy(_load(name, dtype, digest, trainer, load_in_4bit), _device(trainer))


class ShardedPolicy:
    """A frozen policy that the workers of a group hold together, sharded as in training.

    Args:
        name, dtype, digest, trainer: as for `load_reference`.

    Raises:
        ValueError: as `load_reference`.
        EngineDied, Exception: by each method too, as `WorkerGroup.call`.
    """

    def __init__(self, name: str, dtype: str, digest: str, trainer: TrainerHardware) -> None:
        self.group = WorkerGroup(partial(_load_shard, name, dtype, digest, trainer))
        self.group.call("join", *self.group.call_first("listen"))

    def logps(self, *batch: Any) -> list[list[Any]]:
        """As `FrozenPolicy.logps`."""
        return _merge(self.group.call("logps", *batch))

    def token_logps(self, *batch: Any) -> list[list[Any]]:
        """As `FrozenPolicy.token_logps`."""
        return _merge(self.group.call("token_logps", *batch))

    def close(self) -> None:
        """Release the policy."""
        self.group.close()


def _load_shard(name: str, dtype: str, digest: str, trainer: TrainerHardware, rank: int) -> "FrozenShard":
    import ray

    from pipeline.training.modeling.frozen import FrozenShard

    model, address = _load(name, dtype, digest, trainer), ray.util.get_node_ip_address()
    return FrozenShard(model, _device(trainer), rank, trainer.workers, address, cpu_offload=trainer.cpu_offload)


def _load(
    name: str, dtype: str, digest: str, trainer: TrainerHardware, load_in_4bit: FourBit | None = None
) -> "PreTrainedModel":
    from pipeline.training.modeling import loading

    actual = loading.weights_digest(name)
    if actual != digest:
        raise ValueError(f"{name} holds weights {actual}, and its record says {digest}: put the recorded weights back")
    quantization = load_in_4bit.model_dump() if load_in_4bit else None
    return loading.load_model(
        name, dtype, article_tree=trainer.article_tree, load_in_4bit=quantization, device=_device(trainer)
    )


def _device(trainer: TrainerHardware) -> str:
    return "cuda" if trainer.gpus_per_worker else "cpu"


def _merge(by_worker: Sequence[list[list[Any]]]) -> list[list[Any]]:
    """Take the value of each completion from the worker that has scored it."""
    return [
        [next(value for value in values if value is not None) for values in zip(*of_article, strict=True)]
        for of_article in zip(*by_worker, strict=True)
    ]


def _score(
    digest: str,
    tokens_per_batch: int,
    loss_on: str,
    with_shared_logps: bool,
    policy: "FrozenPolicy | ShardedPolicy",
    rows: list[Row],
) -> list[Outcome]:
    paired = [sorted({i for pair in row["pairs"] for i in (pair["chosen"], pair["rejected"])}) for row in rows]
    articles = [
        (row["prompt_ids"], [row["summaries"][i]["token_ids"] for i in indices])
        for row, indices in zip(rows, paired, strict=True)
    ]
    unscored = [
        [unscored_tokens(row["summaries"][i], loss_on) for i in indices]
        for row, indices in zip(rows, paired, strict=True)
    ]
    token_logps = policy.token_logps(articles, tokens_per_batch, unscored) if with_shared_logps else None
    if token_logps is None:
        scored = policy.logps(articles, tokens_per_batch, unscored)
    else:
        scored = [[math.fsum(of_completion) for of_completion in of_article] for of_article in token_logps]
    outcomes: list[Outcome] = []
    for number, (row, indices, values) in enumerate(zip(rows, paired, scored, strict=True)):
        logps: list[float | None] = [None] * len(row["summaries"])
        for i, value in zip(indices, values, strict=True):
            logps[i] = value
        prompt, completions = articles[number]
        outcomes.append(
            {
                "reference_logps": logps,
                "reference_shared_logps": _shared_logps(row, indices, token_logps[number]) if token_logps else None,
                "reference_digest": digest,
                "tally": {TOKENS_IN: len(prompt) + sum(map(len, completions))},
            }
        )
    return outcomes


def _shared_logps(row: Row, indices: list[int], token_logps: list[list[float]]) -> list[dict[str, float]]:
    """For each pair, the log-probabilities of the first tokens of both sides, up to the length of the shorter."""
    of_summary = dict(zip(indices, token_logps, strict=True))
    shared = []
    for pair in row["pairs"]:
        sides = {side: of_summary[pair[side]] for side in ("chosen", "rejected")}
        tokens = min(map(len, sides.values()))
        shared.append({side: math.fsum(logps[:tokens]) for side, logps in sides.items()})
    return shared
