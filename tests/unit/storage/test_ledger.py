"""The ledger: no record, not finished; the same recipe is reused, another refused."""

import os

import pytest

from pipeline.config import UserError
from pipeline.storage.ledger import Ledger


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
