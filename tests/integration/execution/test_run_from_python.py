"""`run` from Python: its settings, and the run that it returns."""

import subprocess
import sys

import pytest

import pipeline
from jobs.run_rounds import Run
from pipeline.config import UserError
from pipeline.config.loader import combine_config
from pipeline.round import rounds
from pipeline.storage.ledger import Ledger
from tests.helpers.paths import DEMO, ROOT
from tests.helpers.scripted_rounds import ARTICLES, ScriptedRounds, settings


def test_settings_from_python_are_those_of_the_file_with_changes() -> None:
    changed = combine_config(DEMO, rounds=3, training={"beta": 0.5})
    plain = combine_config(DEMO)
    assert (changed.rounds, changed.training.beta) == (3, 0.5)
    assert changed.training.learning_rate == plain.training.learning_rate
    assert combine_config(plain, rounds=3, training={"beta": 0.5}) == changed
    assert combine_config(plain) is plain
    assert combine_config(None, **plain.model_dump(mode="json")) == plain
    with pytest.raises(UserError, match=r"training has no 'beat' \(did you mean beta\?\)"):
        combine_config(DEMO, training={"beat": 0.5})


def test_a_run_shows_its_report_and_its_samples(tmp_path):
    skills = [0, 40]
    scripted = ScriptedRounds(settings(tmp_path, skills), Ledger(str(tmp_path)), skills)
    evaluations = tuple(each.results for each in rounds(scripted))
    (tmp_path / "report.md").write_text("# Two rounds\n")
    result = Run(str(tmp_path), {"champion": 1}, "models/1", evaluations)

    assert result.report() == "# Two rounds\n"
    assert result.report()._repr_markdown_() == "# Two rounds\n"
    samples = result.samples()
    assert len(samples) == ARTICLES
    first, last = samples[0], samples[-1]
    assert (first["article_id"], first["article"], first["base"], first["policy"]) == (
        "a000",
        "Some text.",
        "by 0",
        "by 1",
    )
    assert [sample["policy_score"]["correct"] for sample in (first, last)] == [1, 0]
    assert result.samples(round=0, count=2)[1]["policy"] == "by 0"
    with pytest.raises(UserError, match=r"round is 2: .* has rounds 0 \(the base\) to 1"):
        result.samples(round=2)


def test_the_names_of_the_package_are_loaded_when_they_are_used():
    assert {"align", "judge_card", "run"} <= set(dir(pipeline))
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        _ = pipeline.rum
    code = "import pipeline, sys; print([name for name in sys.modules if name.partition('.')[0] in ('jobs', 'ray')])"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert loaded == "[]\n"
    assert pipeline.run.__module__ == "jobs.run_rounds"
