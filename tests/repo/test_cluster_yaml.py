"""Tests cluster.yaml: the installed Ray accepts it, and every edit keeps its security and its GPU rules."""

from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.helpers.paths import ROOT

CLUSTER = ROOT / "cluster.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """The file as `ray up` reads it, with Ray's defaults and all commands of every node."""
    return prepare_config(yaml.safe_load(CLUSTER.read_text()))


def test_ray_accepts_it(cluster):
    validate_config(cluster)


def test_only_workers_have_gpus_and_none_runs_idle(cluster):
    nodes = dict(cluster["available_node_types"])
    head = nodes.pop(cluster["head_node_type"])
    assert head["resources"]["GPU"] == 0
    assert nodes
    for worker in nodes.values():
        assert worker["resources"]["GPU"] > 0
        assert worker["min_workers"] == 0 < worker["max_workers"] <= cluster["max_workers"]


def test_ray_requires_the_token(cluster):
    starts = [
        command
        for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"])
        for command in commands
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert any(mounted.endswith("/.ray/auth_token") for mounted in cluster["file_mounts"])
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_every_node_gets_the_shared_folder_and_its_packages(cluster):
    for role, extra in (("head", "cpu"), ("worker", "gpu")):
        commands = " ; ".join(cluster[f"{role}_setup_commands"])
        assert "~/rondo/runs" in commands
        assert f"make setup EXTRA={extra}" in commands
