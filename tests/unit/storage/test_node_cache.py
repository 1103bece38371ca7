"""One copy a node of a model that is elsewhere: shared by processes, made anew, and removed when it harms nobody."""

import os
import tempfile
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from pipeline.config import UserError
from pipeline.storage.model_files import node_cache


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A temporary folder of the node's, in which this process holds nothing afterwards."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    yield tmp_path / "tmp"
    node_cache.release_copies()


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model/checkpoints").mkdir(parents=True)
    (tmp_path / "model/checkpoints/half").write_text("of a training")
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/weights").write_text("1")
    return tmp_path / "model"


def copy(model, uri="far://model"):
    return Path(node_cache.local_copy(uri, pafs.LocalFileSystem(), str(model)))


def test_a_changed_model_and_another_one_are_other_copies(here, model):
    first = copy(model)
    (model / "record.json").write_text("{}")  # a policy's is written when it was looked at
    assert copy(model) == first
    (model / "weights").write_text("2")
    assert (copy(model) / "weights").read_text() == "2"
    assert copy(model) != first != copy(model, "far://other")
    assert (first / "weights").read_text() == "1"


def test_a_copy_that_somebody_removed_is_made_again(here, model):
    first = copy(model)
    first.rename(here / "elsewhere")
    assert copy(model) == first
    assert (first / "config.json").is_file()


def test_what_cannot_be_copied_leaves_nothing(here, model, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left")

    with monkeypatch.context() as full:
        full.setattr(pafs, "copy_files", fail)
        with pytest.raises(OSError, match="no space"):
            copy(model)
    assert list((here / f"rondo-{os.getuid()}/models").iterdir()) == []
    assert (copy(model) / "config.json").is_file()


@pytest.mark.parametrize("whose", ["another's", "open", "a link"])
def test_a_place_where_others_can_write_is_refused(here, model, monkeypatch, whose):
    place = here / f"rondo-{os.getuid()}"
    if whose == "a link":
        (here / "target").mkdir(mode=0o700)
        place.symlink_to(here / "target")
    else:
        place.mkdir(mode=0o700)
        place.chmod(0o770 if whose == "open" else 0o700)
        if whose == "another's":
            stranger = os.getuid() + 1
            place.rename(here / f"rondo-{stranger}")
            monkeypatch.setattr(os, "getuid", lambda: stranger)
    with pytest.raises(UserError, match="should be a folder that only this user can open"):
        copy(model)
