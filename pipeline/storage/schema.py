"""What a row is, and the one way in which rows change: columns are added, or the row is set aside with a reason.

A row is an article, from the first table to the last; its columns accrete. Left out: how tables are stored
(`tables.py`) and which stage adds what (the stages).
"""

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from ray.data import Dataset

from judges.base import Skip

Row = dict[str, Any]
Outcome = Row | Skip

_QUESTION = pa.struct(
    {"question_id": pa.string(), "question": pa.string(), "options": pa.list_(pa.string()), "answer": pa.int32()}
)
_SUMMARY = pa.struct(
    {
        "text": pa.string(),
        "token_ids": pa.list_(pa.int32()),
        "finish_reason": pa.string(),
        "logp": pa.float32(),  # of these tokens by the engine that sampled them, in nats; null where it was not asked
        "writer": pa.string(),  # build id of who wrote it, where that is not the row's writer; else null
    }
)
_SCORE = pa.struct(
    {
        "answers": pa.list_(pa.string()),  # an option's letter, "unsure", or null: unread
        "correct": pa.int32(),
        "unread": pa.int32(),
        "words": pa.int32(),
        "invalid_chars": pa.int32(),
        # In nats, of each answer's line among the lines it might have been; null: unread. No list: not asked for.
        "answer_logps": pa.list_(pa.float32()),
        "soft": pa.float32(),  # the probabilities of the right answers, added up: at most `correct`; null without logps
    }
)
_COUNT = pa.struct({"what": pa.string(), "count": pa.int64()})
_PAIR = pa.struct(
    {
        "chosen": pa.int32(),
        "rejected": pa.int32(),
        "reason": pa.string(),
        "weight": pa.float32(),  # in the loss of its step, where it counts as so many pairs; null: as one
    }
)

COLUMNS: dict[str, pa.DataType] = {
    "article_id": pa.string(),
    "article": pa.string(),
    "split": pa.string(),  # "train" or "eval", by hash of the id
    "questions": pa.list_(_QUESTION),
    "dropped": pa.list_(pa.string()),  # of the questions asked, the reason why each one unused is unused
    "writer": pa.string(),  # build id of the policy that wrote the summaries, or the name of a baseline
    "prompt_ids": pa.list_(pa.int32()),
    "summaries": pa.list_(_SUMMARY),  # text, token ids and finish reason as the engine gave them
    "scores": pa.list_(_SCORE),  # aligned with summaries
    "base_summaries": pa.list_(_SUMMARY),  # by the base, until they are paired with the policy's
    "base_scores": pa.list_(_SCORE),  # aligned with base_summaries
    "base_writer": pa.string(),  # build id of the base
    "policy_logps": pa.list_(pa.float32()),  # aligned with summaries: of each under its writer, in nats
    "base_logps": pa.list_(pa.float32()),  # aligned with summaries: of each under the base, in nats
    "second_questions": pa.list_(_QUESTION),  # of the second judge; empty where it had too few good ones
    "second_scores": pa.list_(_SCORE),  # aligned with summaries
    "pairs": pa.list_(_PAIR),  # indices into summaries
    "reference_logps": pa.list_(pa.float32()),  # aligned with summaries; null where no pair needs the value
    "reference_digest": pa.string(),  # of the weights that gave them
    "tally": pa.list_(_COUNT),  # what is added up over all rows into the stage's record, such as tokens
    "skipped": pa.string(),  # why the row is set aside, or null
}


def apply_step(table: pa.Table, step: Callable[[list[Row]], Sequence[Outcome]], writes: Sequence[str]) -> pa.Table:
    """Give `step` the rows that are not set aside, and add what it says of each to the table.

    Args:
        table: rows of articles.
        step: one outcome a row, in order: a dict of `writes`, or a Skip. A dict may also have `tally`, counts by
            name which are added up over all rows into the stage's record, and `skipped`, a reason to set the row
            aside with what is known of it.
        writes: names of the new columns; each must be one of `COLUMNS`. A column that is there is replaced.
    """
    rows = table.to_pylist()
    live = [i for i, row in enumerate(rows) if row.get("skipped") is None]
    outcomes = step([rows[i] for i in live]) if live else []
    assert len(outcomes) == len(live), f"{len(live)} rows went in, {len(outcomes)} outcomes came out"
    values: list[Row] = [{name: row.get(name) for name in (*writes, "skipped", "tally")} for row in rows]
    for i, outcome in zip(live, outcomes, strict=True):
        if isinstance(outcome, Skip):
            values[i]["skipped"] = outcome.reason
        else:
            tally = [{"what": what, "count": count} for what, count in outcome.get("tally", {}).items()]
            values[i] |= outcome | {"tally": (values[i]["tally"] or []) + tally}
    for name in (*writes, "skipped", "tally"):
        array = pa.array([value[name] for value in values], COLUMNS[name])
        where = table.schema.get_field_index(name)
        table = table.append_column(name, array) if where < 0 else table.set_column(where, name, array)
    return table


def map_rows(rows: Dataset, function: Callable[[Row], Outcome], writes: Sequence[str]) -> Dataset:
    """Apply a plain function of one row to every row."""
    return rows.map_batches(
        apply_step,
        fn_args=(partial(_one_by_one, function), tuple(writes)),
        batch_format="pyarrow",
        batch_size=None,  # a block as it comes: waiting for more rows would hold up whoever is next
    )


def _one_by_one(function: Callable[[Row], Outcome], rows: list[Row]) -> list[Outcome]:
    return [function(row) for row in rows]


def is_drawn(name: str, share: float) -> bool:
    """Whether a row is among a share of all, by the hash of its name: the same ones in every run."""
    return zlib.crc32(name.encode("utf-8", "surrogatepass")) < share * 2**32


def to_dataset(rows: list[Row]) -> Dataset:
    """A dataset of rows given in memory, typed as `COLUMNS` says: what a test of a stage begins with."""
    import ray

    names = [name for name in COLUMNS if any(name in row for row in rows)]
    table = pa.table({name: pa.array([row.get(name) for row in rows], COLUMNS[name]) for name in names})
    return ray.data.from_arrow(table)
