"""Pairs: an article's scored summaries become chosen and rejected.

A tie gives no pair. A summary cut off by the token limit is never paired: it has no stop token, and its shortness is
not its merit. Left out: what is better (`preference.py`), and log-probabilities (`references.py`).
"""

import hashlib
import random
from functools import partial
from itertools import combinations

from ray.data import Dataset

from judges.base import Skip
from pipeline.config import Pairs
from pipeline.preference import prefer
from pipeline.rows import Outcome, Row, each
from pipeline.stage import stage


@stage("pairs", version=1, settings=("pairs", "seed"), writes=("pairs",))
def pair(rows: Dataset, pairs: Pairs, seed: int = 0) -> Dataset:
    """Add `pairs`, indices into `summaries`, to each article that has any."""
    return each(rows, partial(_pair, pairs, seed), pair.writes)


def _pair(settings: Pairs, seed: int, row: Row) -> Outcome:
    scores = row["scores"]
    usable = [i for i, summary in enumerate(row["summaries"]) if _usable(summary, scores[i], settings)]
    if len(usable) < 2:
        return Skip("under two usable summaries")
    found = []
    for a, b in combinations(usable, 2):
        wins = prefer(scores[a], scores[b], settings)
        if wins:
            chosen, rejected = (a, b) if wins > 0 else (b, a)
            reason = _reason(scores[chosen], scores[rejected])
            found.append({"chosen": chosen, "rejected": rejected, "reason": reason})
    if not found:
        return Skip("all ties")
    # Drawn by the article's id, not by its place in the table: any re-run draws the same.
    digest = hashlib.sha256(f"{seed}\n{row['article_id']}".encode()).digest()
    drawn = random.Random(digest).sample(found, min(settings.max_per_article, len(found)))
    return {"pairs": drawn, "tally": {"pairs": len(drawn), "pairs found": len(found)}}


def _usable(summary: Row, score: Row, settings: Pairs) -> bool:
    return (
        summary["finish_reason"] == "stop"
        and settings.min_words <= score["words"] < settings.max_words
        and score["invalid_chars"] == 0
        and score["unread"] == 0
    )


def _reason(chosen: Row, rejected: Row) -> str:
    right = f"{chosen['correct']} against {rejected['correct']} right"
    return f"{right}, {chosen['words']} against {rejected['words']} words"
