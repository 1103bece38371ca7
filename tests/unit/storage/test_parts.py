"""Parts: whole or not there, counted from their footers, written once however often a task is run again."""

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

some_rows = st.lists(
    st.tuples(st.sampled_from([None, "empty", "too long"]), st.sampled_from(["train", "eval"]), st.integers(0, 9)),
    max_size=12,
)


def table(some, begin=0):
    names = ("article_id", "split", "skipped", "tally")
    values = [(f"a{begin + i}", s, r, [{"what": "tokens", "count": n}]) for i, (r, s, n) in enumerate(some)]
    columns = zip(names, zip(*values, strict=True), strict=True) if values else ((name, []) for name in names)
    return pa.table({name: pa.array(list(column), COLUMNS[name]) for name, column in columns})


def ids(folder):
    return sorted(row["article_id"] for path in Path(folder).glob("part-*.parquet") for row in read(path))


def read(path):
    return pq.read_table(path, partitioning=None).to_pylist()


@given(some_rows, some_rows)
def test_every_row_is_kept_or_skipped_and_counted(tmp_path_factory, one, other):
    uri = str(tmp_path_factory.mktemp("lr=0.1"))
    some, begun = [*one, *other], tables.begin_table(uri, "now")
    seen = list(streams.write_rows([table(one), table(other, len(one)), table([])], begun))
    counts = tables.finish_table(begun, expected=None)
    kept = [i for i, (reason, _, _) in enumerate(some) if reason is None]
    assert counts["in"] == sum(seen) == len(some)
    assert counts["kept"] == len(kept)
    assert sum(counts["skipped"].values()) == len(some) - len(kept)
    assert counts["tally"].get("tokens", 0) == sum(n for _, _, n in some)
    for split in ("train", "eval"):
        assert counts["tally"].get(split, 0) == sum(some[i][1] == split for i in kept)
    assert ids(uri) == sorted(f"a{i}" for i in kept)
    assert sorted(counts["parts"]) == sorted(name for name in os.listdir(uri) if name.endswith(".parquet"))
    assert ids(f"{uri}/skipped") == sorted(f"a{i}" for i, (reason, _, _) in enumerate(some) if reason is not None)
    columns = {name for part in counts["parts"] for name in parts.read_part(uri, part).column_names}
    assert columns <= {"article_id", "split"}, "a folder's name is no column, and what is counted is no longer one"


@given(some_rows, some_rows, st.data())
def test_a_task_that_is_run_again_writes_what_is_missing_and_gives_what_is_there(tmp_path_factory, first, second, data):
    """The second time other rows may be skipped: sampling is not repeatable."""
    uri = str(tmp_path_factory.mktemp("table"))
    second = (second + first)[: len(first)]
    parts.write_part(table(first), uri, "now")
    written = parts.list_parts(uri)["parts"]
    if written:
        lost = data.draw(st.sampled_from([None, *written]))  # it died between the two files
        if lost:
            os.remove(f"{uri}/{lost}")
    before = {name: Path(uri, name).read_bytes() for name in parts.list_parts(uri)["parts"]}
    kept = parts.write_part(table(second), uri, "now")
    for name, text in before.items():
        assert Path(uri, name).read_bytes() == text
    assert sorted(kept["article_id"].to_pylist()) == ids(uri)
    assert sorted(ids(uri) + ids(f"{uri}/skipped")) == sorted(f"a{i}" for i in range(len(first)))


ONE = [(None, "train", 1)]


def test_what_another_attempt_writes_too_late_is_no_part_of_the_table(tmp_path):
    uri = str(tmp_path)
    parts.write_part(table(ONE), uri, "early")
    begun = tables.begin_table(uri, "now")
    parts.write_part(table(ONE, 1), uri, "now")
    parts.write_part(table(ONE, 1), uri, "early")  # a worker of the driver that was killed
    (tmp_path / "part-early-0.parquet.tmp").write_text("cut off")
    counts = tables.finish_table(begun, expected=None)
    assert (counts["kept"], counts["resumed"]) == (2, 1)
    assert ids(uri) == ["a0", "a1"]
    assert len(os.listdir(uri)) == 2


def test_a_table_that_lost_an_article_and_doubled_another_is_not_finished(tmp_path):
    expected = write_table([table(ONE * 3)], str(tmp_path / "whole"))["ids"]
    assert tables.finish_table(tables.begin_table(str(tmp_path / "whole"), "then"), expected)["kept"] == 3
    broken = tables.begin_table(str(tmp_path / "broken"), "now")
    assert sum(streams.write_rows([table(ONE), table(ONE * 2)], broken)) == 3
    assert parts.count_rows(broken.uri, parts.list_parts(broken.uri)["parts"]).rows == 3
    assert tables.finish_table(broken, expected) is None


@pytest.mark.parametrize("harm", ["empty", "cut", "flip", "foreign"])
def test_a_damaged_part_of_an_unfinished_table_is_made_again_and_of_a_finished_one_named(tmp_path, harm):
    uri = str(tmp_path)
    parts.write_part(table(ONE * 50), uri, "early")
    parts.write_part(table(ONE, 50), uri, "early")
    names = sorted(parts.list_parts(uri)["parts"], key=lambda name: os.path.getsize(f"{uri}/{name}"))
    path = Path(uri, names[-1])
    data = path.read_bytes()
    if harm == "foreign":
        pq.write_table(pa.table({"x": [1]}), path)
    else:
        flipped = data[:200] + bytes([data[200] ^ 255]) + data[201:]
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "flip": flipped}[harm])
    if harm != "foreign":
        with pytest.raises(UserError, match=r"part-early-\w+\.parquet is damaged or gone .* --remake"):
            parts.read_part(uri, names[-1])
    begun = tables.begin_table(uri, "now")
    assert begun.dropped == 1
    assert begun.ids.to_pylist() == ["a50"]


def test_of_two_parts_with_one_article_one_is_kept(tmp_path):
    for attempt in ("one", "two"):
        parts.write_part(table(ONE), str(tmp_path), attempt)
    begun = tables.begin_table(str(tmp_path), "three")
    assert (begun.dropped, begun.ids.to_pylist(), len(ids(tmp_path))) == (1, ["a0"], 1)


def test_a_part_of_rows_that_are_there_no_more_is_removed(tmp_path):
    parts.write_part(table(ONE * 2), str(tmp_path), "one")
    begun = tables.begin_table(str(tmp_path), "two", allowed_ids=pa.chunked_array([["a1"]]))
    assert (begun.dropped, len(begun.ids)) == (1, 0)


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/table cannot be written: "):
        parts.write_part(table(ONE), f"{tmp_path}/file/table", "now")
