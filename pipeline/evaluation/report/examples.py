"""Chooses examples for the report: held-out articles with the summaries before and after training."""

from collections.abc import Sequence
from typing import Any

from pipeline.evaluation.round_result import Round
from pipeline.judging.preference import judged_value
from pipeline.storage import tables
from pipeline.storage.ledger import Ledger
from pipeline.storage.schema import Row


def choose_examples(rounds_so_far: Sequence[Round], ledger: Ledger, count: int = 1) -> list[dict[str, Any]]:
    """Choose held-out articles, with the summaries of the base policy and of the last policy.

    Articles are ordered by the gain in right answers, or in the judge's score. Those around the median are chosen, not
    the best ones: the examples should be typical.
    """
    first, last = rounds_so_far[0], rounds_so_far[-1]
    if last.policy is first.policy:
        return []  # nothing was trained
    before = {row["article_id"]: row for row in tables.read_table(ledger, first.results)}
    after = {row["article_id"]: row for row in tables.read_table(ledger, last.results)}

    def loss(article_id: str) -> float:
        return judged_value(before[article_id]["scores"][0]) - judged_value(after[article_id]["scores"][0])

    both = [i for i in before.keys() & after.keys() if not (_has_no_value(before[i]) or _has_no_value(after[i]))]
    article_ids = sorted(both, key=lambda article_id: (loss(article_id), article_id))
    start = max(0, (len(article_ids) - count) // 2)
    return [_example(before[i], after[i]) for i in article_ids[start : start + count]]


def _has_no_value(row: Row) -> bool:
    """Whether a judge that gives scores has none here. An exam counts right answers, even if others are unread."""
    score = row["scores"][0]
    return bool(score["unread"]) and not score["answers"]


def _example(before: Row, after: Row) -> dict[str, Any]:
    return {
        "id": before["article_id"],
        "article": before["article"],
        "questions": before["questions"],
        "before": before["summaries"][0]["text"].strip(),
        "after": after["summaries"][0]["text"].strip(),
        "before_score": _describe_score(before),
        "after_score": _describe_score(after),
    }


def _describe_score(row: Row) -> str:
    """A score in words, such as `4 of 5 right, 31 words`."""
    score = row["scores"][0]
    if row["questions"] and score.get("weights") is None:
        judged = f"{score['correct']} of {len(row['questions'])} right"
    else:
        judged = "score unread" if score.get("value") is None else f"score {score['value']:.3g}"
    return f"{judged}, {score['words']} words"
