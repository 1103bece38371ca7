"""Summaries: the current policy samples several of each training article, in one prompt with one prefill.

Left out: how a policy is asked and what is kept of its replies (`sampling.py`); held-out articles (`evaluation.py`).
"""

from functools import partial
from typing import Any

from ray.data import Dataset

from judges.base import Prompt, user
from pipeline.config.run import PolicySettings, Summaries
from pipeline.inference.pool import EnginePool
from pipeline.inference.sampling import SAMPLED, sample_dataset
from pipeline.stage import stage
from pipeline.storage.schema import Row, map_rows

_BESIDE = ("base_writer", "base_summaries", "base_scores")
_summaries = partial(
    stage,
    "summaries",
    version=3,
    settings=("summaries", "policy", "seed"),
    uses=("policy_engine",),
    split="train",
    limits=("summaries.max_skipped",),
)


@_summaries(writes=SAMPLED)
def write(
    rows: Dataset, writer: str, *, summaries: Summaries, policy: PolicySettings, seed: int, policy_engine: EnginePool
) -> Dataset:
    """Add `summaries` by the current policy to each article.

    Args:
        rows: training articles with questions.
        writer: the build id of the policy that `policy_engine` runs.
    """
    prompt = Prompt(
        messages=user(policy.instruction),
        max_tokens=summaries.max_tokens,
        temperature=summaries.temperature,
        top_p=summaries.top_p,
        n=summaries.n,
        logprobs=summaries.logprobs,
    )
    return sample_dataset(rows, prompt, writer, policy_engine)


@_summaries(writes=(*_BESIDE, *SAMPLED))
def write_beside(rows: Dataset, writer: str, **kwargs: Any) -> Dataset:
    """`write`, of articles that come with scored summaries by the base: those are kept, as `base_…`."""
    return write(map_rows(rows, _put_beside, _BESIDE), writer, **kwargs)


def _put_beside(row: Row) -> Row:
    return {"base_writer": row["writer"], "base_summaries": row["summaries"], "base_scores": row["scores"]}
