"""References: the log-probability of each paired summary under the policy that the round starts from.

By the same function, on the same article trees, in the same dtype as training: so at step 0 every margin is 0, and the
trainer checks that it is. Keyed by the digest of the weights, never by a name or a path that a later round reuses. Of
an adapter that is base and adapter together, and so are the values: never those of the adapter switched off.
"""

from functools import partial
from typing import TYPE_CHECKING

from ray.data import Dataset

from pipeline.config.hardware import TrainerHardware
from pipeline.config.training import References
from pipeline.inference.pool import EnginePool
from pipeline.stages.base import stage
from pipeline.storage.schema import Outcome, Row, map_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@stage(
    "references",
    version=2,
    settings=("policy.dtype", "references"),
    uses=("scorer", "trainer"),
    writes=("reference_logps", "reference_digest"),
)
def reference_logprobs(
    rows: Dataset, digest: str, *, dtype: str, references: References, scorer: EnginePool, trainer: TrainerHardware
) -> Dataset:
    """Add `reference_logps`, aligned with `summaries`, and the digest of the weights that gave them.

    Rows stream through: articles can be scored while others are still being judged.

    Args:
        rows: articles with pairs.
        digest: of the weights that `scorer` holds.
        dtype: of those weights, and of all but the log-softmax (which is float32).
        references: where the values come from.
        scorer: models rather than engines: `load_reference`, once an actor.
        trainer: for `tokens_per_batch`, so that rows are packed as in training.
    """
    match references.source:
        case "none":
            return map_rows(rows, lambda row: dict.fromkeys(reference_logprobs.writes), reference_logprobs.writes)
        case "sampler":
            return map_rows(rows, partial(_sampled, digest), reference_logprobs.writes)
        case "trainer":
            return scorer.map(rows, partial(_score, digest, trainer.tokens_per_batch), reference_logprobs.writes)


def _sampled(digest: str, row: Row) -> Outcome:
    """The values that came with the samples. The trainer compares some of them with its own (`dpo/passport.py`)."""
    return {"reference_logps": [summary["logp"] for summary in row["summaries"]], "reference_digest": digest}


def load_reference(name: str, dtype: str, digest: str, trainer: TrainerHardware) -> "PreTrainedModel":
    """The frozen reference, on the device of a training worker.

    Raises:
        ValueError: its weights are not those of the digest: a file was changed since the policy was recorded.
    """
    from pipeline.training.modeling import loading

    found = loading.weights_digest(name)
    if found != digest:
        raise ValueError(f"{name} holds weights {found}, and its record says {digest}: put the recorded weights back")
    model = loading.load_model(name, dtype, article_tree=trainer.article_tree).requires_grad_(False)
    return model.to("cuda") if trainer.gpus_per_worker else model


def _score(digest: str, tokens_per_batch: int, model: "PreTrainedModel", rows: list[Row]) -> list[Outcome]:
    from pipeline.training.modeling.logprobs import frozen_logps

    paired = [sorted({i for pair in row["pairs"] for i in (pair["chosen"], pair["rejected"])}) for row in rows]
    articles = [
        (row["prompt_ids"], [row["summaries"][i]["token_ids"] for i in used])
        for row, used in zip(rows, paired, strict=True)
    ]
    outcomes: list[Outcome] = []
    found = frozen_logps(model, articles, tokens_per_batch)
    for row, used, (prompt, completions), values in zip(rows, paired, articles, found, strict=True):
        logps: list[float | None] = [None] * len(row["summaries"])
        for i, value in zip(used, values, strict=True):
            logps[i] = value
        count = len(prompt) + sum(map(len, completions))
        outcomes.append({"reference_logps": logps, "reference_digest": digest, "tally": {"tokens_in": count}})
    return outcomes
