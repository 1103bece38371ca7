"""Metrics arrive in real TensorBoard files, by name and step; a tracker that fails or hangs does not hold up a run."""

import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.config import UserError
from pipeline.training import tracking
from tests.helpers.secrets import SECRETS

LINES = [(1, {"loss": 0.69, "rewards/margins": 0.0}), (2, {"loss": 0.5, "rewards/margins": 0.25})]


@pytest.fixture
def warnings():
    """The warnings that are shown. As at the start of a command, no tracker is dropped."""
    tracking.check_trackers([])
    yield []
    tracking.check_trackers([])


def log(name: str, run: Path, warnings: list[str]) -> None:
    with tracking.open_trackers([name], str(run), "round-01/policy", warnings.append, {"beta": 0.1}) as write:
        for step, values in LINES:
            write(step, values)


def test_metrics_arrive_in_tensorboard(tmp_path: Path, warnings: list[str]) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log("tensorboard", tmp_path / "demo", warnings)
    logged = events.EventAccumulator(str(tmp_path / "demo/tensorboard/round-01/policy")).Reload()

    assert warnings == []
    assert logged.Tags()["scalars"] == ["loss", "rewards/margins"]
    assert [(e.step, e.value) for e in logged.Scalars("rewards/margins")] == [(1, 0.0), (2, 0.25)]


def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tracking.check_trackers([])
    with pytest.raises(UserError, match="report_to has wandb, which is not installed here: pip install wandb"):
        tracking.check_trackers(["wandb"])


def test_wandb_without_a_key_is_refused_before_anything_starts(tmp_path, monkeypatch) -> None:
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # it keeps an earlier test's key for the whole process
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match=r"no usable API key here .*: run `wandb login`, or set WANDB_API_KEY"):
        tracking.check_trackers(["wandb"])
    wandb.teardown()  # and this environment's settings


@pytest.mark.parametrize("when", ["it is opened", "it is sent to"])
def test_a_tracker_that_fails_is_dropped_with_one_warning(tmp_path, monkeypatch, warnings, when) -> None:
    opened = []
    monkeypatch.setenv("WANDB_API_KEY", SECRETS["WANDB_API_KEY"])

    class Failing(tracking.Tracker):
        def log(self, step, values):
            raise ConnectionError(f"no\nroute to http://me:pass@host/ {SECRETS['WANDB_API_KEY']}")

    @contextmanager
    def open_failing(run):
        opened.append(run)
        if when == "it is opened":
            raise ConnectionError(f"no\nroute to http://me:pass@host/ {SECRETS['WANDB_API_KEY']}")
        yield Failing()

    monkeypatch.setitem(tracking._TRACKERS, "wandb", open_failing)
    for _ in range(2):
        log("wandb", tmp_path / "demo", warnings)

    assert warnings == [
        "report_to: wandb took not everything (no route to http://host/ (WANDB_API_KEY)), and gets no more of this run"
    ]
    assert len(opened) == 1, "the next training does not try it again"
    tracking.check_trackers([])
    log("wandb", tmp_path / "demo", warnings)
    assert len(opened) == 2, "the next command does"


def test_a_tracker_that_hangs_does_not_hold_up_the_training(tmp_path, monkeypatch, warnings) -> None:
    @contextmanager
    def open_hanging(run):
        answered.wait(60)
        yield tracking.Tracker()

    answered = threading.Event()
    monkeypatch.setitem(tracking._TRACKERS, "mlflow", open_hanging)
    monkeypatch.setattr(tracking, "_PATIENCE", 0.1)
    started = time.monotonic()
    for _ in range(2):
        log("mlflow", tmp_path / "demo", warnings)

    assert time.monotonic() - started < 5
    assert warnings == ["report_to: mlflow took not everything (it does not answer), and gets no more of this run"]
    answered.set()
