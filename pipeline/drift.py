"""Drift: how far the policy that wrote for a round has gone from the base, as KL(policy || base) on what it sampled.

Of one article in 16 the trainer's code scores the sampled token ids twice, by the policy that wrote them and by the
base. The mean difference estimates the KL, without bias where summaries were drawn at temperature 1 and top_p 1; drawn
otherwise it is the mean over what was drawn. Left out: a round whose writer is the base, and the policy that the round
trains, which has sampled nothing yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from pipeline.config.hardware import TrainerHardware
from pipeline.inference.pool import EnginePool
from pipeline.stage import stage
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
def compare_with_base(
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
    by_policy, by_base = (partial(_score, trainer.tokens_per_batch, column) for column in compare_with_base.writes)
    # One after the other: a device that holds one model need not hold two.
    scored = materialize(scorer.map(some, by_policy, compare_with_base.writes[:1]))
    return base_scorer.map(scored, by_base, compare_with_base.writes[1:])


def is_compared(article_id: str) -> bool:
    """Whether an article is one of those, one in 16, on which the policy is compared with the base."""
    return is_drawn(article_id, COMPARED)


def _compared(table: pa.Table) -> pa.Table:
    return table.filter(pa.array(map(is_compared, table["article_id"].to_pylist()), pa.bool_()))


def _score(tokens_per_batch: int, column: str, model: "PreTrainedModel", rows: list[Row]) -> list[Outcome]:
    from pipeline.training.modeling.logprobs import frozen_logps

    articles = [(row["prompt_ids"], [summary["token_ids"] for summary in row["summaries"]]) for row in rows]
    return [{column: values} for values in frozen_logps(model, articles, tokens_per_batch)]


@dataclass(frozen=True)
class Drift:
    """KL of a policy to the base, in nats, each with its standard error (None of a single article).

    Attributes:
        articles: that were looked at.
        per_summary, per_summary_error: the mean over summaries of log policy - log base.
        per_token, per_token_error: its sum over all summaries, by their tokens.
    """

    articles: int
    per_summary: float
    per_summary_error: float | None
    per_token: float
    per_token_error: float | None


def estimate(rows: Sequence[Row]) -> Drift | None:
    """The estimate from rows of the `drift` table; None where there are none.

    The article is the unit: its summaries answer one prompt and are not independent. Errors are of means over
    articles, and of a ratio of such means (Cochran, 1977, chapter 6).
    """
    if not rows:
        return None
    gaps, tokens, counts = np.array(
        [
            (
                sum(ours - base for ours, base in zip(row["policy_logps"], row["base_logps"], strict=True)),
                sum(len(s["token_ids"]) for s in row["summaries"]),
                len(row["summaries"]),
            )
            for row in rows
        ],
        dtype=float,
    ).T
    summary, summary_error = _ratio(gaps, counts)
    token, token_error = _ratio(gaps, tokens)
    return Drift(len(rows), summary, summary_error, token, token_error)


def _ratio(above: np.ndarray, below: np.ndarray) -> tuple[float, float | None]:
    """sum(above) / sum(below) of (articles,) values, and its standard error."""
    n, ratio = len(above), float(above.sum() / below.sum())
    if n < 2:
        return ratio, None
    spread = float(np.sqrt(((above - ratio * below) ** 2).sum() / (n - 1)))
    return ratio, spread / float(np.sqrt(n) * below.mean())
