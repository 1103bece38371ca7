"""Examples for the report: what is typical of before and after, with articles in the middle by questions gained.

Left out: everything that is counted (`report.py`).
"""

from collections.abc import Sequence
from typing import Any

from pipeline.evaluation.round_result import Round
from pipeline.storage import tables
from pipeline.storage.ledger import Ledger
from pipeline.storage.schema import Row


def choose_examples(played: Sequence[Round], ledger: Ledger, count: int = 1) -> list[dict[str, Any]]:
    """Held-out articles with the base's summary and the last policy's: those in the middle by questions gained."""
    before, after = played[0], played[-1]
    if after.policy is before.policy:
        return []  # nothing was trained
    old = {r["article_id"]: r for r in tables.read_table(ledger, before.results)}
    new = {r["article_id"]: r for r in tables.read_table(ledger, after.results)}
    both = sorted(set(old) & set(new), key=lambda i: (-_right(new[i]) + _right(old[i]), i))
    # The median article, not the best: a report shows what is typical.
    start = max(0, (len(both) - count) // 2)
    return [
        {
            "id": i,
            "article": old[i]["article"],
            "questions": old[i]["questions"],
            "before": old[i]["summaries"][0]["text"].strip(),
            "after": new[i]["summaries"][0]["text"].strip(),
            "before_score": old[i]["scores"][0],
            "after_score": new[i]["scores"][0],
        }
        for i in both[start : start + count]
    ]


def _right(row: Row) -> int:
    return row["scores"][0]["correct"]
