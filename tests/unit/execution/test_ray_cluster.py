"""Tests of how Ray is started and stopped, and of what a run decides by the GPUs. One, a slow one, has a real Ray."""

import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import ray

from pipeline.config import UserError
from pipeline.config.hardware import EngineHardware, Hardware
from pipeline.config.loader import load_config
from pipeline.execution import runner
from pipeline.execution.dry_run import DryRun
from pipeline.execution.progress import Display
from pipeline.execution.ray_cluster import connected_ray, gpu_memory_here
from pipeline.stages.references import reference_logprobs
from pipeline.storage.ledger import Artifact, Ledger
from tests.helpers.paths import DEMO, ROOT

SMALL, LARGE = 1e6, 1e12  # bytes of a GPU


def test_ray_is_shut_down_only_when_its_executor_has_ended(monkeypatch):
    """A thread that calls Ray afterwards would end this process at once, and the run's lock would stay."""
    executor = threading.Thread(target=time.sleep, args=(0.3,), name="StreamingExecutor-dataset_1", daemon=True)
    alive_at_shutdown = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "shutdown", lambda: alive_at_shutdown.append(executor.is_alive()))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with connected_ray(Hardware(ray_cpus=2)):
        executor.start()
    assert alive_at_shutdown == [False]


@pytest.mark.parametrize(
    ("joins", "nodes", "line"),
    [
        (
            True,
            1,
            "no node has more than 2: set hardware.policy.nodes_per_replica=2, .* nodes of the cluster have 2, 2 GPUs",
        ),
        (False, 2, "nodes_per_replica above 1, and Ray is started on this machine alone"),
    ],
)
def test_an_engine_that_waits_for_a_larger_node_is_refused(monkeypatch, joins, nodes, line):
    monkeypatch.setattr(ray, "is_initialized", lambda: joins)
    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 4.0})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"GPU": 2.0}}] * 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    hardware = Hardware(policy=EngineHardware(gpus_per_replica=4, nodes_per_replica=nodes))
    with pytest.raises(UserError, match=line), connected_ray(hardware):
        pass


@pytest.fixture
def path_with_gpus(tmp_path: Path) -> str:
    """A PATH on which nvidia-smi tells of two GPUs, in MiB."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 24000\necho 16000\n")
    program.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def test_the_smallest_gpu_of_this_machine_counts(path_with_gpus, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", path_with_gpus)
    assert gpu_memory_here() == 16000 * 2**20
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho Driver not loaded\nexit 9\n")
    assert gpu_memory_here() is None


@pytest.mark.slow
def test_the_nodes_of_a_cluster_are_asked_for_their_gpus(path_with_gpus):
    code = (
        "import ray; from pipeline.execution.ray_cluster import gpu_memory_of_cluster\n"
        "for gpus in (0, 2):\n"
        "    ray.init(num_cpus=1, num_gpus=gpus, include_dashboard=False, log_to_driver=False)\n"
        "    print(gpu_memory_of_cluster())\n"
        "    ray.shutdown()\n"
    )
    environment = os.environ | {"PATH": path_with_gpus, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["None", str(16000.0 * 2**20)], done.stderr[-2000:]


@pytest.mark.parametrize(
    ("joins", "here", "cluster", "before_ray", "after"),
    [
        (False, SMALL, None, True, True),
        (False, LARGE, None, False, False),
        (True, SMALL, LARGE, None, False),  # the driver's machine has other GPUs than the cluster
        (True, None, SMALL, None, True),
        (True, None, None, None, None),
    ],
)
def test_a_run_shards_a_policy_that_the_gpus_do_not_hold(
    tmp_path, monkeypatch, joins, here, cluster, before_ray, after
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if joins:
        monkeypatch.setenv("RAY_ADDRESS", "ray-head:6379")
    given_to_ray = []

    def connected_ray(hardware):
        given_to_ray.append(hardware.trainer.shard_references)
        return nullcontext(hardware)

    monkeypatch.setattr(runner, "connected_ray", connected_ray)
    monkeypatch.setattr(runner, "gpu_memory_here", lambda: here)
    monkeypatch.setattr(runner, "gpu_memory_of_cluster", lambda: cluster)
    trainer = "hardware.trainer={workers: 2, gpus_per_worker: 1}"
    config, ledger = load_config(DEMO, [f"run={tmp_path}", trainer]), Ledger(str(tmp_path))
    dry_run = DryRun(config, ledger)
    rows, policy = (Artifact(ledger.root, name, {"build": name, "digest": ""}) for name in ("pairs", "policy"))
    dry_run.make(reference_logprobs, (rows, policy), "round-01/references")
    with runner.open_run(config, ledger, Display(), dry_run, "title") as opened:
        assert opened.config.hardware.trainer.shard_references is after
    assert given_to_ray == [before_ray]
