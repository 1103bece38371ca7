"""Reads the rows of the `references` table, checks them, and makes an `Example` of each article that has a pair.

An example keeps only the completions that its pairs need. Token ids stay in Arrow's memory, so a large table takes a
few bytes per token. The pairs are made in `stages/pairs.py`, and `batching.py` splits off the held-out articles.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import pyarrow as pa

from pipeline.storage.files import open_location
from pipeline.storage.parts import read_parquet
from pipeline.storage.schema import sampled_logp, unscored_tokens
from pipeline.training.batches.example import Example

_THOUGHT_FIELDS = ("logp", "thought_logp", "thought_tokens", "forced_tokens")
_COLUMNS = ["article_id", "prompt_ids", "summaries", "pairs", "reference_logps", "reference_digest"]


def read_examples(
    path: str,
    parts: Sequence[str],
    reference_digest: str | None,
    loss_on: str = "sequence",
    *,
    with_shared_logps: bool = False,
) -> list[Example]:
    """Read a table from a folder of Parquet parts, and check its rows.

    Args:
        path: the folder: an absolute path, or a URI such as `s3://bucket/folder`.
        parts: names of the table's files in that folder. There may be other files, such as from a worker that outlived
            its driver.
        reference_digest: digest of the weights that must have given the reference log-probabilities; None if the rows
            must have no reference log-probabilities.
        loss_on: the setting `training.loss_on`.
        with_shared_logps: also read what `training.ld_alpha` needs of the reference.

    Returns:
        The articles that have a pair, in order of article_id.

    Raises:
        OSError: a part cannot be read, because a page is damaged or the storage does not answer.
        ValueError: a part is damaged, missing or lacks a column, an id occurs twice, a reference log-probability is
            missing or of other weights, a pair is not possible, or there is no pair at all.
    """
    columns = [*_COLUMNS, *(["reference_shared_logps"] if with_shared_logps else [])]
    tables = [_read_part(path, part, columns) for part in parts]
    if not tables:
        raise ValueError(f"no row in {path} was kept: there is nothing to train on")
    table = pa.concat_tables(tables, promote_options="permissive").combine_chunks().sort_by("article_id")
    examples = []
    for values in zip(*(table[column] for column in columns), strict=True):
        row = dict(zip(columns, values, strict=True))
        if row["pairs"].as_py():
            _check_digest(row, reference_digest)
            examples.append(_make_example(row, loss_on))
    for before, after in pairwise(examples):
        if before.article_id == after.article_id:
            raise ValueError(f"article {after.article_id} occurs twice: an id must name one row")
    if not examples:
        raise ValueError(f"no row in {path} has a pair: there is nothing to train on")
    return examples


def _read_part(path: str, part: str, columns: Sequence[str]) -> pa.Table:
    filesystem, folder = open_location(path)
    try:
        return read_parquet(filesystem, f"{folder}/{part}", columns)
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}/{part} is damaged or missing, or the references stage did not write it ({reason}): make the "
            "references again"
        ) from error
    except OSError as error:  # a damaged page, or storage that does not answer for a moment
        raise OSError(f"{path}/{part} cannot be read: {error}") from error


def _check_digest(row: dict[str, pa.Scalar], expected: str | None) -> None:
    digest = row["reference_digest"].as_py()
    if digest != expected:
        raise ValueError(
            f"article {row['article_id']}: its reference log-probabilities are of weights {digest}, and they should be "
            f"of {expected}: make the references again with this model"
        )


def _make_example(row: dict[str, pa.Scalar], loss_on: str) -> Example:
    article_id, logps = row["article_id"].as_py(), row["reference_logps"].as_py() or []
    has_reference = row["reference_digest"].as_py() is not None
    row_pairs = row["pairs"].as_py()
    pairs = [(pair["chosen"], pair["rejected"]) for pair in row_pairs]
    weights = tuple(1.0 if pair.get("weight") is None else pair["weight"] for pair in row_pairs)
    _check_pairs(article_id, pairs, weights, summaries=len(row["summaries"]))
    used = sorted({index for pair in pairs for index in pair})
    if has_reference:
        _check_logps(article_id, logps, used, summaries=len(row["summaries"]))
    summaries = row["summaries"].values
    token_ids = summaries.field("token_ids")
    names = [field.name for field in summaries.type if field.name in _THOUGHT_FIELDS]  # old tables lack some
    columns = [summaries.field(name).to_pylist() for name in names]
    thoughts = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    unscored = tuple(unscored_tokens(thoughts[index], loss_on) for index in used)
    example = Example(
        article_id=article_id,
        prompt_ids=row["prompt_ids"].values.to_numpy(),
        completions=tuple(token_ids[index].values.to_numpy() for index in used),
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


def _shared_logps(article_id: str, row: dict[str, pa.Scalar], pairs: int) -> tuple[tuple[float, float], ...]:
    shared = row["reference_shared_logps"].as_py() or []
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
