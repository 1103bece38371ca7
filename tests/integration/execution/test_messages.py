"""What a run says while it works: token limits that cut off replies, and how many articles are left."""

import io
import json

import pytest
from rich.console import Console

from pipeline.config.hardware import EngineHardware
from pipeline.config.loader import parse_config
from pipeline.execution.progress import Display
from pipeline.execution.runner import Runner
from pipeline.inference.pool import EnginePool
from pipeline.inference.scripted import ScriptedEngine
from pipeline.stages.articles import read_articles
from pipeline.stages.scores import score_samples
from pipeline.stages.summaries import sample_summaries
from pipeline.storage.ledger import Ledger
from tests.helpers.tables import add_table

pytestmark = pytest.mark.usefixtures("ray_cluster")

QUESTION = {"question_id": "q", "question": "Who?", "options": ["Ann", "Bob"], "answer": 0}


def start(tmp_path, monkeypatch, length, together=False):
    """A runner whose policy writes so many characters (tokens), with a limit of 30, and what it prints."""
    raw = {
        "run": str(tmp_path / "run"),
        "articles": {"path": str(tmp_path / "a.jsonl"), "limit": 40, "max_words": 30, "eval_fraction": 0.5},
    }
    raw |= {"policy": {"model": "p"}, "judge": {"kind": "cloze"}, "summaries": {"n": 2, "max_tokens": 30}}
    settings = parse_config(raw | {"hardware": {"ray_cpus": 4, "together": together}})

    def reply(prompt, sample):
        return "x" * length if prompt.max_tokens == 30 else "A"

    def resources(names, *_):
        hardware = EngineHardware(batch_size=8, cpus_per_replica=0.5)
        return {name: EnginePool(lambda: ScriptedEngine(reply), hardware) for name in names}

    monkeypatch.setattr("pipeline.execution.runner.provide_resources", resources)
    console = Console(file=io.StringIO(), soft_wrap=True, width=400)
    ledger = Ledger(settings.run)
    return Runner(settings, ledger, Display(console)), ledger, console.file


def sample(run, ledger, together):
    rows = [
        {"article_id": f"a{i:02d}", "article": f"Text {i}.", "split": "train", "questions": [QUESTION]}
        for i in range(40)
    ]
    questions = add_table(ledger, "questions", rows)
    policy = ledger.finish("round-00/policy", {"build": "b", "recipe": {}, "model": "p"})
    links = (
        ((sample_summaries, questions, policy), (score_samples,))
        if together
        else ((sample_summaries, questions, policy),)
    )
    return run.produce_chain(*links, into="round-01")


@pytest.mark.parametrize("together", [False, True])
def test_a_limit_that_cuts_off_most_summaries_is_told_of_once(tmp_path, monkeypatch, together):
    run, ledger, printed = start(tmp_path, monkeypatch, 90, together)
    summaries = sample(run, ledger, together)[0]
    tally = summaries.record["tally"]
    assert (tally["replies"], tally["replies cut off"]) == (80, 80)
    text = printed.getvalue()
    (note,) = [line for line in text.split("\n") if line.startswith("note: ")]
    assert note.startswith("note: round-01/summaries: ")
    assert note.endswith(
        "summaries were cut off by summaries.max_tokens=30 and are in no pair: raise it, or ask for a shorter "
        "summary in policy.instruction"
    )
    if not together:  # in a pipeline the tables may be finished before they are looked at
        assert " of the first " in note and text.index("note: ") < text.index("80 of 80 cut off")


def test_a_limit_that_cuts_off_no_summary_is_not_told_of(tmp_path, monkeypatch):
    run, ledger, printed = start(tmp_path, monkeypatch, 20)
    sample(run, ledger, together=False)
    assert "note" not in printed.getvalue() and "cut off" not in printed.getvalue()


def test_a_corpus_of_which_little_is_left_says_so_before_anything_else(tmp_path, monkeypatch):
    lines = [{"id": f"a{i}", "text": f"word{i} item{i} day{i} " * (8 if i % 2 else 20)} for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    run, _, printed = start(tmp_path, monkeypatch, 20)
    record = run.produce(read_articles).record
    assert record["in"] == 40 and record["skipped"]["over 30 words"] == 20
    lines = printed.getvalue().split("\n")
    train, held_out = record["tally"]["train"], record["tally"]["eval"]
    assert f"kept ({train} train, {held_out} eval)" in lines[0]
    assert lines[1].startswith(
        "note: articles: articles.limit=40 counts rows of the file, also those that are skipped: "
        f"{record['kept']} of 40 rows are left"
    )
