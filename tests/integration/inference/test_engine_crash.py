"""When an engine dies, only the row that killed it is lost. These tests really kill real processes."""

import os
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import ray

from judges.base import Prompt, user
from pipeline.config import UserError
from pipeline.config.hardware import EngineHardware, GroupHardware
from pipeline.inference import sampling
from pipeline.inference.actors.crash_log import TRIES, CrashLog
from pipeline.inference.actors.residents import ResidentPools
from pipeline.inference.actors.worker_group import WorkerGroup
from pipeline.inference.base import EngineDied
from pipeline.inference.pool import EnginePool
from pipeline.inference.scripted import ScriptedEngine
from pipeline.storage import streams, tables
from pipeline.storage.schema import to_dataset
from tests.helpers.paths import POLICY_MODEL as POLICY


class FragileEngine:
    """Answers with its process id. A prompt that contains the word `w` first calls `faults[w]`."""

    def __init__(self, log, **faults):
        self.faults = faults
        (Path(log) / f"start-{os.getpid()}-{time.monotonic_ns()}").touch()

    def generate(self, prompts):
        for prompt in prompts:
            for word, fault in self.faults.items():
                if word in prompt.messages[0]["content"]:
                    fault()
        time.sleep(0.02)
        return ScriptedEngine(lambda prompt, sample: f"by {os.getpid()}").generate(prompts)


def kill_process():
    os.kill(os.getpid(), signal.SIGKILL)


def raise_engine_died():
    raise EngineDied("out of memory")


def raise_key_error():
    raise KeyError("nonsense")


def articles(count, words=None):
    return [
        {"article_id": f"a{i}", "article": (words or {}).get(i, f"Ana {i} came."), "split": "train"}
        for i in range(count)
    ]


def sampled(rows, make_engine, batch_size):
    pool = EnginePool(make_engine, EngineHardware(cpus_per_replica=0.5, batch_size=batch_size))
    prompt = Prompt(user("{article}"), max_tokens=60, temperature=1.0, n=2)
    return sampling.sample_dataset(to_dataset(rows), prompt, "build-1", pool)


def test_only_the_poisonous_rows_are_lost(ray_cluster, tmp_path):
    engine = partial(FragileEngine, tmp_path, poison=kill_process, bomb=raise_engine_died)
    rows = sampled(articles(24, {3: "poison", 13: "bomb"}), engine, 8).take_all()
    assert Counter(row["article_id"] for row in rows) == Counter(f"a{i}" for i in range(24))
    assert {row["article_id"]: row["skipped"] for row in rows if row["skipped"]} == {
        "a3": f"engine failed {TRIES} times: its process was killed",
        "a13": f"engine failed {TRIES} times: EngineDied: out of memory",
    }
    assert all((row["summaries"] is None) == (row["skipped"] is not None) for row in rows)
    assert 2 * TRIES - 1 <= len(list(tmp_path.glob("start-*"))) <= 2 * TRIES + 1  # one start may serve both


@pytest.mark.slow
def test_an_engine_that_kills_every_row_ends_the_run(ray_cluster, tmp_path):
    rows = sampled(articles(20), partial(FragileEngine, tmp_path, came=raise_engine_died), 4)
    with pytest.raises(UserError, match="the engine died 9 times in a row and finished no batch in between: Eng"):
        list(streams.write_rows(rows, tables.begin_table(str(tmp_path / "out"), "attempt")))
    assert len(list(tmp_path.glob("start-*"))) == 9


def die_while_starting(log):
    FragileEngine(log)
    kill_process()


def test_an_engine_that_dies_while_it_starts_ends_the_run(ray_cluster, tmp_path):
    with pytest.raises(Exception, match=f"the engine died {TRIES} times in a row before it was ready: its process was"):
        sampled(articles(8), partial(die_while_starting, tmp_path), 4).take_all()
    assert len(list(tmp_path.glob("start-*"))) == TRIES


def fail_to_start(log):
    raise ValueError("no such model")


def test_an_engine_that_cannot_be_made_ends_the_run_at_once(ray_cluster, tmp_path):
    with pytest.raises(Exception, match="no such model"):
        sampled(articles(8), partial(fail_to_start, tmp_path), 4).take_all()


def test_any_other_exception_ends_the_run_at_once(ray_cluster, tmp_path):
    with pytest.raises(Exception, match="nonsense"):
        sampled(articles(8), partial(FragileEngine, tmp_path, came=raise_key_error), 4).take_all()
    assert len(list(tmp_path.glob("start-*"))) == 1


def test_the_crash_log_isolates_rows_and_gives_them_up():
    crash_log = CrashLog()
    assert crash_log.begin_batch(["a", "b", "c"]) == {}
    crash_log.rows_done("actor", ["c"])
    assert crash_log.begin_batch(["a", "b", "c", "d"]) == {"a": None, "b": None}  # c and d may run together
    for row in ("a", "a"):
        crash_log.begin_single(row)
    crash_log.rows_failed("actor", ["a"], "out of memory")
    crash_log.begin_single("b")
    crash_log.rows_done("actor", ["b", "c", "d"])
    assert crash_log.begin_batch(["a", "b"]) == {"a": "engine failed 3 times: out of memory"}


def test_a_crash_log_that_was_lost_starts_again():
    crash_log = CrashLog()
    crash_log.begin_single("a")
    assert crash_log.begin_batch(["a"]) == {"a": None}


class SharingWorker:
    """Takes a part of the words. On `kill` the last worker dies once, on `error` it fails; the others wait for it."""

    def __init__(self, log, rank):
        self.log, self.rank = Path(log), rank
        (self.log / f"start-{os.getpid()}").touch()

    def take(self, words):
        if "error" in words or ("kill" in words and not (self.log / "killed").exists()):
            if self.rank == 0:
                time.sleep(600)
            if "error" in words:
                raise ValueError(f"worker {self.rank} found an error")
            (self.log / "killed").touch()
            kill_process()
        return [f"{word} by {self.rank}" for word in words[self.rank :: 2]]


class SharingEngine:
    def __init__(self, log):
        self.group = WorkerGroup(partial(SharingWorker, log))

    def close(self):
        self.group.close()

    def take(self, rows):
        by_worker = self.group.call("take", [row["article"] for row in rows])
        return [{"writer": by_worker[i % 2][i // 2], "tally": {}} for i in range(len(rows))]


@pytest.mark.slow
def test_workers_of_an_engine_share_its_work_and_end_together(ray_cluster, tmp_path):
    residents = ResidentPools()
    hardware = GroupHardware(workers=2, cpus_per_replica=0.5, batch_size=2)
    pool = EnginePool(partial(SharingEngine, tmp_path), hardware, at_once=1, residents=residents)

    def shared(*words):
        rows = to_dataset([{"article_id": word, "article": word} for word in words])
        return {row["writer"] for row in pool.map(rows, lambda engine, rows: engine.take(rows), ("writer",)).take_all()}

    assert shared("one", "two") == {"one by 0", "two by 1"}
    assert shared("three", "kill") == {"three by 0", "kill by 0"}, "rows that may have killed an engine run alone"
    pids = {int(path.name.split("-")[1]) for path in tmp_path.glob("start-*")}
    assert len(pids) == 4, "the worker that waited for the dead one was replaced too"
    with pytest.raises(ray.exceptions.RayTaskError, match="worker 1 found an error"):
        shared("four", "error")
    residents.end()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


class LoggedVllm:
    """A vLLM engine that logs its process id and each of its batches."""

    def __init__(self, log):
        from pipeline.inference.vllm import VllmEngine

        self.engine = VllmEngine(str(POLICY), "float32", 512, seed=os.getpid(), hardware=EngineHardware())
        self.log = Path(log)
        (self.log / f"start-{os.getpid()}").touch()

    def generate(self, prompts):
        (self.log / f"batch-{os.getpid()}-{time.monotonic_ns()}").touch()
        return self.engine.generate(prompts)


@pytest.mark.slow
def test_vllm_killed_while_it_samples_loses_nothing(ray_cluster, tmp_path):
    from newsroom.recipe.make_articles import articles as newsroom

    rows = [{"article_id": story.id, "article": story.text, "split": "train"} for story in newsroom(96)]
    pool = EnginePool(partial(LoggedVllm, tmp_path), EngineHardware(batch_size=16, cpus_per_replica=0.5))
    prompt = Prompt(user("Summarize.\n{article}"), max_tokens=160, temperature=1.0, n=8)
    stream = iter(sampling.sample_dataset(to_dataset(rows), prompt, "build-1", pool).iter_rows())
    results = [next(stream)]
    (started,) = tmp_path.glob("start-*")
    os.kill(int(started.name.split("-")[1]), signal.SIGKILL)
    results += stream
    assert len(list(tmp_path.glob("start-*"))) == 2
    assert Counter(row["article_id"] for row in results) == Counter(row["article_id"] for row in rows)
    assert all(row["skipped"] is None and len(row["summaries"]) == 8 for row in results)
