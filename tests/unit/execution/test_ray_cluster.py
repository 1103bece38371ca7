"""Tests of how Ray is started and stopped, without a real Ray."""

import threading
import time

import ray

from pipeline.config.hardware import Hardware
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
