"""Drivers, workers and nodes killed at random: each article is there once, and is what it is undisturbed."""

import json
import random
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from bench.recovery import chaos
from tests.helpers.cli import PACE, kill, start

SMALL = ["articles.limit=60", "summaries.n=4", "training.num_train_epochs=1", "training.pairs_per_step=16"]


def test_two_dozen_kills_lose_nothing_and_double_nothing():
    """With scripted engines, a real reference and a real training, on a cluster of two nodes."""
    tally = chaos.chaos(24, articles=40, per_run=24, nodes=1, seed=1, pace=0.02, gap=7)
    assert tally.kills == 24
    assert (tally.lost, tally.duplicated, tally.wrong) == (0, 0, 0), tally
    assert (tally.stopped, tally.hung) == (0, 0), tally.errors


def test_what_the_tally_would_see(tmp_path):
    """A check that cannot fail would prove nothing: each kind of harm is counted."""

    def table(folder, names, rows):
        folder.mkdir(parents=True)
        for name, ids in zip(names, rows, strict=True):
            pq.write_table(pa.table({"article_id": ids, "text": [f"of {i}" for i in ids]}), folder / name)
        said = {"parts": list(names), "kept": sum(map(len, rows))}
        (folder / "record.json").write_text(json.dumps(said))

    def policy(folder, value):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"w": torch.full((2,), value)}, folder / "model.safetensors")

    def tally(rows, value=1.0, stray=False):
        run = tmp_path / str(random.random())
        table(run / "round-01/pairs", [f"part-{i}.parquet" for i in range(len(rows))], rows)
        policy(run / "round-01/policy", value)
        if stray:
            (run / "round-01/pairs/part-stray.parquet").write_bytes(b"")
        found = chaos.Tally()
        chaos.compare(run, calm, found)
        return found.lost, found.duplicated, found.wrong

    calm = tmp_path / "calm"
    table(calm / "round-01/pairs", ["part-0.parquet"], [["a", "b", "c"]])
    policy(calm / "round-01/policy", 1.0)
    assert tally([["a", "b"], ["c"]]) == (0, 0, 0)
    assert tally([["a", "b"]]) == (1, 0, 0)
    assert tally([["a", "b"], ["b", "c"]]) == (0, 1, 0)
    assert tally([["a", "b", "c"]], stray=True) == (0, 0, 1)
    assert tally([["a", "b", "c"]], value=2.0) == (0, 0, 1)
    assert tally([["a", "b", "x"]]) == (1, 0, 1)


@pytest.mark.slow
def test_real_engines_and_a_real_training_killed_at_random(tmp_path):
    run, rng, kills = tmp_path / "run", random.Random(0), 0
    command = ("run", "configs/demo.yaml", f"run={run}", "rounds=1", *SMALL)
    while True:
        driver = start(*command)
        try:
            output, _ = driver.communicate(timeout=rng.uniform(5, 60) if kills < 6 else PACE)
        except subprocess.TimeoutExpired:
            assert kills < 6, "it hangs"
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
        left = [row for part in (path.parent / "skipped").glob("*") for row in pq.read_table(part).to_pylist()]
        ids = [row["article_id"] for row in (*rows, *left)]
        assert len(ids) == len(set(ids)) == record["in"], path
        assert len(rows) == record["kept"]
        assert {part.name for part in path.parent.glob("part-*")} == set(record["parts"])
