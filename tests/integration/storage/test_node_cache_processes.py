"""Tests of the node cache with several processes: they share a copy, which is removed when none of them reads it."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.fs as pafs

from pipeline.storage.model_files import node_cache
from tests.helpers.paths import ROOT

PROCESS = """
import sys
import pyarrow.fs as pafs
from pipeline.storage.model_files import node_cache
print(node_cache.local_copy(sys.argv[1], pafs.LocalFileSystem(), sys.argv[2]), flush=True)
input()
"""


def copy(model, uri="far://model"):
    return Path(node_cache.local_copy(uri, pafs.LocalFileSystem(), str(model)))


def start(node_tmp_folder, model, uri="far://model"):
    command = [sys.executable, "-c", PROCESS, uri, str(model)]
    environment = os.environ | {"TMPDIR": str(node_tmp_folder)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def age(path):
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 2 * node_cache.UNUSED_SECONDS))


def test_processes_share_one_copy_that_other_users_cannot_open(node_tmp_folder, model_to_copy):
    started = [start(node_tmp_folder, model_to_copy) for _ in range(4)]
    printed_paths = [process.stdout.readline().strip() for process in started]
    assert {copy(model_to_copy)} == set(map(Path, printed_paths))
    assert os.listdir(copy(model_to_copy).parent) == [copy(model_to_copy).name]
    assert (copy(model_to_copy) / "weights").read_text() == "1"
    assert not (copy(model_to_copy) / "checkpoints").exists()
    assert {path.stat().st_mode & 0o777 for path in (copy(model_to_copy), *copy(model_to_copy).parents[:2])} == {0o700}
    for process in started:
        process.communicate("\n")


def test_a_copy_is_removed_when_it_is_not_held_and_not_requested_for_a_day(node_tmp_folder, model_to_copy):
    reader = start(node_tmp_folder, model_to_copy, "far://read")
    read = Path(reader.stdout.readline().strip())
    mine, fresh, half_copy = (
        copy(model_to_copy, "far://mine"),
        copy(model_to_copy, "far://fresh"),
        read.with_name("part-of-the-dead"),
    )
    half_copy.mkdir()
    for old in (read, mine, half_copy):
        age(old)
    last = copy(model_to_copy, "far://last")
    assert set(read.parent.iterdir()) == {read, mine, fresh, last}
    reader.communicate("\n")
    node_cache.release_copies()
    for old in (mine, fresh):
        age(old)
    assert copy(model_to_copy, "far://mine") == mine  # requested again
    added = copy(model_to_copy, "far://added")
    assert set(read.parent.iterdir()) == {mine, last, added}
