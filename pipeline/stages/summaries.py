"""The stages `summaries`, `exam`, `leads` and `extracts`: summaries of articles, by a policy or without one.

For training it samples several summaries of each article, from one prompt with one prefill. For evaluation it writes
one greedy summary of each held-out article. The base policy's evaluation also has two baselines that learned nothing:
the article's lead, and the base's own summary cut short. `inference/sampling.py` samples from a policy.
"""

import random
from dataclasses import replace
from functools import partial
from typing import Any

from ray.data import Dataset

from judges.base import Prompt, Skip
from judges.text.sentences import join_sentences, split_sentences
from judges.text.words import count_words, first_words
from pipeline.config.run import Baselines, PolicySettings, Summaries
from pipeline.inference.base import SUMMARIES, Engine
from pipeline.inference.pool import EnginePool
from pipeline.inference.sampling import SAMPLED, instruction_prompt, sample_dataset, sample_rows
from pipeline.stages.base import stage
from pipeline.storage.schema import Outcome, Row, map_rows

BASELINES = ("lead", "shorten-only")  # they follow the base's summary in this order
EXTRACTS = 6  # random extracts of an article, on which a judge is tried without a policy
_BASE_COLUMNS = ("base_writer", "base_summaries", "base_scores")

_summaries = partial(
    stage,
    "summaries",
    version=3,
    inputs=("rows", "policy.build"),
    settings=("summaries", "policy", "seed"),
    uses=("policy_engine",),
    splits=("train",),
    limits=("summaries.max_skipped",),
    workload="sampling",
)
_exam = partial(
    stage,
    "exam",
    version=2,
    inputs=("rows", "policy.build"),
    uses=("policy_engine",),
    splits=("eval",),
    limits=("evaluation.max_skipped",),
    workload="sampling",
)


@_summaries(writes=SAMPLED)
def sample_summaries(
    rows: Dataset, writer: str, *, summaries: Summaries, policy: PolicySettings, seed: int, policy_engine: EnginePool
) -> Dataset:
    """Add `summaries`, sampled from the current policy, to each training article.

    Args:
        rows: training articles with questions.
        writer: the build id of the policy that `policy_engine` runs.
    """
    return sample_dataset(rows, sampling_prompt(policy, summaries), writer, policy_engine, summaries.temperatures, seed)


def sampling_prompt(policy: PolicySettings, summaries: Summaries) -> Prompt:
    """The prompt of every sampled summary. The temperature is left to `sample_dataset`, as there may be several."""
    return replace(
        instruction_prompt(policy, summaries.max_tokens),
        top_p=summaries.top_p,
        top_k=summaries.top_k,
        min_p=summaries.min_p,
        repetition_penalty=summaries.repetition_penalty,
        stop=summaries.stop,
        n=summaries.n,
        logprobs=summaries.logprobs,
    )


@_summaries(writes=(*_BASE_COLUMNS, *SAMPLED))
def sample_beside_base(rows: Dataset, writer: str, **kwargs: Any) -> Dataset:
    """`sample_summaries` of articles that have scored summaries by the base, which are kept as `base_…` columns."""
    return sample_summaries(map_rows(rows, _move_to_base_columns, _BASE_COLUMNS), writer, **kwargs)


def _move_to_base_columns(row: Row) -> Row:
    return {"base_writer": row["writer"], "base_summaries": row["summaries"], "base_scores": row["scores"]}


@_exam(settings=("evaluation.max_tokens", "policy", "seed"), writes=SAMPLED)
def summarize_heldout(
    rows: Dataset, writer: str, *, max_tokens: int, policy: PolicySettings, seed: int, policy_engine: EnginePool
) -> Dataset:
    """Add `summaries`, one greedy summary each, to the held-out articles.

    Args:
        rows: held-out articles with questions.
        writer: the build id of the policy that `policy_engine` runs.
    """
    prompt = instruction_prompt(policy, max_tokens)
    return policy_engine.map(rows, partial(sample_rows, prompt, writer), SAMPLED)


@_exam(settings=("evaluation.max_tokens", "policy", "seed"), writes=(*_BASE_COLUMNS, *SAMPLED))
def summarize_beside_base(rows: Dataset, writer: str, **kwargs: Any) -> Dataset:
    """`summarize_heldout` of articles with the base's evaluation, which is kept as `base_…` columns.

    A judge that compares summaries compares with the base's.
    """
    return summarize_heldout(map_rows(rows, _move_to_base_columns, _BASE_COLUMNS), writer, **kwargs)


@_exam(settings=("evaluation.max_tokens", "policy", "baselines", "seed"), writes=SAMPLED)
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
    """`summarize_heldout` by the base policy. The summaries of `BASELINES` follow the base's own."""
    prompt = instruction_prompt(policy, max_tokens)
    return policy_engine.map(rows, partial(_sample_with_baselines, prompt, writer, baselines), SAMPLED)


def _sample_with_baselines(
    prompt: Prompt, writer: str, baselines: Baselines, engine: Engine, rows: list[Row]
) -> list[Outcome]:
    outcomes = sample_rows(prompt, writer, engine, rows)
    for row, outcome in zip(rows, outcomes, strict=True):
        if not isinstance(outcome, Skip):
            (summary,) = outcome["summaries"]
            outcome["summaries"] = [summary, *_baseline_summaries(row["article"], summary, baselines)]
            outcome["tally"][SUMMARIES] += len(BASELINES)
    return outcomes


def _baseline_summaries(article: str, summary: Row, baselines: Baselines) -> list[Row]:
    lead = _unsampled(first_sentences(article, baselines.lead_sentences))
    shortened = _unsampled(shorten(summary["text"], baselines.shorten_to))
    # If the token limit cut off the summary, its beginning is unfinished too, and must not win either.
    return [lead, shortened | {"finish_reason": summary["finish_reason"]}]


@stage("leads", version=1, inputs=("rows",), settings=("baselines.lead_sentences",), writes=SAMPLED)
def lead_baseline(rows: Dataset, *, lead_sentences: int) -> Dataset:
    """Add each article's lead as its summary. A judge is tried on these summaries when there is no policy."""
    return map_rows(rows, partial(_lead_as_summary, lead_sentences), SAMPLED)


def _lead_as_summary(sentences: int, row: Row) -> Row:
    lead = first_sentences(row["article"], sentences)
    return {"writer": BASELINES[0], "prompt_ids": [], "summaries": [_unsampled(lead)]}


@stage("extracts", version=1, inputs=("rows",), settings=("baselines.lead_sentences", "seed"), writes=("summaries",))
def add_extracts(rows: Dataset, *, lead_sentences: int, seed: int) -> Dataset:
    """Add `EXTRACTS` random extracts to each article's lead, so that a judge without a policy has summaries to compare.

    Each sentence of the article is in an extract with the same probability, independently of the others, so that an
    extract has as many sentences as the lead on average. Then two questions about different sentences agree by chance
    only. A score that counts sentences is a coin, and a score is better if its questions agree about what matters.
    """
    return map_rows(rows, partial(_with_extracts, lead_sentences, seed), add_extracts.writes)


def _with_extracts(count: int, seed: int, row: Row) -> Row:
    sentences = split_sentences(row["article"])
    rng = random.Random(f"{seed}\n{row['article_id']}")
    share = min(0.5, count / max(1, len(sentences)))  # of a short article, at most half
    drawn = (join_sentences([each for each in sentences if rng.random() < share]) for _ in range(EXTRACTS))
    texts = [row["summaries"][0]["text"], *filter(None, drawn)]
    return {"summaries": [_unsampled(text) for text in texts], "tally": {SUMMARIES: len(texts)}}


def _unsampled(text: str) -> Row:
    return {"text": text, "token_ids": [], "finish_reason": "stop"}


def first_sentences(article: str, sentences: int) -> str:
    """The first sentences of an article, a baseline that is hard to beat in news."""
    return join_sentences(split_sentences(article)[:sentences])


def shorten(summary: str, share: float) -> str:
    """The first `share` of a summary's words, at least one word. The result is shorter, but not better."""
    return first_words(summary, max(1, int(count_words(summary) * share)))
