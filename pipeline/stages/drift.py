"""The stage `drift`: log-probabilities that show how far the policy that wrote a round's summaries is from the base.

For one article in 16, the trainer's code computes the log-probability of each summary twice: under the policy that
wrote it, and under the base. `evaluation/stopping/kl.py` estimates KL(policy || base) from the difference. The stage is
made only for rounds whose writer is not the base. The policy that the round trains has sampled nothing yet; the next
round measures it.
"""

from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
from ray.data import Dataset

from pipeline.config.hardware import TrainerHardware
from pipeline.config.training import FourBit
from pipeline.inference.pool import EnginePool
from pipeline.stages.base import stage
from pipeline.storage.schema import Outcome, Row, is_drawn, unscored_tokens
from pipeline.storage.streams import materialize

if TYPE_CHECKING:
    from pipeline.training.modeling.frozen import FrozenPolicy

COMPARED = 1 / 16  # share of the articles
_COLUMNS = ["article_id", "split", "writer", "prompt_ids", "summaries"]


@stage(
    "drift",
    version=2,
    inputs=("rows", "policy.build", "base.build"),
    settings=("policy.dtype", "training.load_in_4bit"),
    uses=("policy_scorer", "base_scorer", "trainer"),
    writes=("policy_logps", "base_logps"),
    by_row=False,
    workload="drift",
)
def drift_from_base(
    rows: Dataset,
    policy: str,
    base: str,
    *,
    dtype: str,
    load_in_4bit: FourBit | None = None,
    policy_scorer: EnginePool,
    base_scorer: EnginePool,
    trainer: TrainerHardware,
) -> Dataset:
    """Add `policy_logps` and `base_logps`, aligned with `summaries`, to one article in 16, and drop the others.

    Args:
        rows: articles with the policy's summaries.
        policy, base: the build ids of the policies that `policy_scorer` and `base_scorer` hold.
        dtype: the dtype of their weights.
        load_in_4bit: how their base is quantized, as in training.
        policy_scorer, base_scorer: pools of frozen policies in place of engines, as for the stage `references`.
        trainer: its `tokens_per_batch` is the length of a packed row.
    """
    policy_column, base_column = drift_from_base.writes
    compared = rows.select_columns(_COLUMNS).map_batches(_keep_compared, batch_format="pyarrow", batch_size=None)
    score_by_policy = partial(_score, trainer.tokens_per_batch, policy_column)
    score_by_base = partial(_score, trainer.tokens_per_batch, base_column)
    # One model after the other: both pools are the same actors, and a device never has to hold both models.
    scored = materialize(policy_scorer.map(compared, score_by_policy, (policy_column,)))
    return base_scorer.map(scored, score_by_base, (base_column,))


def is_compared(article_id: str) -> bool:
    """Whether an article is one of those on which the policy is compared with the base."""
    return is_drawn(article_id, COMPARED)


def _keep_compared(table: pa.Table) -> pa.Table:
    return table.filter(pa.array(map(is_compared, table["article_id"].to_pylist()), pa.bool_()))


def _score(tokens_per_batch: int, column: str, policy: "FrozenPolicy", rows: list[Row]) -> list[Outcome]:
    articles = [(row["prompt_ids"], [summary["token_ids"] for summary in row["summaries"]]) for row in rows]
    # The divergence is that of everything the policy samples, so thoughts count, whatever training counts.
    unscored = [[unscored_tokens(summary) for summary in row["summaries"]] for row in rows]
    return [{column: values} for values in policy.logps(articles, tokens_per_batch, unscored)]
