"""Chooses examples for the report: held-out articles with the summaries before and after training."""

from collections.abc import Sequence
from typing import Any

from pipeline.evaluation.round_result import Round
from pipeline.storage import tables
from pipeline.storage.ledger import Ledger
from pipeline.storage.schema import Row


def choose_examples(rounds_so_far: Sequence[Round], ledger: Ledger, count: int = 1) -> list[dict[str, Any]]:
    """Choose held-out articles, with the summaries of the base policy and of the last policy.

    Articles are ordered by the gain in right answers, and those around the median are chosen, not the best ones: the
    examples should be typical.
    """
    first, last = rounds_so_far[0], rounds_so_far[-1]
    if last.policy is first.policy:
        return []  # nothing was trained
    before = {row["article_id"]: row for row in tables.read_table(ledger, first.results)}
    after = {row["article_id"]: row for row in tables.read_table(ledger, last.results)}

    def loss(article_id: str) -> int:
        return _right_answers(before[article_id]) - _right_answers(after[article_id])

    article_ids = sorted(before.keys() & after.keys(), key=lambda article_id: (loss(article_id), article_id))
    start = max(0, (len(article_ids) - count) // 2)
    return [_example(before[i], after[i]) for i in article_ids[start : start + count]]


def _example(before: Row, after: Row) -> dict[str, Any]:
    return {
        "id": before["article_id"],
        "article": before["article"],
        "questions": before["questions"],
        "before": before["summaries"][0]["text"].strip(),
        "after": after["summaries"][0]["text"].strip(),
        "before_score": before["scores"][0],
        "after_score": after["scores"][0],
    }


def _right_answers(row: Row) -> int:
    return row["scores"][0]["correct"]
