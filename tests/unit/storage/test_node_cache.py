"""Tests of the node cache: a copy of a remote model is made again after a change, and refused in an unsafe folder."""

import os
import tempfile
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from pipeline.config import UserError
from pipeline.storage.model_files import node_cache


@pytest.fixture
def tmp_folder(tmp_path, monkeypatch):
    """The node's temporary folder. After the test this process holds no copy in it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    yield tmp_path / "tmp"
    node_cache.release_copies()


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model/checkpoints").mkdir(parents=True)
    (tmp_path / "model/checkpoints/half").write_text("checkpoint")
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/weights").write_text("1")
    return tmp_path / "model"


def copy(model, uri="far://model"):
    return Path(node_cache.local_copy(uri, pafs.LocalFileSystem(), str(model)))


def test_a_changed_model_and_another_uri_get_new_copies(tmp_folder, model):
    first = copy(model)
    (model / "record.json").write_text("{}")  # the record of a policy is written after the policy was read
    assert copy(model) == first
    (model / "weights").write_text("2")
    assert (copy(model) / "weights").read_text() == "2"
    assert copy(model) != first != copy(model, "far://other")
    assert (first / "weights").read_text() == "1"


def test_a_removed_copy_is_made_again(tmp_folder, model):
    first = copy(model)
    first.rename(tmp_folder / "elsewhere")
    assert copy(model) == first
    assert (first / "config.json").is_file()


def test_a_failed_copy_leaves_no_files(tmp_folder, model, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left")

    with monkeypatch.context() as full:
        full.setattr(pafs, "copy_files", fail)
        with pytest.raises(OSError, match="no space"):
            copy(model)
    assert list((tmp_folder / f"rondo-{os.getuid()}/models").iterdir()) == []
    assert (copy(model) / "config.json").is_file()


@pytest.mark.parametrize("problem", ["another's", "open", "a link"])
def test_a_cache_folder_that_others_can_write_is_refused(tmp_folder, model, monkeypatch, problem):
    place = tmp_folder / f"rondo-{os.getuid()}"
    if problem == "a link":
        (tmp_folder / "target").mkdir(mode=0o700)
        place.symlink_to(tmp_folder / "target")
    else:
        place.mkdir(mode=0o700)
        place.chmod(0o770 if problem == "open" else 0o700)
        if problem == "another's":
            stranger = os.getuid() + 1
            place.rename(tmp_folder / f"rondo-{stranger}")
            monkeypatch.setattr(os, "getuid", lambda: stranger)
    with pytest.raises(UserError, match="should be a folder that only this user can open"):
        copy(model)
