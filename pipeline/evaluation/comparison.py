"""Evaluation: the summaries of an exam, judged, and compared by two rules.

Left out: writing them (`exam.py`), which of two wins (`preference.py`), intervals (`stats.py`), drawing (`report.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.config.run import Pairs, Report
from pipeline.evaluation.win_rate import WinRate, win_rate
from pipeline.judging.preference import Rule, evaluation_rules
from pipeline.storage.schema import Row


def single_summary_rows(rows: Sequence[Row], place: int) -> list[Row]:
    """The rows of an evaluation as if they had one summary, that at `place`, which they note."""
    return [
        row | {name: row[name][place : place + 1] for name in ("summaries", "scores")} | {"place": place}
        for row in rows
    ]


def compare_writers(
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
        for name, rule in evaluation_rules(pairs).items()
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


def judge_agreement(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, Any]:
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


def describe_writer(rows: Sequence[Row], settings: Report, threshold: int) -> dict[str, Any]:
    """The reference setting's table for one writer. Compression is the summary's words over the article's.

    Articles with an unread answer are counted in `unread`, and left out of the rest. `accuracy` is the share with
    `threshold` or more right, as `pairs.threshold` says, and `accuracy_above` that with more than so many.
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
        "accuracy": float((correct >= threshold).mean()),
        "accuracy_above": float((correct > threshold).mean()),
        "words_median": float(np.median(words)),
        "compression_median": float(np.median(compression)),
        "compression_mean": float(compression.mean()),
        "too_long": float((words >= settings.max_words).mean()),
        "cut_off": float(np.mean([_cut_off(row) for row in read])),
        "empty": float((words == 0).mean()),
        "invalid_chars": float(np.mean([score["invalid_chars"] > 0 for score in scores])),
    }
