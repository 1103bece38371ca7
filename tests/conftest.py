"""What several tests share: one Ray, kept for the session, and small things to make rows from."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from pipeline.config.hardware import Hardware
from tests.helpers import s3_server
from tests.helpers.paths import ROOT, SHARED

# No test is about time, and machines are noisy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# A tiny model on two threads waits for its threads; the more so the busier the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")


LONGEST = {"test_cli_run.py", "test_chaos.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that two at a time end together."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray of our own, as `rondo run` starts it."""
    from pipeline.execution.ray_cluster import connected_ray

    os.environ.pop("RAY_ADDRESS", None)
    os.environ["PYTHONPATH"] = str(ROOT)  # workers import the scripts that tests give them
    os.environ |= s3_server.ENVIRONMENT  # and find the S3 server, once a test has started it
    with connected_ray(Hardware(ray_cpus=4)):
        yield


@pytest.fixture(autouse=True)
def no_engine_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A pipeline that failed keeps its engines, and their CPUs, until Python finds that nobody refers to it."""
    yield
    if "ray_cluster" in request.fixturenames:
        gc.collect()


@pytest.fixture
def shared_data() -> Path:
    """Real articles and a third-party checkpoint, which are not part of the project."""
    if not SHARED.is_dir():
        pytest.skip("the folder with real articles and models is not beside this checkout")
    return SHARED
