"""The ledger: no record, not finished; the same recipe is reused, another refused."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import tables
from pipeline.config import UserError
from pipeline.ledger import Ledger, differences
from pipeline.rows import COLUMNS


@pytest.fixture
def ledger(tmp_path):
    return Ledger(str(tmp_path / "run"))


RECORD = {"build": "b1", "recipe": {"stage": "pairs"}}


def test_an_artifact_is_there_when_its_record_is(ledger):
    assert ledger.find("pairs") is None
    ledger.write("pairs/part-1.parquet", "")
    assert ledger.find("pairs") is None
    ledger.finish("pairs", RECORD)
    assert ledger.find("pairs").build == "b1"
    ledger.clear("pairs")
    assert ledger.find("pairs") is None
    assert not os.path.exists(ledger.path("pairs"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"build": 1}', "null"])
def test_a_damaged_record_is_named(ledger, text):
    ledger.write("pairs/record.json", text)
    with pytest.raises(UserError, match=r"pairs/record\.json is damaged: remove the folder pairs/"):
        ledger.find("pairs")


def test_a_run_folder_that_cannot_be():
    with pytest.raises(UserError, match="cannot be opened"):
        Ledger("nonsense://bucket/run")


def test_a_uri_is_a_path_too(tmp_path):
    ledger = Ledger(f"file://{tmp_path}/run")
    ledger.finish("pairs", RECORD)
    assert Ledger(str(tmp_path / "run")).find("pairs").build == "b1"


def test_what_changed_is_said_in_the_readers_terms():
    was = {"settings": {"pairs": {"threshold": 3, "min_words": 5}}, "inputs": {"scores": "a"}}
    now = {"settings": {"pairs": {"threshold": 4, "min_words": 5}}, "inputs": {"scores": "b"}}
    assert differences(was, now) == ["settings.pairs.threshold: was 3, now 4", 'inputs.scores: was "a", now "b"']


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(json_values, json_values)
def test_two_recipes_differ_exactly_if_a_difference_is_shown(was, now):
    # A setting that is null and one that is not there are the same to a recipe.
    if differences(was, now) == []:
        assert _without_none(was) == _without_none(now)
    assert differences(was, was) == []


def _without_none(value):
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v not in (None, {})} or None
    return value


rows = st.lists(
    st.tuples(st.sampled_from([None, "empty", "too long"]), st.sampled_from(["train", "eval"]), st.integers(0, 9)),
    max_size=12,
)


@given(rows)
def test_every_row_is_kept_or_skipped_and_counted(tmp_path_factory, some):
    uri = str(tmp_path_factory.mktemp("table"))
    names = ("article_id", "split", "skipped", "tally")
    values = [(str(i), s, r, [{"what": "tokens", "count": n}]) for i, (r, s, n) in enumerate(some)]
    columns = zip(names, zip(*values, strict=True), strict=True) if values else ((name, []) for name in names)
    table = pa.table({name: pa.array(list(column), COLUMNS[name]) for name, column in columns})
    seen = []
    counts = tables.write([table, table.slice(0, 0)], uri, seen.append)
    kept = [i for i, (reason, _, _) in enumerate(some) if reason is None]
    assert counts["in"] == sum(seen) == len(some)
    assert counts["kept"] == len(kept)
    assert sum(counts["skipped"].values()) == len(some) - len(kept)
    assert counts["tally"].get("tokens", 0) == sum(n for _, _, n in some)
    assert sorted(row["article_id"] for row in _read(uri)) == sorted(map(str, kept))
    assert sorted(counts["parts"]) == sorted(name for name in os.listdir(uri) if name.endswith(".parquet"))
    left = _read(f"{uri}/skipped")
    assert {row["article_id"]: row["skipped"] for row in left} == {
        str(i): reason for i, (reason, _, _) in enumerate(some) if reason is not None
    }


def test_what_a_dead_task_left_is_no_part_of_the_table(tmp_path):
    table = pa.table({name: pa.array([value], COLUMNS[name]) for name, value in ROW.items()})
    tables.write_part(table, str(tmp_path))  # written, and never reported
    counts = tables.write([table], str(tmp_path), lambda n: None)
    assert counts["kept"] == len(_read(tmp_path)) == 1


def test_parts_that_cannot_be_seen_from_here_are_no_table(tmp_path):
    class Elsewhere(list):
        def __iter__(self):
            yield from super().__iter__()
            for path in tmp_path.glob("*.parquet"):  # as if the worker's disk were not ours
                path.unlink()

    table = pa.table({name: pa.array([value], COLUMNS[name]) for name, value in ROW.items()})
    with pytest.raises(UserError, match="run= must be a folder that every node shares"):
        tables.write(Elsewhere([table]), str(tmp_path), lambda n: None)


ROW = {"article_id": "a", "split": "train", "skipped": None, "tally": []}


def _read(folder):
    names = os.listdir(folder) if os.path.isdir(folder) else []
    parts = [os.path.join(folder, name) for name in names if name.endswith(".parquet")]
    return [row for part in parts for row in pq.read_table(part).to_pylist()]
