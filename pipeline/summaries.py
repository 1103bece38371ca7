"""Summaries: the current policy samples several of each training article, in one prompt with one prefill.

Left out: how a policy is asked and what is kept of its replies (`sampling.py`); held-out articles (`evaluation.py`).
"""

from ray.data import Dataset

from judges.base import Prompt, user
from pipeline.config import Policy, Summaries
from pipeline.engines.pool import Pool
from pipeline.sampling import SAMPLED, sample
from pipeline.stage import stage


@stage(
    "summaries",
    version=2,
    settings=("summaries", "policy", "seed"),
    uses=("policy_engine",),
    writes=SAMPLED,
    split="train",
    limits=("summaries.max_skipped",),
)
def write(
    rows: Dataset, writer: str, *, summaries: Summaries, policy: Policy, seed: int, policy_engine: Pool
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
    return sample(rows, prompt, writer, policy_engine)
