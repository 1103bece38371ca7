"""The corpus: a file or a Hugging Face dataset becomes one row per article, once a run or some more for each round.

Bad rows are set aside, each with its reason; a bad file is refused in one line. Whether an article trains or
examines is decided by the hash of its id, never by its position. Left out: opening files (`sources.py`); cutting: an
article too long is skipped.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
from ray.data import Dataset

from pipeline.config import UserError
from pipeline.config.run import Articles
from pipeline.data import readers
from pipeline.data.dedup import SeenTexts
from pipeline.data.readers import UNREADABLE, replace_surrogates
from pipeline.stages.base import stage
from pipeline.storage.schema import COLUMNS

_ROWS = 1000  # articles a table
_OPENING = 40  # words that two articles must share from the start to be near-copies


_WRITES = ("article_id", "article", "split")
_articles = partial(stage, "articles", version=1, settings=("articles",), writes=_WRITES)


class NoNewArticles(UserError):
    """The corpus holds no article to train on that earlier rounds did not take. Nothing is wrong with that."""


@_articles(contents=("articles.path",))
def read_articles(*, articles: Articles) -> Iterator[pa.Table]:
    """Read the corpus.

    Yields:
        tables of article_id, article, split, skipped.

    Raises:
        UserError: no such file or dataset, an unreadable file, a missing column.
    """
    raw = iter(_checked(_source(articles), articles))
    found: Counter[str] = Counter()
    yield from _tables(_rows(islice(raw, articles.limit), articles, SeenTexts()), found)
    for split in ("train", "eval"):
        if not found[split]:
            counts = ", ".join(f"{what}: {count:,}" for what, count in found.most_common())
            if not found["train"] + found["eval"]:
                raise UserError(f"{articles.path} has no article that can be used ({counts})")
            raise UserError(
                f"{articles.path} has no article for {split} ({counts}): give more articles, or change "
                "articles.eval_fraction, min_words or max_words"
            )


@_articles()
def read_first_articles(*, articles: Articles) -> Iterator[pa.Table]:
    """`read`, where later rounds read on: the corpus grows, so what it holds now is no part of the recipe."""
    yield from read_articles(articles=articles)


@_articles(whole=True)
def read_new_articles(*taken: Dataset, articles: Articles) -> Iterator[pa.Table]:
    """Read on: up to `articles.limit` articles that are not among those `taken` by the rounds before.

    Which side one is on its id decides, as ever: an article held out is taken and not used, for the exam stays the
    first round's. A near-copy of any that was taken is set aside.

    Raises:
        NothingNew: there is none to train on.
        UserError: as `read`.
    """
    ids, openings = SeenTexts(), SeenTexts()
    for table in taken:
        for batch in table.select_columns(["article_id", "article"]).iter_batches(batch_format="pyarrow"):
            for article_id, article in zip(*(batch[name].to_pylist() for name in batch.column_names), strict=True):
                ids.add(article_id)
                openings.add(_opening(article))
    column = articles.id_column
    new = (row for row in _checked(_source(articles), articles) if replace_surrogates(str(row.get(column))) not in ids)
    found: Counter[str] = Counter()
    held_back: list[pa.Table] = []  # of a round that is not played nothing is written
    for table in _tables(_up_to(_rows(new, articles, openings), articles.limit), found):
        held_back.append(table)
        if found["train"]:
            yield from held_back
            held_back = []
    if not found["train"]:
        raise NoNewArticles(f"{articles.path} has no new article to train on")


def check_corpus(settings: Articles) -> None:
    """Open the corpus and look at its first row. Raises UserError as `read` does."""
    for _ in islice(_checked(_source(settings), settings), 1):
        return
    raise UserError(f"{settings.path} is empty: there is no article in it")


def is_held_out(article_id: str, fraction: float) -> bool:
    """Whether an article is held out: decided by its id alone, so that it never changes sides."""
    digest = hashlib.sha256(article_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _tables(rows: Iterator[dict[str, Any]], found: Counter[str]) -> Iterator[pa.Table]:
    """The rows as tables; `found` counts them by split, or by the reason why they are set aside."""
    while batch := list(islice(rows, _ROWS)):
        found.update(row["skipped"] or row["split"] for row in batch)
        yield pa.table({name: pa.array([row[name] for row in batch], COLUMNS[name]) for name in (*_WRITES, "skipped")})


def _up_to(rows: Iterator[dict[str, Any]], limit: int | None) -> Iterator[dict[str, Any]]:
    """Rows until so many are kept."""
    kept = 0
    for row in rows:
        yield row
        kept += row["skipped"] is None
        if kept == limit:
            return


def _opening(article: str) -> str:
    """Equal of near-copies."""
    return " ".join(re.findall(r"\w+", article.casefold())[:_OPENING])


def _rows(raw: Iterable[dict[str, Any]], settings: Articles, openings: SeenTexts) -> Iterator[dict[str, Any]]:
    """Checked rows. `openings` are of articles that are there already, and those found here are added."""
    ids = SeenTexts()
    for number, row in enumerate(raw, 1):
        article_id, text = row.get(settings.id_column), row.get(settings.text_column)
        skipped = row.get(UNREADABLE)
        if article_id != article_id:  # NaN, which a table with gaps has for a number
            article_id = None
        if skipped is None and (article_id is None or article_id == ""):
            skipped = "no id"
        if skipped is None and isinstance(article_id, bool | list | dict | bytes):
            skipped = "id of a wrong type"
        if skipped is None and not isinstance(text, str):
            skipped = "no text"
        article_id = f"row {number}" if article_id in (None, "") else str(article_id)
        article = replace_surrogates(text) if isinstance(text, str) else ""
        words = article.split()
        new = ids.add(article_id)
        if skipped is not None:
            pass
        elif not new:
            skipped = "duplicate id"
        elif not words:
            skipped = "empty"
        elif len(words) < settings.min_words:
            skipped = f"under {settings.min_words} words"
        elif len(words) > settings.max_words:
            skipped = f"over {settings.max_words} words"
        elif not openings.add(_opening(article)):
            # Seen in both train and eval, a copy would make the held-out figures a lie.
            skipped = "near-copy of another article"
        split = "eval" if is_held_out(article_id, settings.eval_fraction) else "train"
        yield {"article_id": replace_surrogates(article_id), "article": article, "split": split, "skipped": skipped}


def _checked(rows: Iterator[dict[str, Any]], settings: Articles) -> Iterator[dict[str, Any]]:
    """The same rows, if the first readable one has the columns that the settings name."""
    for row in rows:
        if UNREADABLE not in row:
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
    return readers.read_rows(settings.path, "articles.path", (settings.id_column, settings.text_column))
