"""Metrics arrive in real TensorBoard files, by name and step, and in MLflow if it is installed."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from pipeline.config import UserError
from pipeline.training import tracking

LINES = [(1, {"loss": 0.69, "rewards/margins": 0.0}), (2, {"loss": 0.5, "rewards/margins": 0.25})]


def log(name: str, run: Path) -> None:
    with tracking.open_trackers([name], str(run), "round-01/policy", {"beta": 0.1}) as write:
        for step, values in LINES:
            write(step, values)


def test_metrics_arrive_in_tensorboard(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log("tensorboard", tmp_path / "demo")
    logged = events.EventAccumulator(str(tmp_path / "demo/tensorboard/round-01/policy")).Reload()

    assert logged.Tags()["scalars"] == ["loss", "rewards/margins"]
    assert [(e.step, e.value) for e in logged.Scalars("rewards/margins")] == [(1, 0.0), (2, 0.25)]


def test_metrics_arrive_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    log("mlflow", tmp_path / "demo")
    (run,) = mlflow.search_runs(experiment_names=["demo"], output_format="list")
    history = mlflow.tracking.MlflowClient().get_metric_history(run.info.run_id, "rewards/margins")

    assert [(m.step, m.value) for m in history] == [(1, 0.0), (2, 0.25)]
    assert run.data.params["beta"] == "0.1"


def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tracking.check_trackers([])
    with pytest.raises(UserError, match="report_to has wandb, which is not installed here: pip install wandb"):
        tracking.check_trackers(["wandb"])


def test_a_tracker_that_fails_does_not_stop_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(step: int, values: dict[str, float]) -> None:
        raise ConnectionError("no route")

    monkeypatch.setitem(tracking._TRACKERS, "wandb", lambda *_: nullcontext(fail))
    with pytest.warns(UserWarning, match=r"wandb took no metrics at step 1 \(no route\)"):
        log("wandb", tmp_path / "demo")
