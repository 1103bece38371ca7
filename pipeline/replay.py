"""Replay: pairs of earlier rounds are learned from again, beside this round's.

A cure for pairs that grow alike: what earlier policies did badly stays in sight. Their summaries are off-policy, and
are counted; their reference log-probabilities are made anew with all the others, never taken over. Rows of an article
that is there already join its row (`mixing.py`), which no map can do: an article's rows are brought together.
"""

import hashlib
from collections.abc import Sequence
from functools import partial, reduce

import pyarrow as pa
from ray.data import Dataset

from pipeline.config.run import Pairs
from pipeline.data.merge_rows import mark_writer, merge_rows
from pipeline.stage import stage
from pipeline.storage.schema import COLUMNS, Row

_PARTITIONS = 8  # of the shuffle: rows of pairs are few beside those of a corpus
_NOW = -1  # as the source of this round's own rows; earlier tables are counted from 0


@stage("replay", version=1, settings=("pairs", "seed"), writes=("summaries", "scores", "pairs"), whole=True)
def replay(rows: Dataset, *earlier: Dataset, pairs: Pairs, seed: int) -> Dataset:
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
    made, counts = mix(own, rows[len(own) :])
    made |= {"skipped": None, "tally": [{"what": what, "count": count} for what, count in counts.items() if count]}
    names = [name for name in COLUMNS if name in made]
    return pa.table({name: pa.array([made[name]], COLUMNS[name]) for name in names})


def mix(own: Sequence[Row], earlier: Sequence[Row]) -> tuple[Row, dict[str, int]]:
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
