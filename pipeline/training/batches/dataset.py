"""Reads the rows of the `references` table as articles to learn from.

An article keeps only the completions that a pair needs; token ids stay as Arrow made them, so that a large table
is a few bytes a token. Left out: making pairs, and splitting (`plan.py`).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem

from pipeline.training.batches.example import Example

_COLUMNS = ["article_id", "prompt_ids", "summaries", "pairs", "reference_logps", "reference_digest"]


def read_examples(path: str, parts: Sequence[str], reference_digest: str | None) -> list[Example]:
    """Read a folder's Parquet parts, and check them.

    Args:
        path: of the folder: an absolute path, or a URI such as `s3://bucket/folder`.
        parts: the names of the files in it that are the table. Others may be there, such as what a worker wrote that
            outlived its driver.
        reference_digest: of the weights that the reference log-probabilities must be of; None: there are to be none.

    Returns:
        The articles that have a pair, in order of article_id.

    Raises:
        OSError: a part cannot be read.
        ValueError: a part that is damaged or gone, a missing column, an id that is there twice, a reference of other
            weights or not computed, a pair that cannot be; or no pair at all.
    """
    tables = [_table(path, part) for part in parts]
    if not tables:
        raise ValueError(f"no row in {path} was kept: there is nothing to learn from")
    table = pa.concat_tables(tables, promote_options="permissive").combine_chunks().sort_by("article_id")
    examples = [_example(row) for row in _iterate(table) if _checked(row, reference_digest)]
    for before, after in pairwise(examples):
        if before.article_id == after.article_id:
            raise ValueError(f"article {after.article_id} is there twice: an id names one row")
    if not examples:
        raise ValueError(f"no row in {path} has a pair: there is nothing to learn from")
    return examples


def _table(path: str, part: str) -> pa.Table:
    filesystem, inner = FileSystem.from_uri(path)
    try:
        file = pq.ParquetFile(f"{inner}/{part}", filesystem=filesystem, page_checksum_verification=True)
        missing = [column for column in _COLUMNS if column not in file.schema_arrow.names]
        if missing:
            raise ValueError(f"{path}/{part} lacks {missing}: it should be what the references stage wrote")
        return file.read(columns=_COLUMNS)
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path}/{part} is damaged or gone: make the references again") from error
    except OSError as error:  # a page that is damaged; or storage that is away for a moment
        raise OSError(f"{path}/{part} cannot be read: {error}") from error


def _iterate(table: pa.Table) -> list[dict[str, pa.Scalar]]:
    return [dict(zip(_COLUMNS, values, strict=True)) for values in zip(*(table[c] for c in _COLUMNS), strict=True)]


def _checked(row: dict[str, pa.Scalar], reference_digest: str | None) -> bool:
    """Whether the row has a pair; an error if the reference is not the expected one."""
    if not row["pairs"].as_py():
        return False
    found = row["reference_digest"].as_py()
    if found != reference_digest:
        raise ValueError(
            f"article {row['article_id']}: its reference log-probabilities are of weights {found}, and they should be "
            f"of {reference_digest}: make the references again with this model"
        )
    return True


def _example(row: dict[str, pa.Scalar]) -> Example:
    article_id, logps = row["article_id"].as_py(), row["reference_logps"].as_py() or []
    referenced = row["reference_digest"].as_py() is not None
    made = row["pairs"].as_py()
    pairs = [(pair["chosen"], pair["rejected"]) for pair in made]
    weights = tuple(1.0 if pair.get("weight") is None else pair["weight"] for pair in made)
    count = len(row["summaries"])
    for chosen, rejected in pairs:
        if not (0 <= chosen < count and 0 <= rejected < count) or chosen == rejected:
            raise ValueError(f"article {article_id}: pair ({chosen}, {rejected}) is not two of {count} summaries")
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"article {article_id}: its pairs weigh {weights}, and a weight is a finite number above 0")
    if referenced and len(logps) != count:
        raise ValueError(f"article {article_id}: {count} summaries and {len(logps)} reference_logps")
    used = sorted({index for pair in pairs for index in pair})
    for index in used if referenced else ():
        if logps[index] is None or not math.isfinite(logps[index]):
            raise ValueError(
                f"article {article_id}: summary {index} is in a pair and its reference log-probability is "
                f"{logps[index]}: make the references again"
            )
    written = row["summaries"].values
    token_ids, sampled = written.field("token_ids"), written.field("logp").to_pylist()
    example = Example(
        article_id=article_id,
        prompt_ids=row["prompt_ids"].values.to_numpy(),
        completions=tuple(token_ids[index].values.to_numpy() for index in used),
        pairs=tuple((used.index(chosen), used.index(rejected)) for chosen, rejected in pairs),
        reference_logps=tuple(logps[index] for index in used) if referenced else (),
        sampled_logps=tuple(sampled[index] for index in used),
        weights=weights,
    )
    _refuse_empty(article_id, [example.prompt_ids, *example.completions])
    return example


def _refuse_empty(article_id: str, pieces: Sequence[np.ndarray]) -> None:
    if any(len(piece) == 0 for piece in pieces):
        raise ValueError(f"article {article_id}: its prompt, or a summary in a pair, has no tokens")
