"""A run folder of version 0.1.0, interrupted in round 2, is shown, exported, resumed and reported by today's code."""

import json
import shutil

import pytest

from tests.helpers.cli import run_rondo
from tests.helpers.paths import ROOT
from tests.helpers.tables import read_records

OLD_RUN = ROOT / "tests" / "e2e" / "old_run" / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "old"
    shutil.copytree(OLD_RUN, folder)
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".yaml"):
            path.write_text(path.read_text().replace("RUN_FOLDER", str(folder)))
    return folder


@pytest.fixture(scope="module")
def resumed(run):
    """The run after today's code has finished it; the records that were there before; what the command printed."""
    before = read_records(run)
    finished = run_rondo("run", run / "config.yaml")
    assert finished.returncode == 0, finished.stderr
    return run, before, finished.stdout


def test_nothing_of_it_is_stale(run):
    status = run_rondo("status", run).stdout
    assert "stale" not in status
    assert "round-01/policy        made    10 steps" in status
    assert "round-02/references    made" in status
    assert "round-02/policy        not made: comes next" in status


def test_its_rows_are_shown(run):
    rows = run_rondo("show", run, "round-01/pairs").stdout
    assert "summary 0" in rows and " over summary " in rows and "2 of 13 rows of round-01/pairs" in rows


def test_its_pairs_are_exported(run, tmp_path):
    exported = run_rondo("export", run, "--out", tmp_path / "pairs.jsonl", "--round", 1)
    assert "24 pairs of round 1" in exported.stdout
    lines = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(lines) == 24 and all({"prompt", "chosen", "rejected"} <= line.keys() for line in lines)


def test_the_training_resumes_from_its_checkpoint(resumed):
    run, before, output = resumed
    after = read_records(run)
    assert {address: after[address] for address in before} == before, "what was finished stays as it was"
    assert "round-02/references    reused" in output
    begun = json.loads((OLD_RUN / "round-02/policy/begun.json").read_text())
    assert after["round-02/policy"]["build"] == begun["build"], "the build that was begun is the one that is finished"
    (state,) = (OLD_RUN / "round-02/policy/checkpoints/train").glob("*/state.json")
    lines = [json.loads(line) for line in (run / "round-02/policy/metrics.jsonl").read_text().splitlines()]
    old_lines = json.loads(state.read_text())["lines"]
    assert lines[: len(old_lines)] == old_lines, "the steps before the checkpoint were not taken again"
    assert lines[-1]["step"] == after["round-02/policy"]["training"]["steps"] == 10


def test_its_report_has_both_rounds(resumed):
    run, _, output = resumed
    metrics = json.loads((run / "metrics.json").read_text())
    assert [entry["round"] for entry in metrics["rounds"]] == [1, 2]
    report = (run / "report.md").read_text()
    assert "round 2" in report and (run / "report.png").stat().st_size > 10_000
    assert f"Report: {run}/report.md" in output
    assert '"headline":{"on":"held-out"' in (run / "report.html").read_text()
