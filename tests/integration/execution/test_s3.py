"""Tests of runs on S3, at a local S3 server: the ledger, tables, model fetching, and a round with a real training."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import torch
import torch.distributed as dist

from bench.recovery import chaos
from pipeline.config import UserError
from pipeline.storage import tables
from pipeline.storage.files import open_location
from pipeline.storage.ledger import Ledger
from pipeline.storage.model_files import hub, node_cache
from pipeline.training import checkpoint
from pipeline.training.ray_job.checkpoints import SharedCheckpointStore, claim
from tests.helpers import s3_server
from tests.helpers.recovery import Work, break_once, check_counts, run_stages, settings


@pytest.fixture(scope="module")
def bucket(ray_cluster):
    with s3_server.serving() as place:
        yield place


def test_the_ledger_and_lock_work_on_s3(bucket):
    ledger = Ledger(f"{bucket}/ledger")
    assert ledger.find("pairs") is None
    ledger.begin("pairs", {"build": "b", "recipe": {}})
    assert ledger.begun("pairs") == {"build": "b", "recipe": {}}
    ledger.finish("pairs", {"build": "b", "recipe": {}})
    assert ledger.find("pairs").build == "b"
    assert ledger.begun("pairs") is None
    ledger.clear("pairs")
    assert ledger.find("pairs") is None
    with (
        ledger.lock(print),
        pytest.raises(UserError, match="in use by"),
        Ledger(ledger.root).lock(print),
    ):
        pass


@pytest.mark.parametrize("together", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_interrupted_chain_on_s3_is_resumed(bucket, tmp_path, together):
    work = Work(tmp_path)
    config = settings(f"{bucket}/chain-{together}", hardware={"together": together})
    break_once(config, work, "scores", after=9)
    computed = work.computed("summaries")
    made = run_stages(config, work)
    check_counts(made)
    if not together:
        assert work.computed("summaries") == computed
    ledger = Ledger(config.run)
    for table in made:
        ids = [row["article_id"] for row in tables.read_table(ledger, table)]
        assert len(ids) == len(set(ids)) == table.record["kept"]


def test_processes_of_a_node_fetch_a_model_once_and_again_after_a_change(bucket, tmp_path, monkeypatch):
    fs, path = open_location(f"{bucket}/fetched")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    pafs.copy_files(str(tmp_path / "model"), path, destination_filesystem=fs)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = f"from pipeline.storage.model_files.hub import fetch; print(fetch('{bucket}/fetched'))"
    command, environment = [sys.executable, "-c", code], os.environ | {"TMPDIR": str(tmp_path)}
    others = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first = hub.fetch(f"{bucket}/fetched")
    assert {other.communicate()[0].strip() for other in others} == {first}
    assert len(os.listdir(Path(first).parent)) == 1

    (tmp_path / "model/config.json").write_text('{"changed": true}')
    pafs.copy_files(str(tmp_path / "model"), path, destination_filesystem=fs)
    assert hub.fetch(f"{bucket}/fetched") == first
    hub.fetch.cache_clear()
    again = hub.fetch(f"{bucket}/fetched")
    assert Path(again, "config.json").read_text() == '{"changed": true}'
    hub.fetch.cache_clear()
    node_cache.release_copies()


def test_a_missing_bucket_is_reported_in_one_line(bucket, tmp_path):
    config = settings("s3://no-such-bucket/run")
    with pytest.raises(UserError, match="s3://no-such-bucket/run.* cannot be written: .*no-such-bucket") as caught:
        run_stages(config, Work(tmp_path))
    assert "\n" not in str(caught.value)


def _save_and_load(rank: int, workers: int, bucket: str, folder: str, saves: bool) -> None:
    """Save rows 2 x rank and 2 x rank + 1 of a tensor of four rows, or only load, and note what was fetched."""
    meeting = dist.FileStore(f"{folder}/store-{saves}", workers)
    dist.init_process_group("gloo", store=meeting, rank=rank, world_size=workers)
    store = SharedCheckpointStore(f"{bucket}/checkpoints", "token", rank)
    if saves:
        part = Path(folder, f"part-{rank}")
        part.mkdir()
        rows = torch.arange(2.0 * rank, 2.0 * rank + 2)[:, None]
        checkpoint.save(part, [("weight", rows)], {"step": 3}, rank=rank, workers=workers)
        store.save("last-000003", part)
    with store.load_last() as fetched:
        weight = torch.zeros(4 // workers, 1)
        state = checkpoint.load(fetched, [("weight", weight)], rank=rank, workers=workers)
        result = {"files": sorted(os.listdir(fetched)), "weight": weight.flatten().tolist(), "step": state["step"]}
    Path(folder, f"{workers}-{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def test_a_worker_fetches_only_its_own_part_of_a_checkpoint_if_it_can(bucket, tmp_path):
    claim(f"{bucket}/checkpoints", "token")
    torch.multiprocessing.spawn(_save_and_load, args=(2, bucket, str(tmp_path), True), nprocs=2)
    torch.multiprocessing.spawn(_save_and_load, args=(1, bucket, str(tmp_path), False), nprocs=1)
    parts = ["rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors"]
    expected = {"2-0": (parts[:1], [0, 1]), "2-1": (parts[1:], [2, 3]), "1-0": (parts, [0, 1, 2, 3])}
    for name, (files, weight) in expected.items():
        result = json.loads((tmp_path / f"{name}.json").read_text())
        assert result == {"files": [*files, "state.json"], "weight": weight, "step": 3}


@pytest.mark.slow
def test_a_round_with_a_real_training_on_s3(bucket, tmp_path):
    """The driver is killed once while it trains. `bench/recovery/chaos.py` supplies a scripted policy."""
    config = chaos.write_config(tmp_path, tmp_path / "calm", 30, together=True)
    text = config.read_text().replace(str(tmp_path / "calm"), f"{bucket}/round")
    config.write_text(text)
    ledger = Ledger(f"{bucket}/round")
    driver = chaos.start(config, None, 0.0)
    deadline = time.monotonic() + 400
    while ledger.begun("round-01/policy") is None and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ledger.begun("round-01/policy"), config.with_suffix(".log").read_text()
    driver.kill()
    driver.wait()
    assert chaos.start(config, None, 0.0).wait() == 0, config.with_suffix(".log").read_text()
    metrics = json.loads(ledger.read("metrics.json"))
    assert metrics["rounds"][0]["training"]["steps"] > 0
    assert "took over the lock of a driver that is gone" in config.with_suffix(".log").read_text()
