"""The corpus, read once: JSONL, Parquet or a Hugging Face dataset becomes one row per article.

Bad rows are set aside, each with its reason; a bad file is refused in one line. Whether an article trains or
examines is decided by the hash of its id, never by its position. Left out: cutting. An article too long is skipped.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.config import Articles, UserError
from pipeline.ledger import open_place
from pipeline.rows import COLUMNS
from pipeline.stage import stage

_ROWS = 1000  # articles a table
_OPENING = 40  # words that two articles must share from the start to be near-copies


@stage(
    "articles",
    version=1,
    settings=("articles",),
    contents=("articles.path",),
    writes=("article_id", "article", "split"),
)
def read(*, articles: Articles) -> Iterator[pa.Table]:
    """Read the corpus.

    Yields:
        tables of article_id, article, split, skipped.

    Raises:
        UserError: no such file or dataset, an unreadable file, a missing column.
    """
    raw = iter(_checked(_source(articles), articles))
    rows = _rows(islice(raw, articles.limit), articles)
    names = ("article_id", "article", "split", "skipped")
    found: Counter[str] = Counter()
    while batch := list(islice(rows, _ROWS)):
        found.update(row["skipped"] or row["split"] for row in batch)
        yield pa.table({name: pa.array([row[name] for row in batch], COLUMNS[name]) for name in names})
    for split in ("train", "eval"):
        if not found[split]:
            counts = ", ".join(f"{what}: {count:,}" for what, count in found.most_common())
            raise UserError(
                f"{articles.path} has no article for {split} ({counts}): give more articles, or change "
                "articles.eval_fraction, min_words or max_words"
            )


def check(settings: Articles) -> None:
    """Open the corpus and look at its first row. Raises UserError as `read` does."""
    for _ in islice(_checked(_source(settings), settings), 1):
        return
    raise UserError(f"{settings.path} is empty: there is no article in it")


def is_eval(article_id: str, fraction: float) -> bool:
    """Whether an article is held out: decided by its id alone, so that it never changes sides."""
    digest = hashlib.sha256(article_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _rows(raw: Iterable[dict[str, Any]], settings: Articles) -> Iterator[dict[str, Any]]:
    ids: set[str] = set()
    openings: set[bytes] = set()
    for number, row in enumerate(raw, 1):
        article_id, text = row.get(settings.id_column), row.get(settings.text_column)
        skipped = row.get("unreadable")
        if skipped is None and (article_id is None or article_id == ""):
            skipped = "no id"
        if skipped is None and not isinstance(text, str):
            skipped = "no text"
        article_id = f"row {number}" if article_id in (None, "") else str(article_id)
        article = _utf8(text) if isinstance(text, str) else ""
        words = article.split()
        opening = hashlib.sha256(" ".join(re.findall(r"\w+", article.casefold())[:_OPENING]).encode()).digest()
        if skipped is not None:
            pass
        elif article_id in ids:
            skipped = "duplicate id"
        elif not words:
            skipped = "empty"
        elif len(words) < settings.min_words:
            skipped = f"under {settings.min_words} words"
        elif len(words) > settings.max_words:
            skipped = f"over {settings.max_words} words"
        elif opening in openings:
            # Seen in both train and eval, a copy would make the held-out figures a lie.
            skipped = "near-copy of another article"
        else:
            openings.add(opening)
        ids.add(article_id)
        split = "eval" if is_eval(article_id, settings.eval_fraction) else "train"
        yield {"article_id": _utf8(article_id), "article": article, "split": split, "skipped": skipped}


def _utf8(text: str) -> str:
    """JSON can spell half a surrogate pair, which no UTF-8 file can hold."""
    return text.encode("utf-8", "replace").decode()


def _checked(rows: Iterator[dict[str, Any]], settings: Articles) -> Iterator[dict[str, Any]]:
    """The same rows, if the first readable one has the columns that the settings name."""
    for row in rows:
        if "unreadable" not in row:
            for setting, name in (("id_column", settings.id_column), ("text_column", settings.text_column)):
                if name not in row:
                    raise UserError(
                        f"{settings.path} has no column {name!r}; it has {', '.join(map(str, row))}: "
                        f"name the right one as articles.{setting}=…"
                    )
            yield row
            break
        yield row
    yield from rows


def _source(settings: Articles) -> Iterator[dict[str, Any]]:
    path = settings.path
    if path.startswith("hf:"):
        yield from _hugging_face(path[3:])
        return
    columns = [settings.id_column, settings.text_column]
    try:
        fs, inner = open_place(path)
        kind = fs.get_file_info(inner).type
        if kind == pafs.FileType.Directory:
            raise UserError(f"articles.path is {path!r}, a folder: name one file in it")
        if kind != pafs.FileType.File:
            raise FileNotFoundError
        if path.endswith((".jsonl", ".jsonl.gz", ".ndjson")):
            with fs.open_input_stream(inner) as stream:
                yield from _json_lines(stream)
        elif path.endswith(".parquet"):
            with fs.open_input_file(inner) as stream:
                file = pq.ParquetFile(stream)
                present = [name for name in file.schema_arrow.names if name in columns]
                # A missing column is named by `_checked`, which must see the others' names to say them.
                wanted = present if len(present) == len(set(columns)) else None
                for batch in file.iter_batches(_ROWS, columns=wanted):
                    yield from batch.to_pylist()
        else:
            raise UserError(f"articles.path is {path!r}: it should end in .jsonl or .parquet, or begin with hf:")
    except FileNotFoundError:
        raise UserError(f"articles.path is {path!r}, and there is no such file") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}; is it cut off or damaged?") from None


def _json_lines(stream: Any) -> Iterator[dict[str, Any]]:
    import io

    for line in io.BufferedReader(stream):
        if line.strip():
            try:
                row = json.loads(line)
            except UnicodeDecodeError:
                row = {"unreadable": "not UTF-8"}
            except ValueError:
                row = {"unreadable": "not JSON"}
            yield row if isinstance(row, dict) else {"unreadable": "not a JSON object"}


def _hugging_face(name: str) -> Iterator[dict[str, Any]]:
    """`NAME`, `NAME/CONFIG` (after an owner) and `:SPLIT`, as in `abisee/cnn_dailymail/3.0.0:train`."""
    from datasets import load_dataset

    path, _, split = name.partition(":")
    owner_and_name, config = "/".join(path.split("/")[:2]), "/".join(path.split("/")[2:]) or None
    try:
        yield from load_dataset(owner_and_name, config, split=split or "train", streaming=True)
    except Exception as error:  # the hub's client raises a dozen unrelated classes
        raise UserError(f"articles.path is 'hf:{name}', which could not be loaded: {str(error)[:300]}") from None
