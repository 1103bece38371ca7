"""Ids are the same text whatever kind of file they come from, so an article stays in its split."""

import datetime
import json
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.judge.ratings import read_human_ratings
from pipeline.config.run import Articles
from pipeline.data.ids import UnusableId, id_text
from pipeline.stages import articles

UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (7.0, "7"),
        (-0.0, "0"),
        (2.0**53, "9007199254740992"),
        (10**30, "1" + "0" * 30),
        (7.5, "7.5"),
        (np.float64(7), "7"),
        (np.int64(7), "7"),
        (Decimal("7.00"), "7"),
        (Decimal("7.50"), "7.50"),
        ("7.0", "7.0"),
        (" a ", " a "),
        (UUID.bytes, str(UUID)),
        (UUID, str(UUID)),
        (datetime.date(2026, 1, 31), "2026-01-31"),
        (datetime.datetime(2026, 1, 31, 12), "2026-01-31 12:00:00"),
        (None, None),
        ("", None),
        (float("nan"), None),
        (Decimal("nan"), None),
    ],
)
def test_the_text_of_an_id(value: Any, text: str | None) -> None:
    assert id_text(value) == text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (True, "of a wrong type"),
        (np.True_, "of a wrong type"),
        ([1], "of a wrong type"),
        ({"a": 1}, "of a wrong type"),
        (b"seven", "of a wrong type"),
        (float("inf"), "too large for a float"),
        (1e17, "too large for a float"),
    ],
)
def test_what_cannot_be_an_id(value: Any, reason: str) -> None:
    with pytest.raises(UnusableId, match=reason):
        id_text(value)


@given(st.integers(-(2**53), 2**53))
def test_a_whole_float_is_its_integer(number: int) -> None:
    assert id_text(float(number)) == id_text(number) == id_text(f"{number}.0", all_text=True) == str(number)


@given(st.text())
def test_text_stays_as_it_is(text: str) -> None:
    assert id_text(text) == (text or None)


def write(path: Path, table: pd.DataFrame) -> Path:
    """Write a table in the kind of file that its name says."""
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_json(path, orient="records", lines=True)
    return path


def read(path: Path, **settings: Any) -> list[dict[str, Any]]:
    given = Articles(path=str(path), min_words=2, max_words=50, eval_fraction=0.5, near_copies=None, **settings)
    return [row for table in articles.read_articles(articles=given) for row in table.to_pylist()]


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.jsonl"])
@pytest.mark.parametrize("column", ["id_column", "group_column"])
def test_a_null_in_a_column_of_integers_moves_no_article_to_the_other_split(
    tmp_path: Path, name: str, column: str
) -> None:
    texts = [f"Article {i} tells of thing {i}." for i in range(40)]
    names = [f"a{i}" for i in range(40)]
    whole = pd.DataFrame({"name": names, "number": range(40), "text": texts})
    setting = {"id_column": "name"} | {column: "number"}
    with_null = whole.copy()
    with_null.loc[40] = ["a40", None, "Article 40 tells of thing 40."]
    assert with_null["number"].dtype == float

    before = read(write(tmp_path / name, whole), **setting)
    *after, last = read(write(tmp_path / name, with_null), **setting)

    assert [(row["article_id"], row["split"]) for row in after] == [(row["article_id"], row["split"]) for row in before]
    assert {row["skipped"] for row in after} == {None}
    assert last["skipped"] == ("no group" if column == "group_column" else "no id")


def test_binary_uuids_and_ids_that_cannot_be_used(tmp_path: Path) -> None:
    ids = [uuid.UUID(int=i).bytes for i in range(20)]
    texts = [f"Article {i} tells of thing {i}." for i in range(21)]
    table = pa.table({"id": pa.array([*ids, b"short"], pa.binary()), "text": texts})
    pq.write_table(table, tmp_path / "x.parquet")
    *good, bad = read(tmp_path / "x.parquet")
    assert [row["article_id"] for row in good] == [str(uuid.UUID(int=i)) for i in range(20)]
    assert (bad["article_id"], bad["skipped"]) == ("row 21", "id of a wrong type")


def test_later_rounds_know_ids_that_are_floats_now(tmp_path: Path) -> None:
    """A corpus that grew, with a null in its ids, gives only the new articles."""

    class Earlier:
        def select_columns(self, names: list[str]) -> "Earlier":
            return self

        def iter_batches(self, batch_format: str) -> list[pa.Table]:
            return [pa.table({"article_id": [str(i) for i in range(9)], "article": ["unlike any other"] * 9})]

    rows = [{"id": float(i), "text": f"Article {i} tells of thing {i}."} for i in range(40)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = Articles(path=str(tmp_path / "x.jsonl"), min_words=2, eval_fraction=0.5, near_copies=None, limit=100)
    tables = list(articles.read_new_articles(Earlier(), articles=given))  # type: ignore[arg-type]
    assert [row["article_id"] for table in tables for row in table.to_pylist()] == [str(i) for i in range(9, 40)]


def test_ratings_of_one_article_meet_although_one_id_is_a_float(tmp_path: Path) -> None:
    rows = [
        {"id": i, "article": "A town.", "summary": f"Town {n}.", "relevance": n, "rater": rater}
        for n, (i, rater) in enumerate([(7, 1), (7.0, 1.0), ("7", "1"), (float("nan"), None)], 1)
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ratings = read_human_ratings(str(tmp_path / "x.jsonl"))
    assert [(article.article_id, len(article.texts)) for article in ratings.articles] == [("7", 3), ("1", 1)]
    assert ratings.raters["relevance"] == ["1"]


def test_ratings_in_a_table_of_text_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,article,summary,relevance\n1,A town.,Town.,4.5\n1,A town.,Towns.,\n")
    ratings = read_human_ratings(str(tmp_path / "x.csv"))
    assert ratings.articles[0].ratings == [{"relevance": {"1": 4.5}}]
    assert ratings.left_out == {"rows without a rating": 1}
