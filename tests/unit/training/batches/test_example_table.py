"""Examples in a mapped file, and the file that the workers of a node share."""

import errno
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.storage.model_files import node_cache
from pipeline.training.batches import example_table
from pipeline.training.batches.batching import micro_batches, plan_steps
from pipeline.training.batches.example import Example
from pipeline.training.batches.example_table import ExampleTable, write_file
from pipeline.training.batches.node_file import shared_file
from tests.helpers.paths import ROOT
from tests.helpers.training import article_ids, random_examples


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Examples of every kind: with and without weights, unscored tokens, sampled values and shared reference values."""
    rich = [
        replace(
            example,
            sampled_logps=tuple(None if i == 0 else logp / 3 for i, logp in enumerate(example.reference_logps)),
            weights=(1 / 3,) * len(example.pairs),
            unscored=((0, 1), *((0, 0),) * (len(example.completions) - 1)),
            reference_shared_logps=((-1 / 3, -2.5),) * len(example.pairs),
        )
        for example in random_examples(40, seed=1)
    ]
    plain = [replace(example, article_id=f"plain {example.article_id}") for example in random_examples(40, seed=2)]
    return [*rich, *plain]


def assert_equal(found: Example, expected: Example) -> None:
    for name in Example.__dataclass_fields__:
        if name == "prompt_ids":
            assert np.array_equal(found.prompt_ids, expected.prompt_ids)
        elif name == "completions":
            assert [ids.tolist() for ids in found.completions] == [ids.tolist() for ids in expected.completions]
        else:
            assert getattr(found, name) == getattr(expected, name), name


def test_a_file_gives_the_examples_back_after_it_is_removed(
    examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example_table, "_BATCH_TOKENS", 200)  # several record batches
    monkeypatch.setattr(example_table, "_READS_BEFORE_RELEASE", 7)
    write_file(examples[::-1], tmp_path / "file")
    table = ExampleTable.map_file(tmp_path / "file")
    (tmp_path / "file").unlink()

    assert len(table.stored.starts) > 5
    assert article_ids(table) == sorted(article_ids(examples))
    for found, expected in zip(table, sorted(examples, key=lambda example: example.article_id), strict=True):
        assert_equal(found, expected)
    assert table.weights.tolist() == [example.weight for example in table]
    assert table.longest == max(example.longest for example in examples)
    assert table.has_reference and not ExampleTable.of([replace(examples[0], reference_logps=())]).has_reference


def test_a_step_can_be_read_without_those_before_it(examples: list[Example], tmp_path: Path) -> None:
    """A resumed run reads its first step alone. It is that of a plan of the same rows in memory, in every value."""
    write_file(examples[::-1], tmp_path / "file")
    in_memory = plan_steps(ExampleTable.of(examples), epochs=3, pairs_per_step=7, seed=1)
    steps = list(in_memory)
    assert len(steps) == len(in_memory) > 9 and [step.epoch for step in steps][-1] == 3
    for number in (len(steps) // 2, len(steps) - 1):
        mapped = plan_steps(ExampleTable.map_file(tmp_path / "file"), epochs=3, pairs_per_step=7, seed=1)[number]
        assert mapped.epoch == steps[number].epoch and mapped.sizes == steps[number].sizes
        rows = [micro_batches(s.examples, rank=0, workers=1, tokens_per_batch=90) for s in (mapped, steps[number])]
        for found, expected in zip(*rows, strict=True):
            for name in ("chosen", "rejected", "reference_logps", "lengths", "weights", "reference_shared_logps"):
                assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name
            assert found.tree.input_ids.tolist() == expected.tree.input_ids.tolist()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this node's files are."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return node_cache.user_folder("examples")


def test_workers_share_a_file_and_leave_none(folder: Path) -> None:
    def write(path: Path) -> None:
        assert not path.with_name("examples").exists(), "the file appears whole"
        path.write_text("rows")

    with shared_file("a", write) as path, shared_file("a", lambda path: pytest.fail("it is there")) as same:
        assert same == path and path.read_text() == "rows"
        assert socket.gethostname() in str(path)
    assert not list(folder.iterdir())


def test_a_full_disk_is_reported_with_a_remedy(folder: Path) -> None:
    def fill(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ValueError, match="do not fit into .* set TMPDIR"), shared_file("a", fill):
        pass
    assert not list(folder.iterdir())


WORKER = """
import sys, tempfile, time
from pathlib import Path
from pipeline.training.batches.node_file import shared_file
tempfile.tempdir, name, moment = sys.argv[1:]
def write(path):
    path.write_text("rows")
    if moment == "writing":
        print("ready", flush=True); time.sleep(60)
with shared_file(name, write):
    print("ready", flush=True); time.sleep(60)
"""


@pytest.mark.parametrize("moment", ["writing", "mapping"])
def test_the_next_training_removes_what_a_killed_one_left(folder: Path, tmp_path: Path, moment: str) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path), "killed", moment]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None and worker.stdout.readline() == b"ready\n"
        if moment == "mapping":  # another training leaves the file alone while the worker lives
            with shared_file("other", lambda path: path.write_text("rows")):
                assert len(list(folder.iterdir())) == 2
        worker.kill()
    assert len(list(folder.iterdir())) == 1
    with shared_file("next", lambda path: path.write_text("rows")) as path:
        assert list(folder.iterdir()) == [path.parent]


def memory(name: str) -> int:
    """Bytes, by a line of this process's status."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """All steps of 100 MB of token ids are read, and take neither the process's own memory nor its RSS."""
    ids = np.arange(1000, dtype=np.int32)
    names = [f"{number:08d}" for number in range(8000)]
    write_file((Example(name, ids, (ids, ids), ((0, 1),), (-1.0, -1.0)) for name in names), tmp_path / "file")
    assert (tmp_path / "file").stat().st_size > 90e6
    before = {name: memory(name) for name in ("RssAnon", "VmRSS")}
    plan = plan_steps(ExampleTable.map_file(tmp_path / "file"), epochs=1, pairs_per_step=36, seed=0)
    assert sum(int(example.prompt_ids[-1]) for step in plan for example in step.examples) == 999 * len(names)
    assert memory("RssAnon") - before["RssAnon"] < 10e6
    assert memory("VmRSS") - before["VmRSS"] < 45e6
