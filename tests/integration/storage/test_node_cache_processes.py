"""The copy of a model on a node, shared by processes and removed when none of them reads it."""

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


def start(here, model, uri="far://model"):
    command = [sys.executable, "-c", PROCESS, uri, str(model)]
    environment = os.environ | {"TMPDIR": str(here)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def age(path):
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 2 * node_cache.UNUSED_SECONDS))


def test_processes_share_one_copy_that_nobody_else_can_open(here, model):
    started = [start(here, model) for _ in range(4)]
    said = [process.stdout.readline().strip() for process in started]
    assert {copy(model)} == set(map(Path, said))
    assert os.listdir(copy(model).parent) == [copy(model).name]
    assert (copy(model) / "weights").read_text() == "1"
    assert not (copy(model) / "checkpoints").exists()
    assert {path.stat().st_mode & 0o777 for path in (copy(model), *copy(model).parents[:2])} == {0o700}
    for process in started:
        process.communicate("\n")


def test_a_copy_goes_when_nobody_reads_it_and_nobody_asked_in_a_day(here, model):
    reader = start(here, model, "far://read")
    read = Path(reader.stdout.readline().strip())
    mine, fresh, begun = copy(model, "far://mine"), copy(model, "far://fresh"), read.with_name("part-of-the-dead")
    begun.mkdir()
    for old in (read, mine, begun):
        age(old)
    last = copy(model, "far://last")
    assert set(read.parent.iterdir()) == {read, mine, fresh, last}
    reader.communicate("\n")
    node_cache.release_copies()
    for old in (mine, fresh):
        age(old)
    assert copy(model, "far://mine") == mine  # asked for again
    added = copy(model, "far://added")
    assert set(read.parent.iterdir()) == {mine, last, added}
