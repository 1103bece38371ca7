"""`rondo judge-card`: what it refuses before Ray starts, and the cards that it writes."""

import json

import pytest

from tests.helpers.paths import ROOT


def cloze(folder, *overrides):
    """A configuration file with a judge that needs no model, and overrides for 40 articles of the newsroom."""
    places = [f"articles.path={ROOT}/newsroom/articles.jsonl", f"policy.model={ROOT}/newsroom/models/policy"]
    return str(ROOT / "configs/articles_cpu.yaml"), [*places, f"run={folder}", "articles.limit=40", *overrides]


def test_judge_card_errors_come_before_ray_starts(tmp_path, monkeypatch):
    from jobs.judge.card import make_judge_card
    from pipeline.config import UserError
    from pipeline.storage.ledger import Ledger

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("pipeline.execution.ray_cluster.connected_ray", lambda hardware: pytest.fail("Ray was started"))
    demo, own = "configs/demo.yaml", [f"run={tmp_path}", "articles.limit=40"]
    served = [
        "judge={model: j, wording: newsroom, served: {server: o}}",
        "hardware.servers.o.base_url=http://127.0.0.1:1",
    ]
    with pytest.raises(UserError, match="hardware.servers.o.base_url is .*, and no server answers there"):
        make_judge_card(demo, [*own, *served])
    Ledger(str(tmp_path)).finish("articles", {"build": "b", "recipe": {"settings": {"articles": {"limit": 480}}}})
    with pytest.raises(
        UserError, match=r"made by another recipe .*: give the card a folder of its own, such as run=\S+-card"
    ):
        make_judge_card(demo, own)


def test_judge_that_no_run_would_use_has_a_card_too(ray_cluster, tmp_path):
    """All 60 questions must be good, and the cloze judge finds fewer in every article: no summary is judged."""
    from jobs.judge.card import make_judge_card

    make_judge_card(*cloze(tmp_path, "judge.questions=60", "questions.min_questions=60"))
    card = json.loads((tmp_path / "judge_card.json").read_text())
    assert card["reliability"]["reason"] == "no article has two different summaries to pair"
    assert card["summaries_judged"] == 0 and card["questions_asked"] > 0 and 0.9 < card["ceiling"] <= 1


def test_judge_card_command(ray_cluster, tmp_path, capsys):
    from jobs.judge.card import make_judge_card

    make_judge_card(*cloze(tmp_path))
    card = json.loads((tmp_path / "judge_card.json").read_text())
    assert card["floor"] == 0 and card["floor_unsure"] == 1 and card["parse_rate"] == card["agreement"] == 1
    reliability = card["reliability"]
    assert 20 < reliability["articles"] <= 40 and reliability["summaries"] > 3 * reliability["articles"]
    assert reliability["summaries"] <= card["summaries_judged"] and reliability["unit"] == "questions"
    assert reliability["reliability"]["low"] < reliability["reliability"]["value"] < reliability["reliability"]["high"]
    # The lead of each article is judged twice, by ten of the 20 questions at least.
    assert card["asked_again"] + card["unsure_twice"] >= 10 * reliability["articles"] and card["asked_again"] > 0
    assert not (tmp_path / "config.yaml").exists(), "the card does not write the settings of a run"
    output = capsys.readouterr().out
    assert "same with options reordered" in output and "same winner by other questions" in output
