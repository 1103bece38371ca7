"""Metrics, tables and files reach W&B's own files, and MLflow's if it is installed."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.training import tracking
from tests.helpers.cli import wait_for
from tests.helpers.secrets import SECRETS, contents, secrets_in

STEPS = {1: 0.0, 2: 0.25}
ROWS = [{"step": 1, "prompt": "Sum up: <b>x</b>", "score": None}, {"step": 1, "prompt": "Résumé 🙂", "score": 0.5}]


def send(tracker: str, folder: Path, warnings: list[str], run_id: str | None = None) -> list[str | None]:
    """Send an evaluation, and the metrics of a training while it is open, as a run does. Gives the evaluation's id."""
    tracking.check_trackers([tracker])
    run, ids = tracking.TrackerRun(str(folder), "evaluation", {"seed": 0}, "round", run_id), []

    def send_evaluation(to: tracking.Tracker) -> None:
        to.log(3, {"eval/vs_base/strict/win_rate": 0.625})
        to.log(2, {"test/vs_base/strict/win_rate": 0.5})  # the policy of an earlier round may be the one that is tested
        to.log_table("completions", ROWS, 3)
        to.log_files("report", {"report.md": "# Run 🙂", "report.html": "<p>Run"})
        ids.append(to.id)

    senders = tracking.open_senders([tracker], run, warnings.append)
    with tracking.open_trackers([tracker], str(folder), "round-01/policy", warnings.append, {"beta": 0.1}) as log:
        for step, value in STEPS.items():
            log(step, {"rewards/margins": value})
        senders[tracker].send(send_evaluation)
    tracking.close_senders(senders)
    return ids


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_PATIENCE", 300.0)


def test_everything_arrives_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    warnings: list[str] = []
    (run_id,) = send("wandb", tmp_path / "demo", warnings)
    assert warnings == []

    (evaluation,) = tmp_path.glob(f"wandb/*-{run_id}/*.wandb")
    (training,) = set(tmp_path.glob("wandb/offline-run-*/*.wandb")) - {evaluation}
    wait_for(lambda: b"rewards/margins" in training.read_bytes(), timeout=60)  # W&B's process writes it
    wait_for(lambda: b"report.html" in evaluation.read_bytes(), timeout=60)
    for part in (b"eval/vs_base/strict/win_rate", b"0.625", b"test/vs_base/strict/win_rate", b"round"):
        assert part in evaluation.read_bytes()
    assert b"eval/" not in training.read_bytes()
    (table,) = tmp_path.glob(f"wandb/*-{run_id}/files/media/table/completions_*.table.json")
    assert json.loads(table.read_text()) == {
        "columns": ["step", "prompt", "score"],
        "data": [list(row.values()) for row in ROWS],
    }
    assert {path: leaked for path, data in contents(tmp_path) if (leaked := secrets_in(data))} == {}


def test_everything_arrives_in_mlflow_and_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow-skinny has no other store without a server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlflow")
    warnings: list[str] = []
    (run_id,) = send("mlflow", tmp_path / "demo", warnings)
    assert send("mlflow", tmp_path / "demo", warnings, run_id) == [run_id]
    assert warnings == []

    runs = mlflow.search_runs(experiment_names=["demo"], output_format="list")
    assert sorted(run.info.run_name for run in runs) == ["evaluation", "round-01/policy", "round-01/policy"]
    client = mlflow.tracking.MlflowClient()

    def history(run: Any, name: str) -> list[tuple[int, float]]:
        return [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]

    training = next(run for run in runs if run.info.run_id != run_id)
    assert history(training, "rewards/margins") == list(STEPS.items()) and training.data.params["beta"] == "0.1"
    evaluation = client.get_run(run_id)
    assert history(evaluation, "eval/vs_base/strict/win_rate") == [(3, 0.625)] * 2
    table = mlflow.load_table("completions.json", run_ids=[run_id])
    assert table["prompt"].tolist() == [row["prompt"] for row in ROWS] * 2
    assert mlflow.artifacts.load_text(f"{evaluation.info.artifact_uri}/report.md") == "# Run 🙂"
