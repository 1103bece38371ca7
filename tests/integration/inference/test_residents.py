"""Engines stay from stage to stage, give way to what needs their place, and are made again when they die."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import ray
from ray import cloudpickle

from pipeline.config import UserError
from pipeline.config.hardware import EngineHardware, TrainerHardware
from pipeline.inference.actors import residents as residents_module
from pipeline.inference.actors.engine_actor import Loan
from pipeline.inference.actors.residents import ResidentPools
from pipeline.inference.base import ENGINE_LOADS, ENGINE_STARTS
from pipeline.inference.pool import EnginePool
from pipeline.storage import streams, tables
from pipeline.storage.schema import to_dataset
from tests.helpers.paths import ROOT

SMALL = EngineHardware(cpus_per_replica=0.5, batch_size=2)


class NamedEngine:
    """Answers with its process id and the weights that it holds."""

    def __init__(self, weights):
        self.weights = weights

    def answer(self, rows):
        return [{"writer": f"{os.getpid()} {self.weights}", "tally": {}} for _ in rows]


@dataclass(frozen=True)
class Remade:
    """A factory that cannot change an engine."""

    weights: str

    def __call__(self):
        return NamedEngine(self.weights)


@dataclass(frozen=True)
class Updated(Remade):
    """A factory that loads weights in place. The log-probabilities of `stale` are wrong; `torn` breaks the engine."""

    kind: str = "small"

    def update(self, engine):
        if self.weights == "stale":
            raise UserError("the engine serves other weights")
        if self.weights == "torn" and engine.weights != "torn":
            raise RuntimeError("half of the weights were loaded")
        engine.weights = f"{engine.weights}, then {self.weights}"


def stage(residents, factory, role="policy", hardware=SMALL, count=6):
    """Run rows through a stage. Returns the process ids, the answers without them, and the counts of the engines."""
    residents.begin_stages()
    pool = EnginePool(factory, hardware, role=role, residents=residents)
    rows = to_dataset([{"article_id": f"a{i}", "article": "Ana came."} for i in range(count)])
    results = pool.map(rows, lambda engine, rows: engine.answer(rows), ("writer",)).take_all()
    assert len(results) == count
    tally = Counter()
    for row in results:
        tally.update({entry["what"]: entry["count"] for entry in row["tally"] or ()})
    pids, answers = zip(*(row["writer"].split(" ", 1) for row in results), strict=True)
    return {int(pid) for pid in pids}, set(answers), tally


def is_running(pid):
    return Path(f"/proc/{pid}/cmdline").exists() and b"EngineActor" in Path(f"/proc/{pid}/cmdline").read_bytes()


def wait_until_gone(pids):
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(is_running, pids))


@pytest.fixture
def residents(ray_cluster):
    pools = ResidentPools()
    yield pools
    pools.end()


def test_stages_share_a_process_and_weights_are_loaded_in_place(residents):
    pids, answers, tally = stage(residents, Updated("base"))
    assert (answers, tally[ENGINE_STARTS], tally[ENGINE_LOADS]) == ({"base"}, 1, 0)
    assert stage(residents, Updated("base"))[:2] == (pids, {"base"})
    same, answers, tally = stage(residents, Updated("round 1"))
    assert (same, answers) == (pids, {"base, then round 1"})
    assert (tally[ENGINE_STARTS], tally[ENGINE_LOADS]) == (0, 1)


def test_an_engine_that_cannot_be_changed_is_made_again_in_the_same_process(residents):
    pids, _, _ = stage(residents, Remade("base"))
    same, answers, tally = stage(residents, Remade("round 1"))
    assert (same, answers, tally[ENGINE_STARTS]) == (pids, {"round 1"}, 1)


def test_another_kind_of_engine_gets_another_process(residents):
    pids, _, _ = stage(residents, Updated("base"))
    others, answers, _ = stage(residents, Updated("base", kind="large"))
    assert answers == {"base"} and not others & pids and wait_until_gone(pids)


def test_a_load_that_is_found_wrong_ends_the_run_with_one_line(residents, tmp_path):
    stage(residents, Updated("base"))
    pool = EnginePool(Updated("stale"), SMALL, role="policy", residents=residents)
    rows = pool.map(to_dataset([{"article_id": "a"}]), lambda engine, rows: engine.answer(rows), ("writer",))
    with pytest.raises(UserError, match="^the engine serves other weights$"):
        list(streams.write_rows(rows, tables.begin_table(str(tmp_path / "out"), "attempt")))
    # Nobody knows which weights the engine holds now, so the next stage loads its own, even if they are the old ones.
    assert stage(residents, Updated("base"))[1] == {"base, then base"}


def test_an_engine_that_breaks_while_it_loads_is_made_in_a_new_process(residents):
    pids, _, _ = stage(residents, Updated("base"))
    others, answers, tally = stage(residents, Updated("torn"))
    assert answers == {"torn"} and not others & pids and tally[ENGINE_STARTS] == 1


def test_an_engine_that_was_killed_between_stages_is_made_again(residents):
    (pid,), _, _ = stage(residents, Updated("base"))
    os.kill(pid, signal.SIGKILL)
    (other,), answers, tally = stage(residents, Updated("round 1"))
    assert other != pid and answers == {"round 1"} and tally[ENGINE_STARTS] == 1


def test_engines_of_other_roles_stay_if_there_is_room(residents):
    policy, _, _ = stage(residents, Updated("base"))
    judge, _, _ = stage(residents, Updated("judge"), role="judge")
    assert not judge & policy
    assert stage(residents, Updated("base"))[0] == policy
    trainer = TrainerHardware(cpus_per_worker=1)
    assert residents.lend_hardware(trainer) == trainer
    assert stage(residents, Updated("judge"), role="judge")[0] == judge


def test_an_engine_that_was_started_ahead_is_there_when_its_stage_begins(residents):
    ahead = EnginePool(Updated("base"), SMALL, role="policy", residents=residents)
    ahead.start_ahead()
    ahead.start_ahead()  # it has actors by now
    (actor,) = residents._pools["policy"].actors.handles
    nothing = Loan("nothing", cloudpickle.dumps(Updated("base")), cloudpickle.dumps((None, ())))
    ray.get(actor.prepare.remote(nothing))  # else the stage may be the first to ask for the engine
    pids, answers, tally = stage(residents, Updated("base"))
    assert answers == {"base"} and len(pids) == 1
    assert tally[ENGINE_STARTS] == tally[ENGINE_LOADS] == 0, "the stage used the engine that was there"


def test_nothing_ends_for_an_engine_that_is_started_ahead(residents):
    large = SMALL.model_copy(update={"cpus_per_replica": 2.75})
    stage(residents, Updated("judge"), role="judge", hardware=large)
    EnginePool(Updated("base"), SMALL, role="policy", residents=residents).start_ahead()  # of 4 CPUs, one is for tasks
    assert list(residents._pools) == ["judge"]


def test_the_engines_that_were_used_longest_ago_give_way_to_a_training(residents):
    policy, _, _ = stage(residents, Updated("base"))
    judge, _, _ = stage(residents, Updated("judge"), role="judge")
    residents.lend_hardware(TrainerHardware(workers=5, cpus_per_worker=0.5))  # of 4 CPUs, one is for tasks
    assert wait_until_gone(policy) and all(map(is_running, judge))
    residents.lend_hardware(TrainerHardware(workers=3, cpus_per_worker=1))
    assert wait_until_gone(judge)


class IdleWorkers:
    """Training workers that need 0.5 CPUs."""

    is_started = False

    def total(self):
        return 0.5 * self.is_started, 0

    def start(self):
        self.is_started = True

    def close(self):
        self.is_started = False


ONE_WORKER = TrainerHardware(cpus_per_worker=0.5)


def test_training_workers_start_ahead_where_they_fit_and_will_stay(residents):
    stage(residents, Updated("judge"), role="judge", hardware=SMALL.model_copy(update={"cpus_per_replica": 2.75}))
    for trainer in (ONE_WORKER, TrainerHardware(cpus_per_worker=0.1, gpus_per_worker=1)):
        residents.start_workers_ahead(IdleWorkers(), trainer)
        assert residents.workers is None  # of 4 CPUs, one is for tasks
    residents.end()
    residents.start_workers_ahead(IdleWorkers(), ONE_WORKER)
    assert residents.workers.is_started


def test_idle_training_workers_give_way_before_engines_do(residents):
    residents.start_workers_ahead(IdleWorkers(), ONE_WORKER)
    policy, _, _ = stage(residents, Updated("base"))
    assert residents.workers.is_started
    large = SMALL.model_copy(update={"cpus_per_replica": 2.5})
    stage(residents, Updated("judge"), role="judge", hardware=large)
    assert not residents.workers.is_started and stage(residents, Updated("base"))[0] == policy


def test_without_keep_engines_each_stage_starts_its_own(ray_cluster):
    residents = ResidentPools(keep=False)
    pids, _, _ = stage(residents, Updated("base"))
    others, _, tally = stage(residents, Updated("base"))
    assert not others & pids and tally[ENGINE_STARTS] == 1
    residents.end()
    assert wait_until_gone(pids | others)


class Sleeper(NamedEngine):
    """Takes the GPU's memory, which is a file, and gives it up while it sleeps."""

    memory: Path

    def __init__(self, weights):
        super().__init__(weights)
        self.memory = Path(os.environ["GPU_MEMORY"])
        self.wake_up()

    def wake_up(self):
        self.memory.touch(exist_ok=False)

    def sleep(self):
        self.memory.unlink()


@dataclass(frozen=True)
class Sleeping(Updated):
    def __call__(self):
        return Sleeper(self.weights)


def share_one_gpu():
    """Policy, judge and a training take turns on one GPU: only one of them holds its memory. Prints the answers."""
    ray.init(num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
    memory, residents = Path(os.environ["GPU_MEMORY"]), ResidentPools(in_turn=True)
    hardware = SMALL.model_copy(update={"gpus_per_replica": 1})
    policy, _, _ = stage(residents, Sleeping("base"), hardware=hardware)
    judge, _, _ = stage(residents, Sleeping("judge"), "judge", hardware)
    trainer = residents.lend_hardware(TrainerHardware(gpus_per_worker=1))
    assert not memory.exists()
    holder = ray.remote(lambda: os.environ["CUDA_VISIBLE_DEVICES"]).options(num_gpus=trainer.gpus_per_worker)
    assert ray.get(holder.remote(), timeout=60) == "0", "the training has the GPU"
    same, answers, _ = stage(residents, Sleeping("round 1"), hardware=hardware)
    assert same == policy and answers == {"base, then round 1"} and memory.exists()
    assert stage(residents, Sleeping("judge"), "judge", hardware)[:2] == (judge, {"judge"})
    print("one at a time")


@pytest.mark.slow
def test_engines_sleep_while_others_use_the_only_gpu(tmp_path):
    code = "from tests.integration.inference.test_residents import share_one_gpu; share_one_gpu()"
    environment = os.environ | {"GPU_MEMORY": str(tmp_path / "memory"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("one at a time\n"), done.stderr[-2000:]


class Placed:
    """Stands in for the engine's actor, and tells what vLLM finds when it starts its workers there."""

    def __init__(self, at_once, crash_log):
        pass

    def look(self):
        worker = ray.remote(num_cpus=0, num_gpus=1)(lambda: os.getpid())
        assert ray.get(worker.remote(), timeout=60) != os.getpid(), "the GPUs are free for workers"
        return len(ray.util.get_current_placement_group().bundle_specs)


def spread_over_nodes():
    """An actor whose GPUs may be on two nodes ends, and its group is removed. Prints its bundles and the free GPUs."""
    ray.init(num_cpus=4, num_gpus=4, include_dashboard=False, log_to_driver=False)
    residents_module.EngineActor = Placed
    hardware = EngineHardware(cpus_per_replica=0.5, gpus_per_replica=4, nodes_per_replica=2)
    actors = residents_module.EngineActors("policy", hardware, 2, None)
    actor, group = actors.start_one()
    bundles = ray.get(actor.look.remote(), timeout=90)
    pools = ResidentPools()
    pools._pools["policy"] = residents_module._Resident(replace(actors, handles=(actor,), groups=(group,)), None)
    pools.end()
    deadline = time.monotonic() + 60
    while ray.available_resources().get("GPU") != 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    print(bundles, ray.available_resources()["GPU"])


@pytest.mark.slow
def test_an_engine_on_several_nodes_reserves_a_bundle_for_each_gpu():
    code = "from tests.integration.inference.test_residents import spread_over_nodes; spread_over_nodes()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("4 4.0\n"), done.stderr[-2000:]
