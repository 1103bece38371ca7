"""Pairs: an article's scored summaries become chosen and rejected.

A tie gives no pair. A summary cut off by the token limit is never paired: it has no stop token, and its shortness is
not its merit. Left out: what is better (`preference.py`), which of the pairs are taken (`selection.py`), and
log-probabilities (`references.py`).
"""

import hashlib
import random
import sys
from collections.abc import Sequence
from functools import partial, reduce
from itertools import combinations, product

import pyarrow as pa
from ray import cloudpickle
from ray.data import Dataset

from judges.base import Skip
from pipeline.config.run import Pairs
from pipeline.data.merge_rows import mark_writer, merge_rows
from pipeline.judging.pair_selection import SELECTIONS, pair_weights
from pipeline.judging.preference import RULES, Rule, load_preference
from pipeline.stages.base import stage
from pipeline.storage.schema import COLUMNS, Outcome, Row, map_rows

_pairs = partial(stage, "pairs", version=2, settings=("pairs", "seed"), contents=("pairs.preference",))


@_pairs(writes=("pairs",))
def make_pairs(rows: Dataset, pairs: Pairs, seed: int = 0) -> Dataset:
    """Add `pairs`, indices into `summaries`, to each article that has any."""
    return map_rows(rows, partial(_pair, _rule(pairs), pairs, seed), make_pairs.writes)


@_pairs(writes=("summaries", "scores", "base_summaries", "base_scores", "pairs"))
def make_pairs_with_base(rows: Dataset, pairs: Pairs, seed: int = 0) -> Dataset:
    """As `pair`, the chosen by the policy and the rejected by the base, whose summaries join the policy's."""
    return map_rows(rows, partial(_pair_with_base, _rule(pairs), pairs, seed), make_pairs_with_base.writes)


def _rule(pairs: Pairs) -> Rule:
    rule = load_preference(pairs)
    if pairs.preference not in RULES:
        # The user's module may be on this machine alone: it goes to the workers as it is.
        cloudpickle.register_pickle_by_value(sys.modules[pairs.preference.partition(":")[0]])
    return rule


def _pair(rule: Rule, settings: Pairs, seed: int, row: Row) -> Outcome:
    scores, usable = row["scores"], _usable(row, settings)
    if len(usable) < 2:
        return Skip("under two usable summaries")
    verdicts = {(a, b): rule(scores[a], scores[b], settings) for a, b in combinations(usable, 2)}
    found = [(a, b) if wins > 0 else (b, a) for (a, b), wins in verdicts.items() if wins]
    return _taken(found, settings, seed, row) if found else Skip("all ties")


def _pair_with_base(rule: Rule, settings: Pairs, seed: int, row: Row) -> Outcome:
    base = {"writer": row["base_writer"], "summaries": row["base_summaries"], "scores": row["base_scores"]}
    both = merge_rows(row, row | base)
    scores, own = both["scores"], len(row["summaries"])
    usable = _usable(both, settings)
    ours, theirs = [i for i in usable if i < own], [i for i in usable if i >= own]
    if not ours or not theirs:
        return Skip(f"no usable summary {'of the base' if ours else 'of the policy'}")
    found = [(a, b) for a, b in product(ours, theirs) if rule(scores[a], scores[b], settings) > 0]
    if not found:
        return Skip("none better than the base's")
    made = _taken(found, settings, seed, both)
    made["tally"]["pairs against the base"] = len(made["pairs"])
    return made | {"summaries": both["summaries"], "scores": scores, "base_summaries": None, "base_scores": None}


def _taken(found: list[tuple[int, int]], settings: Pairs, seed: int, row: Row) -> Row:
    """Those of the informative pairs (chosen, rejected) that are trained on."""
    scores = row["scores"]
    # By the article's id, not by its place in the table: any re-run draws the same.
    digest = hashlib.sha256(f"{seed}\n{row['article_id']}".encode()).digest()
    taken = SELECTIONS[settings.selection](found, scores, settings.max_per_article, random.Random(digest))
    mean = 1 / len(taken) if settings.selection == "all" else 1.0
    made = [
        {"chosen": c, "rejected": r, "reason": _reason(scores[c], scores[r]), "weight": weight}
        for (c, r), weight in zip(taken, pair_weights(taken, scores, mean, settings.weighting), strict=True)
    ]
    return {"pairs": made, "tally": {"pairs": len(made), "pairs found": len(found)}}


def _usable(row: Row, settings: Pairs) -> list[int]:
    """Indices of the summaries that may be paired."""
    return [
        i
        for i, (summary, score) in enumerate(zip(row["summaries"], row["scores"], strict=True))
        if summary["finish_reason"] == "stop"
        and settings.min_words <= score["words"] < settings.max_words
        and score["invalid_chars"] == 0
        and score["unread"] == 0
    ]


def _reason(chosen: Row, rejected: Row) -> str:
    right = f"{chosen['correct']} against {rejected['correct']} right"
    return f"{right}, {chosen['words']} against {rejected['words']} words"


_PARTITIONS = 8  # of the shuffle: rows of pairs are few beside those of a corpus


_NOW = -1  # as the source of this round's own rows; earlier tables are counted from 0


@stage("replay", version=1, settings=("pairs", "seed"), writes=("summaries", "scores", "pairs"), whole=True)
def replay_pairs(rows: Dataset, *earlier: Dataset, pairs: Pairs, seed: int) -> Dataset:
    """This round's articles with pairs, and among them `pairs.replay` times as many drawn from earlier rounds.

    Args:
        rows: this round's articles with pairs.
        earlier: those of each round before, in order.
    """
    there = sum(table.count() for table in earlier)
    share = min(1.0, pairs.replay * rows.count() / max(1, there))
    names = [name for name in rows.schema().names if all(name in table.schema().names for table in earlier)]
    found = [_from(rows, names, _NOW, 1.0, seed)]
    found += [_from(table, names, number, share, f"{seed}/{len(earlier)}") for number, table in enumerate(earlier)]
    together = found[0].union(*found[1:])
    return together.groupby("article_id", num_partitions=_PARTITIONS).map_groups(_gathered, batch_format="pyarrow")


def _from(rows: Dataset, names: list[str], source: int, share: float, seed: int | str) -> Dataset:
    """The columns of that name, and `source`, of the share of rows that is drawn."""
    drawn = partial(_drawn, names, source, share, str(seed))
    return rows.map_batches(drawn, batch_format="pyarrow", batch_size=None, zero_copy_batch=True)


def _drawn(names: list[str], source: int, share: float, seed: str, table: pa.Table) -> pa.Table:
    table = table.select(names)
    if share < 1:
        table = table.filter(
            pa.array([_lot(seed, source, i) < share for i in table["article_id"].to_pylist()], pa.bool_())
        )
    return table.append_column("source", pa.array([source] * table.num_rows, pa.int32()))


def _lot(seed: str, source: int, article_id: str) -> float:
    """Between 0 and 1, by the article's id: any re-run draws the same."""
    digest = hashlib.sha256(f"{seed}\n{source}\n{article_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _gathered(table: pa.Table) -> pa.Table:
    """The rows of one article as one row, with what is counted of it."""
    rows = sorted(table.to_pylist(), key=lambda row: row["source"])
    own = [row for row in rows if row.pop("source") == _NOW]
    made, counts = mix_rows(own, rows[len(own) :])
    made |= {"skipped": None, "tally": [{"what": what, "count": count} for what, count in counts.items() if count]}
    names = [name for name in COLUMNS if name in made]
    return pa.table({name: pa.array([made[name]], COLUMNS[name]) for name in names})


def mix_rows(own: Sequence[Row], earlier: Sequence[Row]) -> tuple[Row, dict[str, int]]:
    """One row of an article's rows, and counts of what is in it.

    Args:
        own: the article's row of this round, or none.
        earlier: those drawn from earlier rounds.
    """
    first, *others = [*own, *earlier]
    made = reduce(merge_rows, others, first if own else mark_writer(first))
    return made, {
        "pairs": len(made["pairs"]),
        "replayed pairs": sum(len(row["pairs"]) for row in earlier),
        "replayed articles": int(bool(earlier)),
        "merged": len(others),
    }
