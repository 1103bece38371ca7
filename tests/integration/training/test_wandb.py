"""Metrics reach W&B's process and its file."""

from pathlib import Path

import pytest

from pipeline.training import tracking
from tests.helpers.cli import wait_for

LINES = [(1, {"loss": 0.69, "rewards/margins": 0.0}), (2, {"loss": 0.5, "rewards/margins": 0.25})]


def log(name: str, run: Path) -> None:
    with tracking.open_trackers([name], str(run), "round-01/policy", {"beta": 0.1}) as write:
        for step, values in LINES:
            write(step, values)


def test_metrics_arrive_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    log("wandb", tmp_path / "demo")
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")

    wait_for(lambda: b"rewards/margins" in written.read_bytes(), timeout=60)  # W&B's process writes it
