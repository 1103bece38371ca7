"""Pairs: an article's scored summaries become chosen and rejected.

A tie gives no pair. A summary cut off by the token limit is never paired: it has no stop token, and its shortness is
not its merit. Left out: what is better (`preference.py`), which of the pairs are taken (`selection.py`), and
log-probabilities (`references.py`).
"""

import hashlib
import random
import sys
from functools import partial
from itertools import combinations

from ray import cloudpickle
from ray.data import Dataset

from judges.base import Skip
from pipeline.config import Pairs
from pipeline.preference import SHIPPED, Rule, preference
from pipeline.rows import Outcome, Row, each
from pipeline.selection import SELECTIONS, weights
from pipeline.stage import stage


@stage("pairs", version=2, settings=("pairs", "seed"), contents=("pairs.preference",), writes=("pairs",))
def pair(rows: Dataset, pairs: Pairs, seed: int = 0) -> Dataset:
    """Add `pairs`, indices into `summaries`, to each article that has any."""
    rule = preference(pairs)
    if pairs.preference not in SHIPPED:
        # The user's module may be on this machine alone: it goes to the workers as it is.
        cloudpickle.register_pickle_by_value(sys.modules[pairs.preference.partition(":")[0]])
    return each(rows, partial(_pair, rule, pairs, seed), pair.writes)


def _pair(rule: Rule, settings: Pairs, seed: int, row: Row) -> Outcome:
    scores = row["scores"]
    usable = [i for i, summary in enumerate(row["summaries"]) if _usable(summary, scores[i], settings)]
    if len(usable) < 2:
        return Skip("under two usable summaries")
    verdicts = {(a, b): rule(scores[a], scores[b], settings) for a, b in combinations(usable, 2)}
    found = [(a, b) if wins > 0 else (b, a) for (a, b), wins in verdicts.items() if wins]
    if not found:
        return Skip("all ties")
    # By the article's id, not by its place in the table: any re-run draws the same.
    digest = hashlib.sha256(f"{seed}\n{row['article_id']}".encode()).digest()
    taken = SELECTIONS[settings.selection](found, scores, settings.max_per_article, random.Random(digest))
    mean = 1 / len(taken) if settings.selection == "all" else 1.0
    made = [
        {"chosen": c, "rejected": r, "reason": _reason(scores[c], scores[r]), "weight": weight}
        for (c, r), weight in zip(taken, weights(taken, scores, mean, settings.weighting), strict=True)
    ]
    return {"pairs": made, "tally": {"pairs": len(made), "pairs found": len(found)}}


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
