"""Tests that random kills of drivers, workers and nodes neither lose, duplicate nor change a row."""

import json
import random
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from bench.recovery import chaos
from tests.helpers.cli import RUN_TIMEOUT, kill, start_rondo

SMALL = ["articles.limit=60", "summaries.n=4", "training.num_train_epochs=1", "training.pairs_per_step=16"]


@pytest.mark.parametrize("kills", [8, pytest.param(24, marks=pytest.mark.slow)])
def test_kills_lose_and_duplicate_nothing(kills):
    """Scripted engines, real reference log-probabilities and real training, on a cluster of two nodes."""
    tally = chaos.chaos(kills, articles=40, per_run=24, nodes=1, seed=1, pace=0.02, gap=7)
    assert tally.kills == kills
    assert (tally.lost, tally.duplicated, tally.wrong) == (0, 0, 0), tally
    assert (tally.stopped, tally.hung) == (0, 0), tally.errors


def test_the_tally_counts_each_kind_of_damage(tmp_path):
    """Shows that the comparison of the other test can fail."""

    def table(folder, names, rows):
        folder.mkdir(parents=True)
        for name, ids in zip(names, rows, strict=True):
            pq.write_table(pa.table({"article_id": ids, "text": [f"of {i}" for i in ids]}), folder / name)
        record = {"parts": list(names), "kept": sum(map(len, rows))}
        (folder / "record.json").write_text(json.dumps(record))

    def policy(folder, value):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"w": torch.full((2,), value)}, folder / "model.safetensors")

    def damage(rows, value=1.0, stray=False):
        run = tmp_path / str(random.random())
        table(run / "round-01/pairs", [f"part-{i}.parquet" for i in range(len(rows))], rows)
        policy(run / "round-01/policy", value)
        if stray:
            (run / "round-01/pairs/part-stray.parquet").write_bytes(b"")
        tally = chaos.Tally()
        chaos.compare(run, undisturbed, tally)
        return tally.lost, tally.duplicated, tally.wrong

    undisturbed = tmp_path / "undisturbed"
    table(undisturbed / "round-01/pairs", ["part-0.parquet"], [["a", "b", "c"]])
    policy(undisturbed / "round-01/policy", 1.0)
    assert damage([["a", "b"], ["c"]]) == (0, 0, 0)
    assert damage([["a", "b"]]) == (1, 0, 0)
    assert damage([["a", "b"], ["b", "c"]]) == (0, 1, 0)
    assert damage([["a", "b", "c"]], stray=True) == (0, 0, 1)
    assert damage([["a", "b", "c"]], value=2.0) == (0, 0, 1)
    assert damage([["a", "b", "x"]]) == (1, 0, 1)


@pytest.mark.slow
def test_real_engines_survive_random_kills(tmp_path):
    run, rng, kills = tmp_path / "run", random.Random(0), 0
    command = ("run", "configs/demo.yaml", f"run={run}", "rounds=1", *SMALL)
    while True:
        driver = start_rondo(*command)
        try:
            output, _ = driver.communicate(timeout=rng.uniform(5, 60) if kills < 6 else RUN_TIMEOUT)
        except subprocess.TimeoutExpired:
            assert kills < 6, "the run hangs"
            kill(driver)
            kills += 1
            continue
        assert driver.returncode == 0, output
        break
    assert kills >= 3
    for path in run.rglob("record.json"):
        record = json.loads(path.read_text())
        if "parts" not in record:
            continue
        rows = [row for part in record["parts"] for row in pq.read_table(path.parent / part).to_pylist()]
        skipped = [row for part in (path.parent / "skipped").glob("*") for row in pq.read_table(part).to_pylist()]
        ids = [row["article_id"] for row in (*rows, *skipped)]
        assert len(ids) == len(set(ids)) == record["in"], path
        assert len(rows) == record["kept"]
        assert {part.name for part in path.parent.glob("part-*")} == set(record["parts"])
