"""Tests of the node cache with several processes: they share a copy, which is removed when none of them reads it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from pipeline.storage.model_files import node_cache
from tests.helpers.paths import ROOT

PROCESS = """
import sys
import pyarrow.fs as pafs
from pipeline.storage.model_files import node_cache
print(node_cache.local_copy(sys.argv[1], pafs.LocalFileSystem(), sys.argv[2]), flush=True)
input()
"""


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


def start(tmp_folder, model, uri="far://model"):
    command = [sys.executable, "-c", PROCESS, uri, str(model)]
    environment = os.environ | {"TMPDIR": str(tmp_folder)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def age(path):
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 2 * node_cache.UNUSED_SECONDS))


def test_processes_share_one_copy_that_other_users_cannot_open(tmp_folder, model):
    started = [start(tmp_folder, model) for _ in range(4)]
    printed_paths = [process.stdout.readline().strip() for process in started]
    assert {copy(model)} == set(map(Path, printed_paths))
    assert os.listdir(copy(model).parent) == [copy(model).name]
    assert (copy(model) / "weights").read_text() == "1"
    assert not (copy(model) / "checkpoints").exists()
    assert {path.stat().st_mode & 0o777 for path in (copy(model), *copy(model).parents[:2])} == {0o700}
    for process in started:
        process.communicate("\n")


def test_a_copy_is_removed_when_it_is_not_held_and_not_requested_for_a_day(tmp_folder, model):
    reader = start(tmp_folder, model, "far://read")
    read = Path(reader.stdout.readline().strip())
    mine, fresh, half_copy = copy(model, "far://mine"), copy(model, "far://fresh"), read.with_name("part-of-the-dead")
    half_copy.mkdir()
    for old in (read, mine, half_copy):
        age(old)
    last = copy(model, "far://last")
    assert set(read.parent.iterdir()) == {read, mine, fresh, last}
    reader.communicate("\n")
    node_cache.release_copies()
    for old in (mine, fresh):
        age(old)
    assert copy(model, "far://mine") == mine  # requested again
    added = copy(model, "far://added")
    assert set(read.parent.iterdir()) == {mine, last, added}
