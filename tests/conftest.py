"""Fixtures and hooks for all tests: one Ray per session, real data beside the checkout, and the order of the files."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from pipeline.config.hardware import Hardware
from pipeline.storage.model_files import node_cache
from tests.helpers import s3_server
from tests.helpers.paths import ROOT, SHARED

# No test is about time, and machines are noisy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# The threads of a tiny model mostly wait for each other; the busier the machine, the longer.
os.environ.setdefault("OMP_NUM_THREADS", "1")

LONGEST = {"test_cli_run.py", "test_chaos.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs Ray, and put the longest files first, so that both test processes end at about the same time."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray on this machine, started as `rondo run` starts it."""
    from pipeline.execution.ray_cluster import connected_ray

    os.environ.pop("RAY_ADDRESS", None)
    os.environ["PYTHONPATH"] = str(ROOT)  # Ray's workers import classes and functions from the test files
    os.environ |= s3_server.ENVIRONMENT  # and use the S3 server, once a test has started it
    with connected_ray(Hardware(ray_cpus=4)):
        yield


@pytest.fixture(autouse=True)
def release_engines(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect garbage after each test with Ray: a failed pipeline keeps its engines, and their CPUs, until then."""
    yield
    if "ray_cluster" in request.fixturenames:
        gc.collect()


@pytest.fixture
def shared_data() -> Path:
    """The folder with real articles and a third-party checkpoint, which are not part of the repository."""
    if not SHARED.is_dir():
        pytest.skip("the folder with real articles and models is not beside this checkout")
    return SHARED


@pytest.fixture
def node_tmp_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The node's temporary folder. After the test this process holds no copy of a model in it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    yield tmp_path / "tmp"
    node_cache.release_copies()


@pytest.fixture
def model_to_copy(tmp_path: Path) -> Path:
    """A model folder with a checkpoint, as the node cache copies it."""
    (tmp_path / "model/checkpoints").mkdir(parents=True)
    (tmp_path / "model/checkpoints/half").write_text("checkpoint")
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/weights").write_text("1")
    return tmp_path / "model"
