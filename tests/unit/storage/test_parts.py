"""Tests of parts: each is complete or absent, its footer has its counts, and a retried task writes no row twice."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import UserError
from pipeline.storage import parts, streams, tables
from pipeline.storage.schema import COLUMNS
from tests.helpers.tables import write_table

row_outcomes = st.lists(
    st.tuples(st.sampled_from([None, "empty", "too long"]), st.sampled_from(["train", "eval"]), st.integers(0, 9)),
    max_size=12,
)


def table(outcomes, first_id=0):
    names = ("article_id", "split", "skipped", "tally")
    values = [
        (f"a{first_id + i}", split, reason, [{"what": "tokens", "count": tokens}])
        for i, (reason, split, tokens) in enumerate(outcomes)
    ]
    columns = zip(names, zip(*values, strict=True), strict=True) if values else ((name, []) for name in names)
    return pa.table({name: pa.array(list(column), COLUMNS[name]) for name, column in columns})


def ids(folder):
    return sorted(row["article_id"] for path in Path(folder).glob("part-*.parquet") for row in read(path))


def read(path):
    return pq.read_table(path, partitioning=None).to_pylist()


@given(row_outcomes, row_outcomes)
def test_every_row_is_kept_or_skipped_and_counted(tmp_path_factory, first, second):
    uri = str(tmp_path_factory.mktemp("lr=0.1"))
    outcomes, draft = [*first, *second], tables.begin_table(uri, "now")
    written = list(streams.write_rows([table(first), table(second, len(first)), table([])], draft))
    counts = tables.finish_table(draft, expected=None)
    kept = [i for i, (reason, _, _) in enumerate(outcomes) if reason is None]
    assert counts["in"] == sum(part.rows for part in written) == len(outcomes)
    assert counts["kept"] == len(kept)
    assert sum(counts["skipped"].values()) == len(outcomes) - len(kept)
    assert counts["tally"].get("tokens", 0) == sum(n for _, _, n in outcomes)
    for split in ("train", "eval"):
        assert counts["tally"].get(split, 0) == sum(outcomes[i][1] == split for i in kept)
    assert ids(uri) == sorted(f"a{i}" for i in kept)
    assert sorted(counts["parts"]) == sorted(name for name in os.listdir(uri) if name.endswith(".parquet"))
    assert ids(f"{uri}/skipped") == sorted(f"a{i}" for i, (reason, _, _) in enumerate(outcomes) if reason is not None)
    columns = {name for part in counts["parts"] for name in parts.read_part(uri, part).column_names}
    assert columns <= {"article_id", "split"}, "the folder's name is not a column, and skipped and tally are dropped"


@given(row_outcomes, row_outcomes, st.data())
def test_a_retried_task_writes_missing_rows_and_returns_the_written_ones(tmp_path_factory, first, second, data):
    """The retry may skip other rows than the first attempt, because sampling is not repeatable."""
    uri = str(tmp_path_factory.mktemp("table"))
    second = (second + first)[: len(first)]
    parts.write_part(table(first), uri, "now")
    written = parts.list_parts(uri)["parts"]
    if written:
        lost = data.draw(st.sampled_from([None, *written]))  # the task died between the two files
        if lost:
            os.remove(f"{uri}/{lost}")
    before = {name: Path(uri, name).read_bytes() for name in parts.list_parts(uri)["parts"]}
    kept = parts.write_part(table(second), uri, "now")
    for name, content in before.items():
        assert Path(uri, name).read_bytes() == content
    assert sorted(kept["article_id"].to_pylist()) == ids(uri)
    assert sorted(ids(uri) + ids(f"{uri}/skipped")) == sorted(f"a{i}" for i in range(len(first)))


ONE_KEPT_ROW = [(None, "train", 1)]


def test_parts_that_an_earlier_attempt_writes_late_are_not_in_the_table(tmp_path):
    uri = str(tmp_path)
    parts.write_part(table(ONE_KEPT_ROW), uri, "early")
    draft = tables.begin_table(uri, "now")
    parts.write_part(table(ONE_KEPT_ROW, 1), uri, "now")
    parts.write_part(table(ONE_KEPT_ROW, 1), uri, "early")  # a worker of the killed driver
    (tmp_path / "part-early-0.parquet.tmp").write_text("cut off")
    counts = tables.finish_table(draft, expected=None)
    assert (counts["kept"], counts["resumed"]) == (2, 1)
    assert ids(uri) == ["a0", "a1"]
    assert len(os.listdir(uri)) == 2


def test_a_table_that_lost_an_article_and_doubled_another_is_not_finished(tmp_path):
    expected = write_table([table(ONE_KEPT_ROW * 3)], str(tmp_path / "whole"))["ids"]
    assert tables.finish_table(tables.begin_table(str(tmp_path / "whole"), "then"), expected)["kept"] == 3
    broken = tables.begin_table(str(tmp_path / "broken"), "now")
    written = streams.write_rows([table(ONE_KEPT_ROW), table(ONE_KEPT_ROW * 2)], broken)
    assert sum(part.rows for part in written) == 3
    assert parts.count_rows(broken.uri, parts.list_parts(broken.uri)["parts"]).rows == 3
    assert tables.finish_table(broken, expected) is None


@pytest.mark.parametrize("damage", ["empty", "cut", "flip", "foreign"])
def test_a_damaged_part_is_dropped_from_an_unfinished_table_and_reported_in_a_finished_one(tmp_path, damage):
    uri = str(tmp_path)
    parts.write_part(table(ONE_KEPT_ROW * 50), uri, "early")
    parts.write_part(table(ONE_KEPT_ROW, 50), uri, "early")
    names = sorted(parts.list_parts(uri)["parts"], key=lambda name: os.path.getsize(f"{uri}/{name}"))
    path = Path(uri, names[-1])
    data = path.read_bytes()
    if damage == "foreign":
        pq.write_table(pa.table({"x": [1]}), path)
    else:
        flipped = data[:200] + bytes([data[200] ^ 255]) + data[201:]
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "flip": flipped}[damage])
    if damage != "foreign":
        with pytest.raises(UserError, match=r"part-early-\w+\.parquet is damaged or gone .* --remake"):
            parts.read_part(uri, names[-1])
    draft = tables.begin_table(uri, "now")
    assert draft.dropped == 1
    assert draft.ids.to_pylist() == ["a50"]


def test_one_of_two_parts_with_the_same_article_is_dropped(tmp_path):
    for attempt in ("one", "two"):
        parts.write_part(table(ONE_KEPT_ROW), str(tmp_path), attempt)
    draft = tables.begin_table(str(tmp_path), "three")
    assert (draft.dropped, draft.ids.to_pylist(), len(ids(tmp_path))) == (1, ["a0"], 1)


def test_a_part_with_articles_that_are_not_allowed_is_removed(tmp_path):
    parts.write_part(table(ONE_KEPT_ROW * 2), str(tmp_path), "one")
    draft = tables.begin_table(str(tmp_path), "two", allowed_ids=pa.chunked_array([["a1"]]))
    assert (draft.dropped, len(draft.ids)) == (1, 0)


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/table cannot be written: "):
        parts.write_part(table(ONE_KEPT_ROW), f"{tmp_path}/file/table", "now")
