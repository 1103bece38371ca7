"""Evaluation: greedy summaries of held-out articles, judged, and compared by two rules.

Beside the policy stand two baselines that learned nothing: the article's lead, and the base's own summaries cut short.
Left out: which of two summaries wins (`preference.py`), intervals (`stats.py`), drawing (`report.py`).
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from judges.base import Prompt, user
from pipeline.config import Baselines, Evaluation, Pairs, Policy, Report
from pipeline.config import Judge as JudgeSettings
from pipeline.engines.pool import Pool
from pipeline.judging import make_judge, score_summaries
from pipeline.preference import Rule, rules
from pipeline.rows import COLUMNS, Row, each
from pipeline.sampling import SAMPLED, sample
from pipeline.stage import stage
from pipeline.stats import WinRate, win_rate

LEAD, SHORTEN = "lead", "shorten-only"


_SETTINGS = ("evaluation", "policy", "judge", "seed")
_exam = partial(
    stage,
    "evaluation",
    version=3,
    contents=("judge.model",),
    uses=("policy_engine", "judge_engine", "together"),
    writes=(*SAMPLED, "scores"),
    split="eval",
    limits=("evaluation.max_skipped", "scores.max_unread"),
)


@_exam(settings=_SETTINGS)
def evaluate(
    rows: Dataset,
    writer: str,
    *,
    evaluation: Evaluation,
    policy: Policy,
    judge: JudgeSettings,
    seed: int,
    policy_engine: Pool,
    judge_engine: Pool,
    together: bool,
    baselines: Baselines | None = None,
) -> Dataset:
    """One row per held-out article: the policy's greedy summary and its score.

    Args:
        rows: held-out articles with questions.
        writer: the build id of the policy that `policy_engine` runs.
        together: whether policy and judge run at the same time; else one is gone before the other starts.
        baselines: with them, a row per article for each of lead-n and shorten-only too.
    """
    prompt = Prompt(user(policy.instruction), evaluation.max_tokens)
    written = sample(rows, prompt, writer, policy_engine)
    if not together:
        written = written.materialize()
    if baselines:
        written = written.map_batches(partial(_add_baselines, baselines), batch_format="pyarrow")
    step = partial(score_summaries, make_judge(judge, seed), again=evaluation.ask_again)
    return judge_engine.map(written, step, ("scores",))


@_exam(settings=(*_SETTINGS, "baselines"))
def evaluate_base(*args: Any, **kwargs: Any) -> Dataset:
    """`evaluate`, of the base policy and beside it the baselines."""
    return evaluate(*args, **kwargs)


@stage(
    "evaluation",
    version=2,
    settings=("judge", "baselines", "seed"),
    contents=("judge.model",),
    uses=("judge_engine",),
    writes=(*SAMPLED, "scores"),
)
def evaluate_leads(
    rows: Dataset, *, judge: JudgeSettings, baselines: Baselines, seed: int, judge_engine: Pool
) -> Dataset:
    """A judge without a policy: it scores each article's lead, and again with the options in another order."""
    led = each(rows, partial(_lead, baselines.lead_sentences), SAMPLED)
    return judge_engine.map(led, partial(score_summaries, make_judge(judge, seed), again=1.0), ("scores",))


def _lead(sentences: int, row: Row) -> Row:
    led = _written(row, LEAD, lead(row["article"], sentences))
    return {name: led[name] for name in SAMPLED}


def _add_baselines(settings: Baselines, table: pa.Table) -> pa.Table:
    rows = []
    for row in table.to_pylist():
        rows.append(row)
        if row["skipped"] is None:
            text = row["summaries"][0]["text"]
            rows.append(_written(row, LEAD, lead(row["article"], settings.lead_sentences)))
            rows.append(_written(row, SHORTEN, shorten(text, settings.shorten_to)))
    return pa.table({name: pa.array([row[name] for row in rows], COLUMNS[name]) for name in table.column_names})


def _written(row: Row, writer: str, text: str) -> Row:
    summary = {"text": text, "token_ids": [], "finish_reason": "stop"}
    return row | {"writer": writer, "prompt_ids": [], "summaries": [summary], "tally": []}


def lead(article: str, sentences: int) -> str:
    """The first sentences of an article: hard to beat in news."""
    return " ".join(re.split(r"(?<=[.!?])\s+", article.strip())[:sentences])


def shorten(summary: str, share: float) -> str:
    """The first `share` of a summary's words, at least one: no better a summary, only a shorter one."""
    words = summary.split()
    return " ".join(words[: max(1, int(len(words) * share))])


def compare(
    ours: Sequence[Row], theirs: Sequence[Row], pairs: Pairs, settings: Report, seed: int
) -> dict[str, WinRate | None]:
    """Win rates of `ours` over `theirs` by each rule. Arguments as of `verdicts`."""
    return {
        name: win_rate(
            list(verdicts(ours, theirs, pairs, rule).values()),
            resamples=settings.resamples,
            confidence=settings.confidence,
            seed=seed,
        )
        for name, rule in rules(pairs).items()
    }


def verdicts(ours: Sequence[Row], theirs: Sequence[Row], pairs: Pairs, rule: Rule) -> dict[str, int]:
    """1, 0 or -1 by article id, on the articles that both have with every answer read.

    A summary that the token limit cut off never wins: it is short because it is unfinished.

    Args:
        ours, theirs: rows of evaluations, one per article.
    """
    other = {row["article_id"]: row for row in theirs}
    both = [
        (row, other[row["article_id"]])
        for row in sorted(ours, key=lambda row: row["article_id"])
        if row["article_id"] in other
    ]
    return {
        a["article_id"]: _verdict(rule(a["scores"][0], b["scores"][0], pairs), a, b)
        for a, b in both
        if a["scores"][0]["unread"] == b["scores"][0]["unread"] == 0
    }


def agree(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, Any]:
    """How far two judges agree on who wins, from their verdicts by article id.

    Returns:
        `n` articles with two verdicts, the share with the `same` one; `decided`, those without a tie by either, and
        the share of them with the `same_winner`. A share of nothing is None.
    """
    both = [(one[article], other[article]) for article in one if article in other]
    decided = [(a, b) for a, b in both if a and b]
    return {
        "n": len(both),
        "same": float(np.mean([a == b for a, b in both])) if both else None,
        "decided": len(decided),
        "same_winner": float(np.mean([a == b for a, b in decided])) if decided else None,
    }


def _verdict(verdict: int, ours: Row, theirs: Row) -> int:
    winner = {1: ours, -1: theirs}.get(verdict)
    return 0 if winner is not None and _cut_off(winner) else verdict


def _cut_off(row: Row) -> bool:
    return row["summaries"][0]["finish_reason"] == "length"


def describe(rows: Sequence[Row], settings: Report) -> dict[str, Any]:
    """The reference setting's table for one writer. Compression is the summary's words over the article's.

    Articles with an unread answer are counted in `unread`, and left out of the rest.
    """
    read = [row for row in rows if row["scores"][0]["unread"] == 0]
    scores = [row["scores"][0] for row in read]
    if not scores:
        return {"n": 0, "unread": len(rows)}
    correct = np.array([score["correct"] for score in scores])
    words = np.array([score["words"] for score in scores])
    compression = words / np.array([max(1, len(row["article"].split())) for row in read])
    return {
        "n": len(scores),
        "unread": len(rows) - len(read),
        "questions_mean": float(np.mean([len(score["answers"]) for score in scores])),
        "correct_mean": float(correct.mean()),
        "accuracy_ge_3": float((correct >= 3).mean()),
        "accuracy_ge_4": float((correct >= 4).mean()),
        "words_median": float(np.median(words)),
        "compression_median": float(np.median(compression)),
        "compression_mean": float(compression.mean()),
        "too_long": float((words >= settings.max_words).mean()),
        "cut_off": float(np.mean([_cut_off(row) for row in read])),
        "empty": float((words == 0).mean()),
        "invalid_chars": float(np.mean([score["invalid_chars"] > 0 for score in scores])),
    }
