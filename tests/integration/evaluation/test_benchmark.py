"""Tests of `rondo benchmark` with results that need no model: pairing, the table, resuming, the report, bad input."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import yaml

from jobs import benchmark
from pipeline.config import UserError
from pipeline.evaluation.benchmark.comparison import bootstrap
from pipeline.evaluation.benchmark.models import Subject, current_digests, subjects_of_run
from pipeline.evaluation.benchmark.results import find_result, result_recipe, write_result
from pipeline.evaluation.benchmark.table import add_comparisons, benchmark_table, read_comparisons, up_to_date
from pipeline.evaluation.report.render import template_environment
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import read_settings
from tests.helpers.paths import POLICY_MODEL, ROOT

OPTIONS = benchmark.Options(limit=None, seed=0, chat=False, dtype="float32")
BASE, ROUND = Subject("base", "round-00", "m", "digest 0"), Subject("round 1", "round-01", "p", "digest 1")
HOW = {"resamples": 200, "confidence": 0.95, "seed": 0}


@dataclass(frozen=True)
class FakeTask:
    """A task without lm-evaluation-harness. Its metrics are `acc` and `byte_perplexity`."""

    name: str
    part_of: str
    version: str = "1.0"

    def aggregate(self, metric, values):
        if metric == "acc":
            return float(np.mean(values))
        log_likelihoods, sizes = zip(*values, strict=True)
        return math.exp(-sum(log_likelihoods) / sum(sizes))

    def higher_is_better(self, metric):
        return metric == "acc"

    def is_slow(self, metric):
        return False


def write(ledger, subject, values, task="t", documents=None, **settings):
    recipe = result_recipe(subject, task, {"version": "1.0"}, {"lm_eval": "0.4", **settings})
    n = len(next(iter(values.values())))
    figures = {metric: FakeTask(task, task).aggregate(metric, of) for metric, of in values.items()}
    return write_result(
        ledger, subject, task, recipe, documents or list(map(str, range(n))), values, figures, 0.0, cut=0
    )


@pytest.fixture
def ledger(tmp_path):
    return Ledger(str(tmp_path))


def compare(results, *names):
    tasks = [FakeTask(name, "t") for name in names or ("t",)]
    return benchmark.compare_results(results, tasks, OPTIONS, 0.95)["t"]


def test_intervals_are_paired_by_document():
    """Documents differ a lot, and the second model is better by the same amount on each: the difference is certain."""
    base = list(np.random.default_rng(0).normal(0, 10, 50))
    better = [value + 0.5 for value in base]
    difference = bootstrap(better, base, lambda values: float(np.mean(values)), **HOW)
    assert difference.low == pytest.approx(0.5) and difference.high == pytest.approx(0.5)
    assert difference.verdict(higher_is_better=True) == "better"
    own = bootstrap(better, None, lambda values: float(np.mean(values)), **HOW)
    assert own.high - own.low > 2


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    rng, covered = np.random.default_rng(1), 0
    for seed in range(100):
        base = rng.normal(0, 1, 60)
        ours = base + rng.normal(0.3, 1, 60)
        interval = bootstrap(ours, base, np.mean, resamples=200, confidence=0.9, seed=seed)
        covered += interval.low <= 0.3 <= interval.high
    assert 78 <= covered <= 97


def test_equal_results_show_nothing(ledger):
    values = {"acc": [0, 1, 1, 0]}
    base, line = compare({"t": [write(ledger, BASE, values), write(ledger, ROUND, values)]})["lines"]
    assert base.difference is None and base.figure == 0.5
    assert (line.difference, line.low, line.high, line.verdict, line.n) == (0, 0, 0, "", 4)


def test_higher_perplexity_is_worse(ledger):
    base = {"byte_perplexity": [(-10.0, 10), (-40.0, 20)]}
    worse = {"byte_perplexity": [(-20.0, 10), (-60.0, 20)]}
    base_line, line = compare({"t": [write(ledger, BASE, base), write(ledger, ROUND, worse)]})["lines"]
    assert base_line.figure == pytest.approx(math.exp(50 / 30))
    assert line.difference == pytest.approx(math.exp(80 / 30) - math.exp(50 / 30))
    assert line.verdict == "worse"


def test_tasks_of_a_group_are_taken_together(ledger):
    results = {
        name: [write(ledger, BASE, {"acc": base}, name), write(ledger, ROUND, {"acc": ours}, name)]
        for name, base, ours in (("a", [1, 1, 1], [1, 1, 0]), ("b", [0], [0]))
    }
    entry = compare(results, "a", "b")
    assert [(line.figure, line.n) for line in entry["lines"]] == [(0.75, 4), (0.5, 4)]
    assert entry["tasks"] == {"a": "1.0", "b": "1.0"}


def test_results_about_other_documents_are_not_paired(ledger):
    results = [write(ledger, BASE, {"acc": [0, 1]}), write(ledger, ROUND, {"acc": [0, 1]}, documents=["0", "x"])]
    with pytest.raises(UserError, match="different documents"):
        compare({"t": results})


def test_a_finished_result_is_found_again_until_something_changes(ledger):
    written = write(ledger, BASE, {"acc": [0, 1]}, limit=2)
    recipe = written.artifact.record["recipe"]
    found = find_result(ledger, BASE, "t", recipe)
    assert (found.documents, found.values) == (written.documents, written.values)
    assert found.artifact.record["documents"] == 2
    assert (
        find_result(ledger, BASE, "t", result_recipe(BASE, "t", {"version": "1.0"}, {"lm_eval": "0.4", "limit": 3}))
        is None
    )
    retrained = replace(BASE, digest="other")
    assert (
        find_result(ledger, retrained, "t", result_recipe(retrained, "t", {"version": "1.0"}, recipe["settings"]))
        is None
    )


def test_a_result_without_its_record_is_measured_again(ledger):
    result = write(ledger, BASE, {"acc": [0, 1]})
    ledger.delete_file(f"{result.artifact.address}/record.json")
    assert find_result(ledger, BASE, "t", result.artifact.record["recipe"]) is None


def test_the_report_shows_the_table(ledger):
    results = [write(ledger, BASE, {"acc": [1, 1, 1, 1]}), write(ledger, ROUND, {"acc": [0, 0, 0, 0]})]
    add_comparisons(ledger, {"t": compare({"t": results})})
    comparisons = read_comparisons(ledger)
    table = benchmark_table([line for entry in comparisons.values() for line in entry["lines"]])
    template = template_environment().get_template("report.md.j2")
    context = template.new_context({"benchmark": table, "comparisons": comparisons})
    text = "".join(template.blocks["benchmark"](context))
    assert "## What the policy has forgotten" in text
    assert "| t | acc | round 1 | 0.0000 | -1.0000 | -1.0000 to -1.0000 | worse | 4 |" in text.replace("\\", "")
    assert "- **t**: lm-eval 0.4, version 1.0 of the task, seed 0, float32, 95 % intervals." in text


def test_the_report_leaves_out_policies_that_were_trained_again(ledger):
    values = {"acc": [0, 1]}
    comparisons = {"t": compare({"t": [write(ledger, BASE, values), write(ledger, ROUND, values)]})}
    assert up_to_date(comparisons, {"round-00": "digest 0", "round-01": "digest 1"}) == comparisons
    assert up_to_date(comparisons, {"round-00": "digest 0", "round-01": "newer"}) == {}
    assert up_to_date(comparisons, {"round-00": "newer", "round-01": "digest 1"}) == {}


def test_another_task_keeps_the_comparisons_of_earlier_ones(ledger):
    entry = compare({"t": [write(ledger, BASE, {"acc": [0]}), write(ledger, ROUND, {"acc": [1]})]})
    add_comparisons(ledger, {"t": entry})
    add_comparisons(ledger, {"u": entry})
    assert list(read_comparisons(ledger)) == ["t", "u"]


def test_a_damaged_file_of_comparisons_is_named(ledger):
    ledger.write("benchmark.json", "{")
    with pytest.raises(UserError, match=r"benchmark\.json is damaged: remove it"):
        read_comparisons(ledger)


def write_run(folder):
    config = {"run": str(folder), "articles": {"path": "a.jsonl"}, "policy": {"model": "newsroom/models/policy"}}
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"judge": {"kind": "cloze"}}))
    return folder


def test_a_moved_run_has_its_policies_where_it_is_now(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    ledger = Ledger(str(write_run(tmp_path / "moved")))
    for number in (0, 1, 2):
        record = {"build": "b", "recipe": {}, "model": f"/gone/round-0{number}/policy", "digest": f"digest {number}"}
        if number:
            record["training"] = {}
            ledger.write(f"round-0{number}/policy/config.json", (POLICY_MODEL / "config.json").read_bytes())
            for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
                ledger.write(f"round-0{number}/policy/{name}", (POLICY_MODEL / name).read_bytes())
        ledger.write(f"round-0{number}/policy/record.json", json.dumps(record))
    subjects = subjects_of_run(ledger, read_settings(ledger))
    assert [subject.label for subject in subjects] == ["base", "round 1", "round 2"]
    assert subjects[0].model == "newsroom/models/policy"
    assert subjects[2].model == f"{tmp_path}/moved/round-02/policy"
    assert current_digests(ledger) == {f"round-0{number}": f"digest {number}" for number in range(3)}


def test_bad_input_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    run, other = write_run(tmp_path / "run"), write_run(tmp_path / "other")
    cases = [
        (([str(run)], []), "--tasks is empty"),
        ((["newsroom/models/policy"], ["t"]), "is no run folder, and a single model has nothing to be compared with"),
        ((["a/b", "c/d"], ["t"]), "--out is not set: without a run, name a folder"),
        (([str(run), str(other)], ["t"]), "are runs: benchmark one run at a time"),
        ((["a/b", str(run)], ["t"]), "whose base comes first: name it before a/b"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            benchmark.run_benchmark(*arguments)
    with pytest.raises(UserError, match="--dtype is 'float99': it should be one of"):
        benchmark.run_benchmark([str(run)], ["t"], dtype="float99")
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="lm-evaluation-harness is not installed: install it with `make benchmark`"):
        benchmark.run_benchmark([str(run)], ["t"])
