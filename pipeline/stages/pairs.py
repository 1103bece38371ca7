"""The stages `pairs` and `replay`: scored summaries of an article become chosen and rejected.

A tie makes no pair. A summary that the token limit cut off, or with a fault beyond a limit of the setting `pairs`, is
never chosen. `pairs.cut_off` and `pairs.faulty` say whether it may be rejected.
`judging/preference.py` decides which summary is better, and `judging/pair_selection.py` decides which pairs are kept.
The tally counts why summaries could not be paired.

`replay` adds pairs of earlier rounds to those of this round. From round to round, chosen and rejected become more
alike, and old pairs still show old mistakes. The summaries of these pairs are off-policy, so the pairs are counted.
Their reference log-probabilities are computed again, together with all others.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import combinations, product
from typing import Any

import pyarrow as pa
from ray.data import Dataset

from pipeline.config.judging import Pairs
from pipeline.data.merge_rows import mark_writer, merge_rows
from pipeline.judging import tallies
from pipeline.judging.pair_selection import SELECTIONS, beyond_noise, pair_weights
from pipeline.judging.preference import (
    Rule,
    Score,
    faults_beyond_limits,
    load_preference,
    score_items,
    scores_to_compare,
    vote_lead,
)
from pipeline.stages.base import stage
from pipeline.storage.parts import MERGED
from pipeline.storage.schema import COLUMNS, Outcome, Row, map_rows

_REPLAY_PARTITIONS = 8  # of the shuffle: rows with pairs are few beside a corpus
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


@dataclass(frozen=True)
class _Usable:
    """Which summaries of an article may be in a pair, as indices, and how often they may not.

    Attributes:
        clean: those that may be chosen or rejected.
        faulty: those that may only be rejected, against a clean one, with their faults.
        tally: counts of all summaries, and of those that may not be chosen by reason.
    """

    clean: list[int]
    faulty: dict[int, list[str]]
    tally: dict[str, int]


def pair_article(rule: Rule, settings: Pairs, seed: int, row: Row) -> Outcome:
    """The pairs of one article with scored summaries. Without a pair, `skipped` says why."""
    scores = scores_to_compare(row, settings)
    usable = _find_usable(row, scores, settings)
    if len(usable.clean) + len(usable.faulty) < 2:
        return _skip(tallies.UNDER_TWO_USABLE, usable)
    if not usable.clean:
        return _skip(tallies.NONE_WITHOUT_FAULT, usable)
    verdicts = {(a, b): rule(scores[a], scores[b], settings) for a, b in combinations(usable.clean, 2)}
    decided = [(a, b) if verdict > 0 else (b, a) for (a, b), verdict in verdicts.items() if verdict]
    against_faulty = _against_faulty(usable.clean, usable.faulty, rule, scores, settings)
    if not decided and not against_faulty:
        return _skip(tallies.ALL_TIES, usable)
    in_order = leave_out_circles(decided)
    within_gap, all_against_faulty = within_copied_gap(in_order, scores, settings), against_faulty
    against_faulty = within_copied_gap(all_against_faulty, scores, settings)
    if (in_order or all_against_faulty) and not within_gap and not against_faulty:
        return _skip(tallies.COPIES_MORE, usable)
    # The noise of the score says nothing about a fault.
    clear = beyond_noise(within_gap, scores, row.get("questions") or (), settings) + against_faulty
    if not clear:
        return _skip(_why_unclear(within_gap, row, scores) if in_order else tallies.IN_A_CIRCLE, usable)
    selected = _select_pairs(clear, settings, seed, row, usable)
    if len(in_order) < len(decided):
        selected["tally"][tallies.CIRCULAR_PAIRS] = len(decided) - len(in_order)
    return selected


def leave_out_circles(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs (chosen, rejected) whose rejected summary does not beat the chosen one by way of others.

    The votes of a jury can go in a circle. Training on such pairs would teach that a summary is better and that it is
    worse.
    """
    beaten: dict[int, set[int]] = {}
    for chosen, rejected in pairs:
        beaten.setdefault(chosen, set()).add(rejected)
    for middle in list(beaten):  # Warshall (1962)
        for losers in beaten.values():
            if middle in losers:
                losers |= beaten[middle]
    return [(chosen, rejected) for chosen, rejected in pairs if chosen not in beaten.get(rejected, ())]


def pair_article_with_base(rule: Rule, settings: Pairs, seed: int, row: Row) -> Outcome:
    """Like `pair_article`, for a row that also has scored summaries by the base."""
    base = {"writer": row["base_writer"], "summaries": row["base_summaries"], "scores": row["base_scores"]}
    merged = merge_rows(row, row | base)
    scores, policy_count = scores_to_compare(merged, settings), len(row["summaries"])
    usable = _find_usable(merged, scores, settings)
    by_policy, by_base = ([i for i in usable.clean if (i < policy_count) == own] for own in (True, False))
    faulty_by_base = [i for i in usable.faulty if i >= policy_count]
    if not by_policy or not (by_base or faulty_by_base):
        return _skip(tallies.NONE_BY_BASE if by_policy else tallies.NONE_BY_POLICY, usable)
    decided = [(a, b) for a, b in product(by_policy, by_base) if rule(scores[a], scores[b], settings) > 0]
    against_faulty = _against_faulty(by_policy, faulty_by_base, rule, scores, settings)
    if not decided and not against_faulty:
        return _skip(tallies.NONE_BEATS_BASE, usable)
    decided, against_faulty = (within_copied_gap(pairs, scores, settings) for pairs in (decided, against_faulty))
    if not decided and not against_faulty:
        return _skip(tallies.COPIES_MORE, usable)
    clear = beyond_noise(decided, scores, row.get("questions") or (), settings) + against_faulty
    if not clear:
        return _skip(_why_unclear(decided, row, scores), usable)
    selected = _select_pairs(clear, settings, seed, merged, usable)
    selected["tally"][tallies.PAIRS_AGAINST_BASE] = len(selected["pairs"])
    unpaired = {"base_summaries": None, "base_scores": None}
    return selected | {"summaries": merged["summaries"], "scores": merged["scores"]} | unpaired


def _skip(reason: str, usable: _Usable) -> Row:
    """Set an article aside. Unlike `Skip`, this keeps the tally."""
    return {"skipped": reason, "tally": usable.tally}


def within_copied_gap(
    decided: Sequence[tuple[int, int]], scores: Sequence[Score], settings: Pairs
) -> list[tuple[int, int]]:
    """The pairs whose chosen summary does not copy much more of the article than the rejected one.

    A summary that is too short to have an 8-gram copies nothing.
    """
    gap = settings.max_copied_gap
    if gap is None:
        return list(decided)
    copied = [score["faults"]["copied"] or 0.0 for score in scores]
    return [(chosen, rejected) for chosen, rejected in decided if copied[chosen] - copied[rejected] <= gap]


def _why_unclear(decided: Sequence[tuple[int, int]], row: Row, scores: Sequence[Score]) -> str:
    """Why no difference exceeds the score's noise."""
    most_items = max(len(score_items(scores[i], row.get("questions") or ())) for pair in decided for i in pair)
    return tallies.WITHIN_NOISE if most_items > 1 else tallies.NO_STANDARD_ERROR


def _against_faulty(
    clean: Iterable[int], faulty: Iterable[int], rule: Rule, scores: Sequence[Score], settings: Pairs
) -> list[tuple[int, int]]:
    """Pairs of a summary within the limits and one beyond them, except where the rule prefers the one beyond them."""
    return [(a, b) for a, b in product(clean, faulty) if rule(scores[a], scores[b], settings) >= 0]


def _select_pairs(
    decided: list[tuple[int, int]], settings: Pairs, seed: int, row: Row, usable: _Usable
) -> dict[str, Any]:
    """Select the pairs to train on, out of all (chosen, rejected) that are no ties."""
    scores = row["scores"]
    # Seeded by the article's id, not by its place in the table, so that a resumed run draws the same pairs.
    digest = hashlib.sha256(f"{seed}\n{row['article_id']}".encode()).digest()
    selected = SELECTIONS[settings.selection](decided, scores, settings.max_per_article, random.Random(digest))
    mean_weight = 1 / len(selected) if settings.selection == "all" else 1.0
    weights = pair_weights(selected, scores, mean_weight, settings.weighting)
    pairs = [
        {"chosen": c, "rejected": r, "reason": _describe_pair(scores, c, r, usable.faulty), "weight": weight}
        for (c, r), weight in zip(selected, weights, strict=True)
    ]
    return {
        "pairs": pairs,
        "tally": usable.tally | {tallies.PAIRS: len(pairs), tallies.PAIRS_FOUND: len(decided)},
    }


def usable_summaries(row: Row, settings: Pairs) -> list[int]:
    """The indices of the summaries that may be chosen: finished, read, of a usable length, without a fault."""
    return _find_usable(row, scores_to_compare(row, settings), settings).clean


def _find_usable(row: Row, scores: Sequence[Score], settings: Pairs) -> _Usable:
    clean: list[int] = []
    faulty: dict[int, list[str]] = {}
    tally = Counter({tallies.TO_PAIR: len(scores)})
    for i, score in enumerate(scores):
        is_cut_off, faults = score["finish_reason"] != "stop", faults_beyond_limits(score, settings)
        if reason := _why_unusable(score, settings):
            tally[f"{tallies.UNUSABLE_PREFIX}{reason}"] += 1
        elif not is_cut_off and not faults:
            clean.append(i)
        elif is_cut_off or settings.faulty == "rejected":
            faulty[i] = ["was cut off"] if is_cut_off else faults
            tally[f"{tallies.REJECTED_ONLY_PREFIX}{faulty[i][0]}"] += 1
        else:
            tally[f"{tallies.UNUSABLE_PREFIX}{faults[0]}"] += 1
    return _Usable(clean, faulty, dict(tally))


def _why_unusable(score: Score, settings: Pairs) -> str | None:
    """Why a summary may be in no pair, whatever its faults; None if it may."""
    is_cut_off = score["finish_reason"] != "stop"
    if is_cut_off and settings.cut_off == "never":
        return tallies.CUT_OFF
    if score["unread"]:
        return tallies.UNREAD_SCORE
    if score["words"] < settings.min_words:
        return tallies.TOO_SHORT
    if score["words"] >= settings.max_words and not is_cut_off:
        return tallies.TOO_LONG
    return tallies.GIBBERISH if score["invalid_chars"] else None


def _describe_pair(scores: Sequence[Row], chosen: int, rejected: int, faulty: Mapping[int, list[str]]) -> str:
    better, worse = scores[chosen], scores[rejected]
    if better.get("weights") is not None:
        judged = f"lead of {vote_lead(better, worse):.0%} in the votes"
    elif better["answers"] or better.get("value") is None:
        judged = f"{better['correct']} against {worse['correct']} right"
    else:
        judged = f"score {better['value']:.3g} against {worse['value']:.3g}"
    described = f"{judged}, {better['words']} against {worse['words']} words"
    return f"{described}; the rejected {' and '.join(faulty[rejected])}" if rejected in faulty else described


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
        tallies.PAIRS: len(merged["pairs"]),
        tallies.REPLAYED_PAIRS: sum(len(row["pairs"]) for row in earlier),
        tallies.REPLAYED_ARTICLES: int(bool(earlier)),
        MERGED: len(others),
    }
