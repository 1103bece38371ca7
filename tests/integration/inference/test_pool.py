"""A pool of engines under Ray Data: batches under way at a time, and replicas that come when rows wait."""

import os
import time
from pathlib import Path

import pytest

from pipeline.config.hardware import EngineHardware
from pipeline.inference.pool import EnginePool
from pipeline.storage.schema import to_dataset

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Slow:
    """Takes a while over a batch, and writes down when: its process, beginning and end."""

    def __init__(self, log, seconds):
        self.log, self.seconds = Path(log), seconds

    def serve(self, rows):
        began = time.monotonic()
        time.sleep(self.seconds)
        line = f"{os.getpid()} {began} {time.monotonic()}"
        (self.log / f"{rows[0]['article_id']}").write_text(line)
        return [{"writer": f"for {row['article_id']}"} for row in rows]


def batches(tmp_path, hardware, at_once, count, seconds):
    """What each batch's engine wrote down, after the rows have been seen to be right."""
    rows = to_dataset([{"article_id": f"a{i}", "article": "Ana came."} for i in range(count)])
    pool = EnginePool(lambda: Slow(tmp_path, seconds), EngineHardware(cpus_per_replica=0.5, **hardware), at_once)
    made = pool.map(rows, lambda engine, rows: engine.serve(rows), ("writer",)).take_all()
    assert sorted(row["article_id"] for row in made) == sorted(f"a{i}" for i in range(count))
    assert all(row["writer"] == f"for {row['article_id']}" for row in made)
    lines = [path.read_text().split() for path in tmp_path.iterdir()]
    return [(int(pid), float(began), float(ended)) for pid, began, ended in lines]


@pytest.mark.parametrize("at_once", [1, 2])
def test_so_many_batches_are_under_way_at_a_time(tmp_path, at_once):
    done = batches(tmp_path, {"batch_size": 2}, at_once, count=12, seconds=0.3)
    assert len(done) == 6 and len({pid for pid, *_ in done}) == 1
    together = [sum(b < began < e for _, b, e in done) + 1 for _, began, _ in done]
    assert max(together) == at_once


def test_a_pool_grows_while_rows_wait(tmp_path):
    hardware = {"batch_size": 1, "replicas": {"min": 1, "max": 3}}
    done = batches(tmp_path, hardware, 2, count=60, seconds=0.5)
    assert 2 <= len({pid for pid, *_ in done}) <= 3
