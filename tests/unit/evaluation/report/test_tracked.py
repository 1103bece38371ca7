"""The evaluations, samples and the report reach the trackers once, also if the run is interrupted and goes on."""

import json
import shutil
from contextlib import contextmanager

import pytest

from pipeline.config import UserError
from pipeline.evaluation.report import tracked
from pipeline.evaluation.report.metrics import collect_metrics
from pipeline.round import rounds
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import TRACKERS
from pipeline.training import tracking
from tests.helpers.scripted_rounds import settings
from tests.integration.page.page_run import HOSTILE, RunWithTexts

SKILLS = [0, 0, 0]


class Recorder(tracking.Tracker):
    """A tracker that keeps what it takes, and can fail at a table."""

    def __init__(self):
        self.id, self.opened, self.figures, self.tables, self.files, self.fails = "run-1", [], [], [], [], False

    @contextmanager
    def open(self, run):
        self.opened.append(run)
        yield self

    def log(self, step, values):
        self.figures.append((step, values))

    def log_table(self, name, rows, step):
        if self.fails:
            raise ConnectionError("no route")
        self.tables.append((name, step, rows))

    def log_files(self, name, texts):
        self.files.append((name, texts))


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(tracking._TRACKERS, name, recorder.open)
    tracking.check_trackers([])
    yield recorder
    tracking.check_trackers([])


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run folder in which every artifact is made, and nothing was sent."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    run_once(folder, trackers="[]")
    assert not (folder / TRACKERS).exists(), "without trackers nothing is noted"
    return folder


@pytest.fixture
def folder(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "demo")


def run_once(folder, warn=print, last=None, trackers="[wandb]"):
    """Walk the rounds of a run folder as `rondo run` does, up to the round `last`; artifacts there are kept."""
    overrides = "pairs.preference=accuracy_only", "articles.test_fraction=0.1", "report.resamples=100"
    config = settings(folder, SKILLS, *overrides, f"report_to={trackers}")
    run = RunWithTexts(config, Ledger(config.run), SKILLS, drift=[3.0])
    finished = []
    with tracked.TrackedRun(config, run.ledger, warn) as trackers:
        for current in rounds(run):
            finished[current.number :] = [current]
            metrics = collect_metrics(finished, config, run.ledger)
            for name in tracked.REPORT:
                run.ledger.write(name, f"the report after round {current.number} {'and the test' * bool(current.test)}")
            trackers.send_round(current, finished[0], metrics)
            if current.number == last:
                return metrics
        trackers.send_report()
    return metrics


def test_each_evaluation_arrives_with_its_samples_and_the_report_at_the_end(folder, recorder):
    metrics = run_once(folder)
    (opened,) = recorder.opened
    assert (opened.project, opened.name, opened.axis, opened.id) == ("demo", "evaluation", "round", None)

    assert [step for step, _ in recorder.figures] == [0, 1, 2, 2]
    base, _, second, test = [values for _, values in recorder.figures]
    rate = metrics["rounds"][1]["vs_base"]["strict"]
    assert [second[f"eval/vs_base/strict/{end}"] for end in ("win_rate", "low", "high")] == [
        rate[end] for end in ("win_rate", "low", "high")
    ]
    assert second["eval/kl/per_summary"] == metrics["rounds"][1]["kl"]["per_summary"]
    assert {"eval/accuracy", "eval/words_median", "eval/copied", "eval/cut_off", "eval/lead/accuracy"} <= base.keys()
    assert test["test/vs_base/strict/high"] == metrics["test"]["policy"]["vs_base"]["strict"]["high"]
    assert "test/base/accuracy" in test
    assert all(isinstance(value, float) for _, values in recorder.figures for value in values.values())

    tables = {(name, step): rows for name, step, rows in recorder.tables}
    rounds_with_tables = [("completions", 0), ("completions", 1), ("pairs", 1), ("completions", 2), ("pairs", 2)]
    assert list(tables) == [*rounds_with_tables, ("test_completions", 2)]
    held_out, pairs = tables["completions", 2], tables["pairs", 2]
    names = ["step", "article_id", "prompt", "completion", "score", "words", "base", "base_score"]
    assert list(held_out[0]) == names and len(held_out) == 80
    by_id = {row["article_id"]: row for row in held_out}
    assert "Story 11. The bridge of Oslo" in by_id["a011"]["prompt"]
    assert (by_id["a011"]["completion"], by_id["a011"]["score"]) == ("Oslo has a bridge of 1911.", 11 * 5 % 4)
    assert by_id["a006"]["score"] is None, "it has an unread answer"
    names = ["step", "article_id", "prompt", "chosen", "rejected", "score_chosen", "score_rejected", "reason"]
    assert list(pairs[0]) == names and pairs[0]["reason"] == HOSTILE
    assert all(len(str(value)) < 5100 for rows in tables.values() for row in rows for value in row.values())

    ((name, texts),) = recorder.files
    assert name == "report" and texts == {each: (folder / each).read_text() for each in texts}
    assert set(texts) == {"report.md", "report.html"}


def test_the_same_command_again_sends_nothing_twice(folder, finished_run, recorder, tmp_path):
    run_once(folder, last=1)
    run_once(folder)
    assert [run.id for run in recorder.opened] == [None, "run-1"], "a run that goes on has one run in the tracker"
    resumed = [recorder.figures[:], recorder.tables[:], recorder.files[:]]
    run_once(folder)
    assert len(recorder.opened) == 2, "there was nothing to send"

    recorder.__init__()
    run_once(shutil.copytree(finished_run, tmp_path / "whole"))
    assert resumed == [recorder.figures, recorder.tables, recorder.files]


def test_a_tracker_that_fails_gets_what_it_missed_by_the_next_command(folder, recorder):
    recorder.fails, shown = True, []
    run_once(folder, shown.append)
    assert shown == ["report_to: wandb took not everything (no route), and gets no more of this run"]
    assert [step for step, _ in recorder.figures] == [0]

    recorder.fails = False
    tracking.check_trackers([])
    run_once(folder, shown.append)
    assert len(shown) == 1
    assert [step for step, _ in recorder.figures] == [0, 1, 2, 2], "nothing twice"
    assert len(recorder.tables) == 6 and len(recorder.files) == 1


def test_a_tracker_that_is_added_later_gets_everything(folder, recorder):
    run_once(folder)
    run_once(folder, trackers="[wandb, mlflow]")
    assert [step for step, _ in recorder.figures] == [0, 1, 2, 2] * 2
    assert {each["id"] for each in json.loads((folder / TRACKERS).read_text()).values()} == {"run-1"}


def test_a_damaged_note_is_refused_with_a_remedy(folder, recorder):
    (folder / TRACKERS).write_text('{"wandb": []}')
    with pytest.raises(UserError, match=r"trackers.json is damaged: .* Remove it to send all again"):
        run_once(folder)
