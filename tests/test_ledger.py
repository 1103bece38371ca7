"""The ledger: no record, not finished; the same recipe is reused, another refused."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import UserError
from pipeline.storage.ledger import Ledger, differences


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
