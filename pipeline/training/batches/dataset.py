"""Reads the rows of the `references` table, checks them, and writes an `Example` of each article that has a pair.

An example keeps only the completions that its pairs need. Rows pass through memory a few at a time, from the table's
Parquet parts to one Arrow file, which `example_table.py` maps. The pairs are made in `stages/pairs.py`, and
`batching.py` splits off the held-out articles.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.storage.files import open_location
from pipeline.storage.parts import iterate_fields
from pipeline.storage.schema import Row, sampled_logp, unscored_tokens
from pipeline.training.batches.example import Example
from pipeline.training.batches.example_table import ExampleTable, IdLists, stable_hash, write_file

_THOUGHT_FIELDS = ("logp", "thought_logp", "thought_tokens", "forced_tokens")
_SUMMARY_FIELDS = ("token_ids", *_THOUGHT_FIELDS)
_COLUMNS = ["article_id", "prompt_ids", "pairs", "reference_logps", "reference_digest"]
_ROWS_AT_ONCE = 256


def write_examples(
    path: str,
    parts: Sequence[str],
    reference_digest: str | None,
    out: Path,
    loss_on: str = "sequence",
    *,
    with_shared_logps: bool = False,
) -> None:
    """Read a table from a folder of Parquet parts, check its rows, and write the examples to a file for `ExampleTable`.

    Args:
        path: the folder: an absolute path, or a URI such as `s3://bucket/folder`.
        parts: names of the table's files in that folder. There may be other files, such as from a worker that outlived
            its driver.
        reference_digest: digest of the weights that must have given the reference log-probabilities; None if the rows
            must have no reference log-probabilities.
        out: the file to write, with the articles that have a pair.
        loss_on: the setting `training.loss_on`.
        with_shared_logps: also read what `training.ld_alpha` needs of the reference.

    Raises:
        OSError: a part cannot be read, because a page is damaged or the storage does not answer; or `out` cannot be
            written.
        ValueError: a part is damaged, missing or lacks a column, an id occurs twice, a reference log-probability is
            missing or of other weights, a pair is not possible, or there is no pair at all.
    """
    if not parts:
        raise ValueError(f"no row in {path} was kept: there is nothing to train on")
    columns = [*_COLUMNS, *(["reference_shared_logps"] if with_shared_logps else [])]
    batches = (batch for part in parts for batch in _read_part(path, part, columns))
    write_file((example for batch in batches for example in _make_examples(batch, reference_digest, loss_on)), out)
    examples = ExampleTable.map_file(out)
    if not len(examples):
        raise ValueError(f"no row in {path} has a pair: there is nothing to train on")
    _check_ids(examples)


def _check_ids(examples: ExampleTable) -> None:
    """Raise ValueError if an id occurs twice. Examples are in order of their ids."""
    hashes = examples.map_ids(stable_hash)
    for place in np.flatnonzero(hashes[1:] == hashes[:-1]):
        name = examples[int(place)].article_id
        if name == examples[int(place) + 1].article_id:
            raise ValueError(f"article {name} occurs twice: an id must name one row")


def _read_part(path: str, part: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    filesystem, folder = open_location(path)
    fields = [*columns, *(f"summaries.{name}" for name in _SUMMARY_FIELDS)]
    try:
        for batch in iterate_fields(filesystem, f"{folder}/{part}", fields, _ROWS_AT_ONCE):
            if missing := {*columns, "summaries"} - set(batch.schema.names):
                raise pa.ArrowInvalid(f"it has no {' and '.join(sorted(missing))}")
            yield batch
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}/{part} is damaged or missing, or the references stage did not write it ({reason}): make the "
            "references again"
        ) from error
    except OSError as error:  # a damaged page, or storage that does not answer for a moment
        raise OSError(f"{path}/{part} cannot be read: {error}") from error


def _make_examples(rows: pa.RecordBatch, reference_digest: str | None, loss_on: str) -> Iterator[Example]:
    """The examples of the rows that have a pair."""
    small = rows.select([name for name in rows.schema.names if name not in ("prompt_ids", "summaries")])
    summaries, prompts = rows["summaries"], IdLists(rows["prompt_ids"])
    ends = summaries.offsets.to_numpy()  # where the summaries of each row begin, and where the last ends
    token_ids = IdLists(summaries.values.field("token_ids"))
    # Old tables lack some of these fields.
    names = [field.name for field in summaries.values.type if field.name in _THOUGHT_FIELDS]
    thoughts = pa.table({name: summaries.values.field(name) for name in names}).to_pylist()
    for number, row in enumerate(small.to_pylist()):
        if row["pairs"]:
            _check_digest(row, reference_digest)
            of_row = range(ends[number], ends[number + 1])
            completions = [token_ids[place] for place in of_row]
            yield _make_example(row, prompts[number], completions, [thoughts[place] for place in of_row], loss_on)


def _check_digest(row: Row, expected: str | None) -> None:
    digest = row["reference_digest"]
    if digest != expected:
        raise ValueError(
            f"article {row['article_id']}: its reference log-probabilities are of weights {digest}, and they should be "
            f"of {expected}: make the references again with this model"
        )


def _make_example(
    row: Row, prompt_ids: np.ndarray, summaries: Sequence[np.ndarray], thoughts: Sequence[Row], loss_on: str
) -> Example:
    """An example of a row with pairs: `summaries` are its token ids, and `thoughts` their fields that matter here."""
    article_id, logps = row["article_id"], row["reference_logps"] or []
    has_reference = row["reference_digest"] is not None
    pairs = [(pair["chosen"], pair["rejected"]) for pair in row["pairs"]]
    weights = tuple(1.0 if pair.get("weight") is None else pair["weight"] for pair in row["pairs"])
    _check_pairs(article_id, pairs, weights, summaries=len(summaries))
    used = sorted({index for pair in pairs for index in pair})
    if has_reference:
        _check_logps(article_id, logps, used, summaries=len(summaries))
    unscored = tuple(unscored_tokens(thoughts[index], loss_on) for index in used)
    example = Example(
        article_id=article_id,
        prompt_ids=prompt_ids,
        completions=tuple(summaries[index] for index in used),
        pairs=tuple((used.index(chosen), used.index(rejected)) for chosen, rejected in pairs),
        reference_logps=tuple(logps[index] for index in used) if has_reference else (),
        sampled_logps=tuple(sampled_logp(thoughts[index], loss_on) for index in used),
        weights=weights,
        unscored=unscored if any(map(any, unscored)) else (),
        reference_shared_logps=_shared_logps(article_id, row, len(pairs)) if "reference_shared_logps" in row else (),
    )
    _check_not_empty(article_id, [len(example.prompt_ids), *example.lengths])
    return example


def _check_pairs(
    article_id: str, pairs: Sequence[tuple[int, int]], weights: Sequence[float], *, summaries: int
) -> None:
    for chosen, rejected in pairs:
        if not (0 <= chosen < summaries and 0 <= rejected < summaries) or chosen == rejected:
            raise ValueError(f"article {article_id}: pair ({chosen}, {rejected}) is not two of {summaries} summaries")
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"article {article_id}: its pairs weigh {weights}, and a weight is a finite number above 0")


def _check_logps(article_id: str, logps: Sequence[float | None], used: Sequence[int], *, summaries: int) -> None:
    if len(logps) != summaries:
        raise ValueError(f"article {article_id}: {summaries} summaries and {len(logps)} reference_logps")
    for index in used:
        logp = logps[index]
        if logp is None or not math.isfinite(logp):
            raise ValueError(
                f"article {article_id}: summary {index} is in a pair and its reference log-probability is "
                f"{logp}: make the references again"
            )


def _shared_logps(article_id: str, row: Row, pairs: int) -> tuple[tuple[float, float], ...]:
    shared = row["reference_shared_logps"] or []
    logps = tuple((of_pair["chosen"], of_pair["rejected"]) for of_pair in shared)
    if len(logps) != pairs or not all(logp is not None and math.isfinite(logp) for both in logps for logp in both):
        raise ValueError(
            f"article {article_id}: {pairs} pairs and reference_shared_logps {logps}, which training.ld_alpha needs: "
            "make the references again"
        )
    return logps


def _check_not_empty(article_id: str, lengths: Sequence[int]) -> None:
    if not all(lengths):
        raise ValueError(f"article {article_id}: its prompt, or a summary in a pair, has no tokens")
