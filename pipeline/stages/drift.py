"""Drift: how far the policy that wrote for a round has gone from the base, as KL(policy || base) on what it sampled.

Of one article in 16 the trainer's code scores the sampled token ids twice, by the policy that wrote them and by the
base. The mean difference estimates the KL, without bias where summaries were drawn at temperature 1 and top_p 1; drawn
otherwise it is the mean over what was drawn. Left out: a round whose writer is the base, and the policy that the round
trains, which has sampled nothing yet.
"""

from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
from ray.data import Dataset

from pipeline.config.hardware import TrainerHardware
from pipeline.inference.pool import EnginePool
from pipeline.stages.base import stage
from pipeline.storage.schema import Outcome, Row, is_drawn
from pipeline.storage.streams import materialize

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPARED = 1 / 16  # of the articles
_COLUMNS = ["article_id", "split", "writer", "prompt_ids", "summaries"]


@stage(
    "drift",
    version=2,
    settings=("policy.dtype",),
    uses=("scorer", "base_scorer", "trainer"),
    writes=("policy_logps", "base_logps"),
    whole=True,
)
def drift_from_base(
    rows: Dataset,
    policy: str,
    base: str,
    *,
    dtype: str,
    scorer: EnginePool,
    base_scorer: EnginePool,
    trainer: TrainerHardware,
) -> Dataset:
    """Add `policy_logps` and `base_logps`, aligned with `summaries`, to one article in 16; leave the rest.

    Args:
        rows: articles with the policy's summaries.
        policy, base: the build ids of the writer, which `scorer` holds, and of the base, which `base_scorer` does.
        dtype: of their weights.
        trainer: for `tokens_per_batch`.
    """
    some = rows.select_columns(_COLUMNS).map_batches(_compared, batch_format="pyarrow", batch_size=None)
    by_policy, by_base = (partial(_score, trainer.tokens_per_batch, column) for column in drift_from_base.writes)
    # One after the other: a device that holds one model need not hold two.
    scored = materialize(scorer.map(some, by_policy, drift_from_base.writes[:1]))
    return base_scorer.map(scored, by_base, drift_from_base.writes[1:])


def is_compared(article_id: str) -> bool:
    """Whether an article is one of those, one in 16, on which the policy is compared with the base."""
    return is_drawn(article_id, COMPARED)


def _compared(table: pa.Table) -> pa.Table:
    return table.filter(pa.array(map(is_compared, table["article_id"].to_pylist()), pa.bool_()))


def _score(tokens_per_batch: int, column: str, model: "PreTrainedModel", rows: list[Row]) -> list[Outcome]:
    from pipeline.training.modeling.logprobs import frozen_logps

    articles = [(row["prompt_ids"], [summary["token_ids"] for summary in row["summaries"]]) for row in rows]
    return [{column: values} for values in frozen_logps(model, articles, tokens_per_batch)]
