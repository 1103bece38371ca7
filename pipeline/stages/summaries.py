"""Summaries: the current policy samples several of each training article, in one prompt with one prefill.

Left out: how a policy is asked and what is kept of its replies (`sampling.py`); held-out articles (`evaluation.py`).
"""

import re
from functools import partial
from typing import Any

from ray.data import Dataset

from judges.base import Prompt, Skip, user
from pipeline.config.run import Baselines, PolicySettings, Summaries
from pipeline.inference.base import Engine
from pipeline.inference.pool import EnginePool
from pipeline.inference.sampling import SAMPLED, sample_dataset, sample_rows
from pipeline.stages.base import stage
from pipeline.storage.schema import Outcome, Row, map_rows

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
def sample_summaries(
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
def sample_beside_base(rows: Dataset, writer: str, **kwargs: Any) -> Dataset:
    """`write`, of articles that come with scored summaries by the base: those are kept, as `base_…`."""
    return sample_summaries(map_rows(rows, _put_beside, _BESIDE), writer, **kwargs)


def _put_beside(row: Row) -> Row:
    return {"base_writer": row["writer"], "base_summaries": row["summaries"], "base_scores": row["scores"]}


BASELINES = ("lead", "shorten-only")  # in this order after the base's summary


_exam = partial(
    stage,
    "exam",
    version=2,
    uses=("policy_engine",),
    writes=SAMPLED,
    split="eval",
    limits=("evaluation.max_skipped",),
)


@_exam(settings=("evaluation.max_tokens", "policy", "seed"))
def summarize_heldout(
    rows: Dataset, writer: str, *, max_tokens: int, policy: PolicySettings, seed: int, policy_engine: EnginePool
) -> Dataset:
    """Add `summaries`, of one each, to the held-out articles.

    Args:
        rows: held-out articles with questions.
        writer: the build id of the policy that `policy_engine` runs.
    """
    return policy_engine.map(rows, partial(_sit, Prompt(user(policy.instruction), max_tokens), writer, None), SAMPLED)


@_exam(settings=("evaluation.max_tokens", "policy", "baselines", "seed"))
def summarize_heldout_with_baselines(
    rows: Dataset,
    writer: str,
    *,
    max_tokens: int,
    policy: PolicySettings,
    baselines: Baselines,
    seed: int,
    policy_engine: EnginePool,
) -> Dataset:
    """`sit`, of the base policy: after its summary come those of `BASELINES`."""
    prompt = Prompt(user(policy.instruction), max_tokens)
    return policy_engine.map(rows, partial(_sit, prompt, writer, baselines), SAMPLED)


def _sit(prompt: Prompt, writer: str, baselines: Baselines | None, engine: Engine, rows: list[Row]) -> list[Outcome]:
    outcomes = sample_rows(prompt, writer, engine, rows)
    for row, outcome in zip(rows, outcomes, strict=True):
        if baselines and not isinstance(outcome, Skip):
            led = first_sentences(row["article"], baselines.lead_sentences)
            whole = outcome["summaries"][0]
            # The beginning of a summary that was cut off is as unfinished, and wins as little.
            short = _unsampled(shorten(whole["text"], baselines.shorten_to)) | {"finish_reason": whole["finish_reason"]}
            outcome["summaries"] += [_unsampled(led), short]
            outcome["tally"]["summaries"] += len(BASELINES)
    return outcomes


@stage("leads", version=1, settings=("baselines.lead_sentences",), writes=SAMPLED)
def lead_baseline(rows: Dataset, *, lead_sentences: int) -> Dataset:
    """Each article's lead for a summary: what a judge is tried on when there is no policy."""
    return map_rows(rows, partial(_recite, lead_sentences), SAMPLED)


def _recite(sentences: int, row: Row) -> Row:
    return {
        "writer": BASELINES[0],
        "prompt_ids": [],
        "summaries": [_unsampled(first_sentences(row["article"], sentences))],
    }


def _unsampled(text: str) -> Row:
    return {"text": text, "token_ids": [], "finish_reason": "stop"}


def first_sentences(article: str, sentences: int) -> str:
    """The first sentences of an article: hard to beat in news."""
    return " ".join(re.split(r"(?<=[.!?])\s+", article.strip())[:sentences])


def shorten(summary: str, share: float) -> str:
    """The first `share` of a summary's words, at least one: no better a summary, only a shorter one."""
    words = summary.split()
    return " ".join(words[: max(1, int(len(words) * share))])
