"""A judge that compares summaries, in the stages as a run makes them: every evaluation compares with the base."""

import pytest

from judges.pairwise import PairwiseJudge
from pipeline.config.hardware import EngineHardware
from pipeline.config.loader import parse_config
from pipeline.execution.progress import Display
from pipeline.execution.runner import Runner
from pipeline.inference.pool import EnginePool
from pipeline.inference.scripted import ScriptedEngine
from pipeline.stages.scores import score_heldout, score_second
from pipeline.stages.summaries import summarize_beside_base, summarize_heldout_with_baselines
from pipeline.storage.ledger import Ledger
from pipeline.storage.tables import read_table
from tests.helpers.tables import add_table


def prefer_longer(prompt, sample):
    text = prompt.messages[0]["content"]
    first, second = (text.split(f"<{tag}>\n")[1].split(f"\n</{tag}>")[0] for tag in ("summary_a", "summary_b"))
    return "A" if len(first) > len(second) else "B"


def pool(script, residents):
    return EnginePool(lambda: ScriptedEngine(script), EngineHardware(batch_size=2), residents=residents)


@pytest.mark.usefixtures("ray_cluster")
def test_values_of_every_round_are_results_against_the_base(tmp_path, monkeypatch):
    judge = {"kind": "pairwise", "model": "m"}
    raw = {"run": str(tmp_path), "articles": {"path": "a.jsonl"}, "policy": {"model": "p"}}
    settings = parse_config(raw | {"judge": judge, "second_judge": judge, "hardware": {"ray_cpus": 4}})
    summaries = iter(["One two three.", "One two three four."])
    written = {}

    def resources(names, config, inputs, root, address, progress, warn, residents):
        if "exam" in address:
            written[address] = next(summaries)
        text = written.get(address)
        script = (lambda prompt, sample: text) if text else prefer_longer
        return {name: pool(script, residents) for name in names}

    monkeypatch.setattr("pipeline.execution.runner.provide_resources", resources)
    ledger = Ledger(str(tmp_path))
    run = Runner(settings, ledger, Display())
    questions = [
        {"article_id": name, "article": f"Text {name}. More of it. And more.", "split": split, "questions": []}
        | {"second_questions": []}
        for name, split in (("a", "eval"), ("b", "eval"), ("c", "train"))
    ]
    heldout = add_table(ledger, "second_questions", questions)
    base = ledger.finish("round-00/policy", {"build": "base", "recipe": {}, "model": "p"})
    policy = ledger.finish("round-01/policy", {"build": "new", "recipe": {}, "model": "p"})
    exam = (summarize_heldout_with_baselines, heldout, base), (score_heldout,)
    _, by_base = run.produce_chain(*exam, into="round-00")
    _, results = run.produce_chain((summarize_beside_base, by_base, policy), (score_heldout,), into="round-01")
    second = run.produce(score_second, results, into="round-01")
    rows = read_table(ledger, by_base)
    assert sorted(row["article_id"] for row in rows) == ["a", "b"]
    assert [score["value"] for score in rows[0]["scores"]] == [0.5, 1.0, 0.0], "base, lead, shorten-only"
    for row in read_table(ledger, results):
        assert row["writer"] == "new" and row["base_writer"] == "base"
        assert [score["value"] for score in row["scores"]] == [1.0] and len(row["base_summaries"]) == 3
    assert all(row["second_scores"][0]["value"] == 1.0 for row in read_table(ledger, second))
    assert PairwiseJudge.compares
