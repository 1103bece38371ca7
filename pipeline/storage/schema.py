"""Defines the columns of a row, and applies steps to rows. A step adds columns, or sets a row aside with a reason.

A row is one article, from the first table to the last. Each stage adds columns to it. `parts.py` stores rows.
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
    {
        "question_id": pa.string(),
        "question": pa.string(),
        "options": pa.list_(pa.string()),
        "answer": pa.int32(),  # index of the right option
        "judge": pa.string(),  # the member of a jury that asked it; null: the run has one judge
    }
)
_SUMMARY = pa.struct(
    {
        "text": pa.string(),
        "token_ids": pa.list_(pa.int32()),
        "finish_reason": pa.string(),  # as the engine returned it: "stop", or "length" if the token limit cut it off
        "logp": pa.float32(),  # log-probability of token_ids by the sampling engine, in nats; null: not computed
        "writer": pa.string(),  # build id of the policy that wrote it, if it is not the row's writer; else null
        # What a policy that thinks thought before `text`, for people to read: no judge and no count sees it. Null here
        # and below: it did not think, or an older version wrote the row.
        "thought": pa.string(),
        "thought_tokens": pa.int32(),  # how many of token_ids, from the first on, are the thought and what closes it
        "forced_tokens": pa.int32(),  # how many of these, at their end, were not sampled and are never trained on
        "thought_logp": pa.float32(),  # the part of logp that is of the thought
        "temperature": pa.float64(),  # that it was sampled at; 0: greedy; null also if it was not sampled
    }
)
_FAULTS = pa.struct(  # what each share is a share of: `judging/scoring/text_faults.measure_faults`
    {
        "repeated": pa.float64(),  # share of the summary that it said before
        "copied": pa.float64(),  # share of its 8-grams that the article has; null: under 8 tokens
        "lead_copied": pa.float64(),  # share of its 8-grams that the article's lead has; null: under 8 tokens
        "off_topic_end": pa.float64(),  # share of its last sentence's content that the article lacks; null: too short
        "other_language": pa.string(),  # ISO code of its language, if that is surely not the article's; else null
    }
)
_SCORE = pa.struct(
    {
        "answers": pa.list_(pa.string()),  # per question: an option's letter, "unsure", or null (unread)
        "correct": pa.int32(),  # number of right answers
        "unread": pa.int32(),  # number of answers that could not be parsed
        "words": pa.int32(),  # words of the summary, as judges.text.words counts them
        "invalid_chars": pa.int32(),  # characters of gibberish (judges.text.gibberish)
        # Per answer: log-probability of its line among all lines that were possible, in nats; null: unread.
        # The whole list is null if the judge keeps no log-probabilities.
        "answer_logps": pa.list_(pa.float32()),
        # Sum of the probabilities of the right answers, at most `correct`; null without answer_logps.
        "soft": pa.float32(),
        # What the judge thinks of the summary: the number of right answers, or the value of a judge that gives scores.
        # Null: unread, or written by an older version, which had right answers only.
        "value": pa.float32(),
        # The parts of the value, in one order for all summaries of an article; null: unread. 1 and 0 for answers.
        "items": pa.list_(pa.float32()),
        "faults": _FAULTS,  # null: written by an older version, which did not measure them
        "weights": pa.list_(pa.float32()),  # of the items, which are the values of a jury's members; else null
    }
)
_COUNT = pa.struct({"what": pa.string(), "count": pa.int64()})
_PAIR = pa.struct(
    {
        "chosen": pa.int32(),  # index into summaries
        "rejected": pa.int32(),  # index into summaries
        "reason": pa.string(),  # why the chosen is better, for people
        "weight": pa.float32(),  # weight in the loss of its step, where it counts as this many pairs; null: 1
    }
)

_SHARED_LOGPS = pa.struct({"chosen": pa.float32(), "rejected": pa.float32()})
SPLITS = ("train", "eval", "test")  # eval: the held-out articles

COLUMNS: dict[str, pa.DataType] = {
    "article_id": pa.string(),
    "article": pa.string(),  # its text
    "split": pa.string(),  # one of SPLITS, by a hash of the id or the group
    "questions": pa.list_(_QUESTION),
    "dropped": pa.list_(pa.string()),  # the reason for each question that was generated but is not used
    "writer": pa.string(),  # build id of the policy that wrote the summaries, or the name of a baseline
    "prompt_ids": pa.list_(pa.int32()),  # token ids of the prompt that the summaries answer
    "summaries": pa.list_(_SUMMARY),
    "scores": pa.list_(_SCORE),  # one per summary
    "base_summaries": pa.list_(_SUMMARY),  # the base's summaries, until they are paired with the policy's
    "base_scores": pa.list_(_SCORE),  # one per base summary
    "base_writer": pa.string(),  # build id of the base
    "policy_logps": pa.list_(pa.float32()),  # one per summary: its log-probability under its writer, in nats
    "base_logps": pa.list_(pa.float32()),  # one per summary: its log-probability under the base, in nats
    "second_questions": pa.list_(_QUESTION),  # the second judge's questions; empty if it had too few good ones
    "second_scores": pa.list_(_SCORE),  # one per summary, by the second judge
    "pairs": pa.list_(_PAIR),
    # One per summary: its log-probability under the reference, in nats; null if no pair needs it.
    "reference_logps": pa.list_(pa.float32()),
    # One per pair, in nats: as reference_logps, but of the first n scored tokens of each, n being the number of scored
    # tokens of the shorter; null without training.ld_alpha.
    "reference_shared_logps": pa.list_(_SHARED_LOGPS),
    "reference_digest": pa.string(),  # digest of the weights that gave reference_logps
    "tally": pa.list_(_COUNT),  # counts to sum over all rows into the stage's record, such as tokens
    "skipped": pa.string(),  # why the row was set aside; null: it was kept
}


def unscored_tokens(summary: Row, loss_on: str = "sequence") -> tuple[int, int]:
    """The tokens of a summary that are read but not scored: from the first number up to the second.

    Args:
        summary: an item of `summaries`.
        loss_on: the setting `training.loss_on`. `sequence`: all tokens are scored that were sampled, so only those that
            closed a thought are not. `answer`: the whole thought is not scored.
    """
    thought = summary.get("thought_tokens") or 0
    return (0, thought) if loss_on == "answer" else (thought - (summary.get("forced_tokens") or 0), thought)


def sampled_logp(summary: Row, loss_on: str = "sequence") -> float | None:
    """The log-probability that the sampling engine gave the scored tokens of a summary, in nats; None if it gave none.

    Args:
        summary, loss_on: see `unscored_tokens`.
    """
    logp = summary.get("logp")
    if logp is None or loss_on != "answer" or not summary.get("thought_tokens"):
        return logp
    thought_logp = summary.get("thought_logp")
    return None if thought_logp is None else logp - thought_logp


def apply_step(table: pa.Table, step: Callable[[list[Row]], Sequence[Outcome]], writes: Sequence[str]) -> pa.Table:
    """Call `step` with the rows that are not set aside, and add its outcomes to the table.

    Args:
        table: rows of articles.
        step: returns one outcome per row, in order: a dict with the columns `writes`, or a Skip. The dict may also have
            `tally`, counts by name that are summed over all rows into the stage's record, and `skipped`, a reason to
            set the row aside together with its new columns.
        writes: names of the new columns, which must be in `COLUMNS`. Existing columns of these names are replaced.
    """
    rows = table.to_pylist()
    kept = [i for i, row in enumerate(rows) if row.get("skipped") is None]
    outcomes = step([rows[i] for i in kept]) if kept else []
    assert len(outcomes) == len(kept), f"{len(kept)} rows went in, {len(outcomes)} outcomes came out"
    values: list[Row] = [{name: row.get(name) for name in (*writes, "skipped", "tally")} for row in rows]
    for i, outcome in zip(kept, outcomes, strict=True):
        if isinstance(outcome, Skip):
            values[i]["skipped"] = outcome.reason
        else:
            tally = [{"what": what, "count": count} for what, count in outcome.get("tally", {}).items()]
            values[i] |= outcome | {"tally": (values[i]["tally"] or []) + tally}
    for name in (*writes, "skipped", "tally"):
        array = pa.array([value[name] for value in values], COLUMNS[name])
        index = table.schema.get_field_index(name)
        table = table.append_column(name, array) if index < 0 else table.set_column(index, name, array)
    return table


def map_rows(rows: Dataset, function: Callable[[Row], Outcome], writes: Sequence[str]) -> Dataset:
    """Apply a plain function of one row to every row."""
    return rows.map_batches(
        apply_step,
        fn_args=(partial(_one_by_one, function), tuple(writes)),
        batch_format="pyarrow",
        batch_size=None,  # take blocks as they come: waiting for more rows would delay the next stage
    )


def _one_by_one(function: Callable[[Row], Outcome], rows: list[Row]) -> list[Outcome]:
    return [function(row) for row in rows]


def is_drawn(name: str, share: float) -> bool:
    """Whether a row is in a random share of all rows. A hash of its name decides, so every run draws the same rows."""
    return zlib.crc32(name.encode("utf-8", "surrogatepass")) < share * 2**32


def to_dataset(rows: list[Row]) -> Dataset:
    """Make a dataset of rows in memory, with the types of `COLUMNS`. For tests of stages."""
    import ray

    names = [name for name in COLUMNS if any(name in row for row in rows)]
    table = pa.table({name: pa.array([row.get(name) for row in rows], COLUMNS[name]) for name in names})
    return ray.data.from_arrow(table)
