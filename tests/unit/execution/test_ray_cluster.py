"""Tests of how Ray is started and stopped, without a real Ray."""

import threading
import time

import pytest
import ray

from pipeline.config import UserError
from pipeline.config.hardware import EngineHardware, Hardware
from pipeline.execution.ray_cluster import connected_ray


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
