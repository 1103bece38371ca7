"""The stages `pairs` and `replay`: scored summaries of an article become chosen and rejected.

A tie makes no pair. A summary that the token limit cut off is never paired: it has no stop token, and it is short only
because it is unfinished. `judging/preference.py` decides which summary is better, and `judging/pair_selection.py`
decides which pairs are kept.

`replay` adds pairs of earlier rounds to those of this round. From round to round, chosen and rejected become more
alike, and old pairs still show old mistakes. The summaries of these pairs are off-policy, so the pairs are counted.
Their reference log-probabilities are computed again, together with all others.
"""

import hashlib
import random
from collections.abc import Sequence
from functools import partial, reduce
from itertools import combinations, product

import pyarrow as pa
from ray.data import Dataset

from judges.base import Skip
from pipeline.config.judging import Pairs
from pipeline.data.merge_rows import mark_writer, merge_rows
from pipeline.judging.pair_selection import SELECTIONS, beyond_noise, pair_weights
from pipeline.judging.preference import Rule, load_preference, score_items
from pipeline.judging.tallies import PAIRS, PAIRS_AGAINST_BASE, PAIRS_FOUND, REPLAYED_ARTICLES, REPLAYED_PAIRS
from pipeline.stages.base import stage
from pipeline.storage.parts import MERGED
from pipeline.storage.schema import COLUMNS, Outcome, Row, map_rows

_REPLAY_PARTITIONS = 8  # of the shuffle: rows with pairs are few beside a corpus
_WITHIN_NOISE = "difference within the score's noise"
_THIS_ROUND = -1  # the source of this round's own rows; earlier rounds' tables are numbered from 0

_pairs = partial(
    stage,
    "pairs",
    version=2,
    inputs=("rows",),
    settings=("pairs", "seed"),
    contents=("pairs.preference",),
    workload="pairs",
)


@_pairs(writes=("pairs",))
def make_pairs(rows: Dataset, pairs: Pairs, seed: int = 0) -> Dataset:
    """Add `pairs`, indices into `summaries`, to each article. An article without a pair is skipped."""
    return map_rows(rows, partial(pair_article, load_preference(pairs), pairs, seed), make_pairs.writes)


@_pairs(writes=("summaries", "scores", "base_summaries", "base_scores", "pairs"))
def make_pairs_with_base(rows: Dataset, pairs: Pairs, seed: int = 0) -> Dataset:
    """Like `make_pairs`, but the chosen summary is the policy's and the rejected summary is the base's.

    The base's summaries are added to the policy's, so that the pairs can name them by index.
    """
    return map_rows(
        rows, partial(pair_article_with_base, load_preference(pairs), pairs, seed), make_pairs_with_base.writes
    )


def pair_article(rule: Rule, settings: Pairs, seed: int, row: Row) -> Outcome:
    """The pairs of one article with scored summaries; a Skip if there is none."""
    scores, usable = row["scores"], usable_summaries(row, settings)
    if len(usable) < 2:
        return Skip("under two usable summaries")
    verdicts = {(a, b): rule(scores[a], scores[b], settings) for a, b in combinations(usable, 2)}
    decided = [(a, b) if verdict > 0 else (b, a) for (a, b), verdict in verdicts.items() if verdict]
    if not decided:
        return Skip("all ties")
    clear = _clear_pairs(decided, row, scores, settings)
    return clear if isinstance(clear, Skip) else _select_pairs(clear, settings, seed, row)


def pair_article_with_base(rule: Rule, settings: Pairs, seed: int, row: Row) -> Outcome:
    """Like `pair_article`, for a row that also has scored summaries by the base."""
    base = {"writer": row["base_writer"], "summaries": row["base_summaries"], "scores": row["base_scores"]}
    merged = merge_rows(row, row | base)
    scores, policy_count = merged["scores"], len(row["summaries"])
    usable = usable_summaries(merged, settings)
    by_policy, by_base = [i for i in usable if i < policy_count], [i for i in usable if i >= policy_count]
    if not by_policy or not by_base:
        return Skip(f"no usable summary {'of the base' if by_policy else 'of the policy'}")
    decided = [(a, b) for a, b in product(by_policy, by_base) if rule(scores[a], scores[b], settings) > 0]
    if not decided:
        return Skip("none better than the base's")
    clear = _clear_pairs(decided, row, scores, settings)
    if isinstance(clear, Skip):
        return clear
    selected = _select_pairs(clear, settings, seed, merged)
    selected["tally"][PAIRS_AGAINST_BASE] = len(selected["pairs"])
    return selected | {"summaries": merged["summaries"], "scores": scores, "base_summaries": None, "base_scores": None}


def _clear_pairs(
    decided: list[tuple[int, int]], row: Row, scores: Sequence[Row], settings: Pairs
) -> list[tuple[int, int]] | Skip:
    """The pairs whose difference exceeds the score's noise; a Skip if there is none."""
    questions = row.get("questions") or ()
    if clear := beyond_noise(decided, scores, questions, settings):
        return clear
    most_items = max(len(score_items(scores[i], questions)) for pair in decided for i in pair)
    return Skip(_WITHIN_NOISE if most_items > 1 else "score of one item, which has no standard error")


def _select_pairs(decided: list[tuple[int, int]], settings: Pairs, seed: int, row: Row) -> Row:
    """Select the pairs to train on, out of all (chosen, rejected) that are no ties."""
    scores = row["scores"]
    # Seeded by the article's id, not by its place in the table, so that a resumed run draws the same pairs.
    digest = hashlib.sha256(f"{seed}\n{row['article_id']}".encode()).digest()
    selected = SELECTIONS[settings.selection](decided, scores, settings.max_per_article, random.Random(digest))
    mean_weight = 1 / len(selected) if settings.selection == "all" else 1.0
    weights = pair_weights(selected, scores, mean_weight, settings.weighting)
    pairs = [
        {"chosen": c, "rejected": r, "reason": _describe_pair(scores[c], scores[r]), "weight": weight}
        for (c, r), weight in zip(selected, weights, strict=True)
    ]
    return {"pairs": pairs, "tally": {PAIRS: len(pairs), PAIRS_FOUND: len(decided)}}


def usable_summaries(row: Row, settings: Pairs) -> list[int]:
    """The indices of the summaries that may be paired."""
    return [
        i
        for i, (summary, score) in enumerate(zip(row["summaries"], row["scores"], strict=True))
        if summary["finish_reason"] == "stop"
        and settings.min_words <= score["words"] < settings.max_words
        and score["invalid_chars"] == 0
        and score["unread"] == 0
    ]


def _describe_pair(chosen: Row, rejected: Row) -> str:
    by_questions = chosen["answers"] or chosen.get("value") is None
    judged = (
        f"{chosen['correct']} against {rejected['correct']} right"
        if by_questions
        else f"score {chosen['value']:.3g} against {rejected['value']:.3g}"
    )
    return f"{judged}, {chosen['words']} against {rejected['words']} words"


@stage(
    "replay",
    version=1,
    inputs=("rows", "*earlier"),
    settings=("pairs", "seed"),
    writes=("summaries", "scores", "pairs"),
    by_row=False,
)
def replay_pairs(rows: Dataset, *earlier: Dataset, pairs: Pairs, seed: int) -> Dataset:
    """This round's articles with pairs, and `pairs.replay` times as many articles drawn from earlier rounds.

    Rows about the same article are merged into one. A map over single rows cannot do that, so rows are grouped by
    article.

    Args:
        rows: this round's articles with pairs.
        earlier: the articles with pairs of each earlier round, in order.
    """
    available = sum(table.count() for table in earlier)
    share = min(1.0, pairs.replay * rows.count() / max(1, available))
    columns = [name for name in rows.schema().names if all(name in table.schema().names for table in earlier)]
    own = _draw_rows(rows, columns, _THIS_ROUND, 1.0, seed)
    drawn = [
        _draw_rows(table, columns, number, share, f"{seed}/{len(earlier)}") for number, table in enumerate(earlier)
    ]
    by_article = own.union(*drawn).groupby("article_id", num_partitions=_REPLAY_PARTITIONS)
    return by_article.map_groups(_merge_article, batch_format="pyarrow")


def _draw_rows(rows: Dataset, columns: list[str], source: int, share: float, seed: int | str) -> Dataset:
    """Draw a share of the rows. Keep `columns`, and add the number of the round as `source`."""
    draw = partial(_draw_from_table, columns, source, share, str(seed))
    return rows.map_batches(draw, batch_format="pyarrow", batch_size=None, zero_copy_batch=True)


def _draw_from_table(columns: list[str], source: int, share: float, seed: str, table: pa.Table) -> pa.Table:
    table = table.select(columns)
    if share < 1:
        is_drawn = [_hash_share(seed, source, article_id) < share for article_id in table["article_id"].to_pylist()]
        table = table.filter(pa.array(is_drawn, pa.bool_()))
    return table.append_column("source", pa.array([source] * table.num_rows, pa.int32()))


def _hash_share(seed: str, source: int, article_id: str) -> float:
    """A number in [0, 1) from the article's id, so that a resumed run draws the same rows."""
    digest = hashlib.sha256(f"{seed}\n{source}\n{article_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _merge_article(table: pa.Table) -> pa.Table:
    """Merge the rows of one article into one row, with its tally."""
    rows = sorted(table.to_pylist(), key=lambda row: row["source"])
    own = [row for row in rows if row.pop("source") == _THIS_ROUND]
    merged, counts = merge_rounds(own, rows[len(own) :])
    merged |= {"skipped": None, "tally": [{"what": what, "count": count} for what, count in counts.items() if count]}
    columns = [name for name in COLUMNS if name in merged]
    return pa.table({name: pa.array([merged[name]], COLUMNS[name]) for name in columns})


def merge_rounds(own: Sequence[Row], earlier: Sequence[Row]) -> tuple[Row, dict[str, int]]:
    """Merge the rows of one article, and count what the merged row holds.

    Args:
        own: the article's row of this round, or none.
        earlier: the article's rows drawn from earlier rounds.
    """
    first, *others = [*own, *earlier]
    merged = reduce(merge_rows, others, first if own else mark_writer(first))
    return merged, {
        PAIRS: len(merged["pairs"]),
        REPLAYED_PAIRS: sum(len(row["pairs"]) for row in earlier),
        REPLAYED_ARTICLES: int(bool(earlier)),
        MERGED: len(others),
    }
