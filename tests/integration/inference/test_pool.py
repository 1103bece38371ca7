"""A pool of engines under Ray Data: how many batches run at once, and replicas that start while rows wait."""

import os
import time
from pathlib import Path

import pytest

from pipeline.config.hardware import EngineHardware
from pipeline.inference.pool import EnginePool
from pipeline.storage.schema import to_dataset

pytestmark = pytest.mark.usefixtures("ray_cluster")


class SlowEngine:
    """Sleeps for each batch, and logs its process id and when the batch started and ended."""

    def __init__(self, log, seconds):
        self.log, self.seconds = Path(log), seconds

    def serve(self, rows):
        started = time.monotonic()
        time.sleep(self.seconds)
        line = f"{os.getpid()} {started} {time.monotonic()}"
        (self.log / f"{rows[0]['article_id']}").write_text(line)
        return [{"writer": f"for {row['article_id']}"} for row in rows]


def run_batches(tmp_path, hardware, at_once, count, seconds):
    """Run `count` rows through a pool and check them. Returns (process id, start, end) of each batch."""
    rows = to_dataset([{"article_id": f"a{i}", "article": "Ana came."} for i in range(count)])
    pool = EnginePool(lambda: SlowEngine(tmp_path, seconds), EngineHardware(cpus_per_replica=0.5, **hardware), at_once)
    results = pool.map(rows, lambda engine, rows: engine.serve(rows), ("writer",)).take_all()
    assert sorted(row["article_id"] for row in results) == sorted(f"a{i}" for i in range(count))
    assert all(row["writer"] == f"for {row['article_id']}" for row in results)
    lines = [path.read_text().split() for path in tmp_path.iterdir()]
    return [(int(pid), float(started), float(ended)) for pid, started, ended in lines]


@pytest.mark.parametrize("at_once", [1, 2])
def test_an_engine_runs_at_once_batches_at_the_same_time(tmp_path, at_once):
    batches = run_batches(tmp_path, {"batch_size": 2}, at_once, count=12, seconds=0.3)
    assert len(batches) == 6 and len({pid for pid, *_ in batches}) == 1
    concurrent = [sum(s < started < e for _, s, e in batches) + 1 for _, started, _ in batches]
    assert max(concurrent) == at_once


def test_a_pool_grows_while_rows_wait(tmp_path):
    hardware = {"batch_size": 1, "replicas": {"min": 1, "max": 3}}
    batches = run_batches(tmp_path, hardware, 2, count=60, seconds=0.5)
    assert 2 <= len({pid for pid, *_ in batches}) <= 3
