"""Tests of the ledger: an artifact without a record is not finished, and a damaged record is reported."""

import os

import pytest

from pipeline.config import UserError
from pipeline.storage.ledger import Ledger


@pytest.fixture
def ledger(tmp_path):
    return Ledger(str(tmp_path / "run"))


RECORD = {"build": "b1", "recipe": {"stage": "pairs"}}


def test_an_artifact_exists_once_its_record_is_written(ledger):
    assert ledger.find("pairs") is None
    ledger.write("pairs/part-1.parquet", "")
    assert ledger.find("pairs") is None
    ledger.finish("pairs", RECORD)
    assert ledger.find("pairs").build == "b1"
    ledger.clear("pairs")
    assert ledger.find("pairs") is None
    assert not os.path.exists(ledger.path("pairs"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"build": 1}', "null"])
def test_a_damaged_record_is_reported_with_its_path(ledger, text):
    ledger.write("pairs/record.json", text)
    with pytest.raises(UserError, match=r"pairs/record\.json is damaged: remove the folder pairs/"):
        ledger.find("pairs")


def test_an_impossible_run_folder_is_refused():
    with pytest.raises(UserError, match="cannot be opened"):
        Ledger("nonsense://bucket/run")


def test_a_file_uri_and_a_path_are_the_same_run_folder(tmp_path):
    ledger = Ledger(f"file://{tmp_path}/run")
    ledger.finish("pairs", RECORD)
    assert Ledger(str(tmp_path / "run")).find("pairs").build == "b1"
