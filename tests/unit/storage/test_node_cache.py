"""Tests of the node cache: a copy of a remote model is made again after a change, and refused in an unsafe folder."""

import os
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from pipeline.config import UserError
from pipeline.storage.model_files import node_cache


def copy(model, uri="far://model"):
    return Path(node_cache.local_copy(uri, pafs.LocalFileSystem(), str(model)))


def test_a_changed_model_and_another_uri_get_new_copies(node_tmp_folder, model_to_copy):
    first = copy(model_to_copy)
    (model_to_copy / "record.json").write_text("{}")  # the record of a policy is written after the policy was read
    assert copy(model_to_copy) == first
    (model_to_copy / "weights").write_text("2")
    assert (copy(model_to_copy) / "weights").read_text() == "2"
    assert copy(model_to_copy) != first != copy(model_to_copy, "far://other")
    assert (first / "weights").read_text() == "1"


def test_a_removed_copy_is_made_again(node_tmp_folder, model_to_copy):
    first = copy(model_to_copy)
    first.rename(node_tmp_folder / "elsewhere")
    assert copy(model_to_copy) == first
    assert (first / "config.json").is_file()


def test_a_failed_copy_leaves_no_files(node_tmp_folder, model_to_copy, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left")

    with monkeypatch.context() as full:
        full.setattr(pafs, "copy_files", fail)
        with pytest.raises(OSError, match="no space"):
            copy(model_to_copy)
    assert list((node_tmp_folder / f"rondo-{os.getuid()}/models").iterdir()) == []
    assert (copy(model_to_copy) / "config.json").is_file()


@pytest.mark.parametrize("problem", ["another's", "open", "a link"])
def test_a_cache_folder_that_others_can_write_is_refused(node_tmp_folder, model_to_copy, monkeypatch, problem):
    place = node_tmp_folder / f"rondo-{os.getuid()}"
    if problem == "a link":
        (node_tmp_folder / "target").mkdir(mode=0o700)
        place.symlink_to(node_tmp_folder / "target")
    else:
        place.mkdir(mode=0o700)
        place.chmod(0o770 if problem == "open" else 0o700)
        if problem == "another's":
            stranger = os.getuid() + 1
            place.rename(node_tmp_folder / f"rondo-{stranger}")
            monkeypatch.setattr(os, "getuid", lambda: stranger)
    with pytest.raises(UserError, match="should be a folder that only this user can open"):
        copy(model_to_copy)
