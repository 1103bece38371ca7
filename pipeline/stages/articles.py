"""The stage `articles`: a file, a folder or a Hugging Face dataset becomes one row per article.

The corpus is read once per run, or each round reads new articles. A bad row is skipped with its reason; a bad file is
refused with a message of one line. An article that is too long is skipped, never cut. The hash of an article's id,
or of its group, decides whether it is for training, held out, or for the test at the end of the run, so its position
never matters. `data/readers.py` opens the files, `data/ids.py` reads ids, and `data/dedup.py` finds near-copies.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
from ray.data import Dataset

from judges.text.words import count_words
from pipeline.config import UserError
from pipeline.config.run import Articles
from pipeline.data import readers
from pipeline.data.dedup import SeenArticles, SeenTexts
from pipeline.data.ids import UnusableId, id_text
from pipeline.data.readers import UNREADABLE, replace_surrogates
from pipeline.stages.base import stage
from pipeline.storage.schema import COLUMNS, SPLITS

_ROWS_PER_TABLE = 1000
_COLUMNS = ("article_id", "article", "split")

_articles = partial(stage, "articles", version=1, settings=("articles",), writes=_COLUMNS, workload="reading")


class NoNewArticles(UserError):
    """The corpus has no training article that earlier rounds did not read. The run then ends, which is no failure."""


@_articles(contents=("articles.path",))
def read_articles(*, articles: Articles) -> Iterator[pa.Table]:
    """Read the corpus.

    Yields:
        tables of article_id, article, split, skipped.

    Raises:
        UserError: there is no such file or dataset, it cannot be read, or a column is missing; or no article is left
            for training, none for evaluation, or none for the test that the settings ask for.
    """
    source = iter(_check_columns(_open_corpus(articles), articles))
    counts: Counter[str] = Counter()
    yield from _make_tables(
        _check_rows(islice(source, articles.limit), articles, SeenArticles(articles.near_copies)), counts
    )
    for split in SPLITS if articles.test_fraction else ("train", "eval"):
        if not counts[split]:
            summary = ", ".join(f"{what}: {count:,}" for what, count in counts.most_common())
            if not any(counts[each] for each in SPLITS):
                raise UserError(f"{articles.path} has no article that can be used ({summary})")
            raise UserError(
                f"{articles.path} has no article for {split} ({summary}): give more articles, or change "
                f"articles.{'test' if split == 'test' else 'eval'}_fraction, min_words or max_words"
            )


@_articles()
def read_first_articles(*, articles: Articles) -> Iterator[pa.Table]:
    """`read_articles` for runs whose later rounds read new articles.

    The corpus may grow between rounds, so its contents are not in the recipe.
    """
    yield from read_articles(articles=articles)


@_articles(inputs=("*earlier",), by_row=False)
def read_new_articles(*earlier: Dataset, articles: Articles) -> Iterator[pa.Table]:
    """Read up to `articles.limit` articles that no earlier round read.

    The id or the group decides the split, as in the first round. Held-out and test articles are read but not used,
    because the evaluations keep those of the first round. A near-copy of an article that was read before is skipped.

    Args:
        earlier: the tables of articles of the rounds before.
        articles: the settings of the corpus.

    Raises:
        NoNewArticles: the corpus has none to train on.
        UserError: as `read_articles`.
    """
    ids, seen = SeenTexts(), SeenArticles(articles.near_copies)
    for table in earlier:
        for batch in table.select_columns(["article_id", "article"]).iter_batches(batch_format="pyarrow"):
            for article_id, article in zip(*(batch[name].to_pylist() for name in batch.column_names), strict=True):
                ids.add(article_id)
                seen.add(article)
    source = _check_columns(_open_corpus(articles), articles)
    new = (row for row in source if not _is_known(row, articles, ids))
    counts: Counter[str] = Counter()
    held_back: list[pa.Table] = []  # until there is a training article: a round without one must write nothing
    for table in _make_tables(_take_kept(_check_rows(new, articles, seen), articles.limit), counts):
        held_back.append(table)
        if counts["train"]:
            yield from held_back
            held_back = []
    if not counts["train"]:
        raise NoNewArticles(f"{articles.path} has no new article to train on")


def check_corpus(settings: Articles) -> None:
    """Open the corpus and look at its first row. Raises UserError as `read_articles` does."""
    for _ in islice(_check_columns(_open_corpus(settings), settings), 1):
        return
    raise UserError(f"{settings.path} is empty: there is no article in it")


def is_held_out(name: str, fraction: float) -> bool:
    """Whether an article is held out. Only its id or group decides, so an article never moves to the other split."""
    return _hash(name) < fraction * 2**64


def is_for_test(name: str, fraction: float) -> bool:
    """Whether an article is for the test. These have the highest hashes, and the held-out articles the lowest.

    So a larger share of test articles takes articles from training only, and no held-out one.
    """
    return 2**64 - _hash(name) <= fraction * 2**64


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _choose_split(name: str, settings: Articles) -> str:
    if is_held_out(name, settings.eval_fraction):
        return "eval"
    return "test" if is_for_test(name, settings.test_fraction) else "train"


def _make_tables(rows: Iterator[dict[str, Any]], counts: Counter[str]) -> Iterator[pa.Table]:
    """Make tables of the rows. `counts` counts them by split, or by the reason why they are skipped."""
    while batch := list(islice(rows, _ROWS_PER_TABLE)):
        counts.update(row["skipped"] or row["split"] for row in batch)
        columns = (*_COLUMNS, "skipped")
        yield pa.table({name: pa.array([row[name] for row in batch], COLUMNS[name]) for name in columns})


def _take_kept(rows: Iterator[dict[str, Any]], limit: int | None) -> Iterator[dict[str, Any]]:
    """Yield rows until `limit` of them are kept."""
    kept = 0
    for row in rows:
        yield row
        kept += row["skipped"] is None
        if kept == limit:
            return


def _check_rows(source: Iterable[dict[str, Any]], settings: Articles, seen: SeenArticles) -> Iterator[dict[str, Any]]:
    """Turn the corpus's rows into rows of the table, each kept or with the reason why it is skipped.

    Args:
        seen: the articles of earlier rounds. Those of this round are added.
    """
    ids = SeenTexts()
    for number, row in enumerate(source, 1):
        article_id, fault = _read_name(row, settings.id_column, "id", settings)
        group = article_id
        if settings.group_column is not None and fault is None:
            group, fault = _read_name(row, settings.group_column, "group", settings)
        text = row.get(settings.text_column)
        article_id = f"row {number}" if article_id is None else article_id
        article = replace_surrogates(text) if isinstance(text, str) else ""
        is_new = ids.add(article_id)
        skipped = row.get(UNREADABLE) or fault or (None if isinstance(text, str) else "no text")
        if skipped is None:
            skipped = "duplicate id" if not is_new else _length_fault(article, settings)
        if skipped is None and not seen.add(article):
            # With copies in two splits, the figures of held-out or test articles would be wrong.
            skipped = "near-copy of another article"
        split = _choose_split(group or article_id, settings)
        yield {"article_id": replace_surrogates(article_id), "article": article, "split": split, "skipped": skipped}


def _is_known(row: dict[str, Any], settings: Articles, ids: SeenTexts) -> bool:
    article_id, _ = _read_name(row, settings.id_column, "id", settings)
    return article_id is not None and replace_surrogates(article_id) in ids


def _read_name(row: dict[str, Any], column: str, what: str, settings: Articles) -> tuple[str | None, str | None]:
    """The id or the group of a row, and why the row cannot be used; one of the two is None."""
    try:
        name = id_text(row.get(column), all_text=readers.has_only_text(settings.path))
    except UnusableId as error:
        return None, f"{what} {error}"
    return name, None if name is not None else f"no {what}"


def _length_fault(article: str, settings: Articles) -> str | None:
    words = count_words(article)
    if not words:
        return "empty"
    if words < settings.min_words:
        return f"under {settings.min_words} words"
    return f"over {settings.max_words} words" if words > settings.max_words else None


def _check_columns(rows: Iterator[dict[str, Any]], settings: Articles) -> Iterator[dict[str, Any]]:
    """Yield the same rows. Raise UserError if the first readable one lacks a column that the settings name."""
    for row in rows:
        if UNREADABLE not in row:
            for setting in ("id_column", "text_column", "group_column"):
                name = getattr(settings, setting)
                if name is not None and name not in row:
                    raise UserError(
                        f"{settings.path} has no column {name!r}; it has {', '.join(map(str, row))}: "
                        f"name the right one as articles.{setting}=…"
                    )
            yield row
            break
        yield row
    yield from rows


def _open_corpus(settings: Articles) -> Iterator[dict[str, Any]]:
    columns = (settings.id_column, settings.text_column, settings.group_column)
    needed = [name for name in columns if name is not None]
    return readers.read_rows(
        settings.path, "articles.path", needed, is_row=lambda row: not row.keys().isdisjoint(needed)
    )
