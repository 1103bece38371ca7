"""`rondo judge-card`: what it refuses before Ray starts, and the cards that it writes."""

import json

import pytest

from tests.helpers.paths import ROOT


def cloze(folder, *overrides):
    """A configuration of the judge without a model, and its settings for some of the newsroom's articles."""
    places = [f"articles.path={ROOT}/newsroom/articles.jsonl", f"policy.model={ROOT}/newsroom/models/policy"]
    return str(ROOT / "configs/articles_cpu.yaml"), [*places, f"run={folder}", "articles.limit=40", *overrides]


def test_what_a_card_cannot_be_made_of_is_told_before_ray_starts(tmp_path, monkeypatch):
    from jobs.judge_card import make_judge_card
    from pipeline.config import UserError
    from pipeline.storage.ledger import Ledger

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("pipeline.execution.ray_cluster.connected", lambda hardware: pytest.fail("Ray was started"))
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


def test_a_judge_that_no_run_would_use_has_a_card_too(ray_cluster, tmp_path):
    """Of 4 questions as many as can be asked are to be good, and the cloze judge finds no more than that in some."""
    from jobs.judge_card import make_judge_card

    make_judge_card(*cloze(tmp_path, "judge.questions=20", "questions.min_questions=20"))
    found = json.loads((tmp_path / "judge_card.json").read_text())
    assert found["summaries_judged"] == 0 and found["questions_asked"] > 0 and found["ceiling"] == 1


def test_a_card_alone(ray_cluster, tmp_path, capsys):
    from jobs.judge_card import make_judge_card

    make_judge_card(*cloze(tmp_path))
    found = json.loads((tmp_path / "judge_card.json").read_text())
    assert found["floor"] == 0 and found["floor_unsure"] == 1 and found["parse_rate"] == found["agreement"] == 1
    assert 20 < found["summaries_judged"] <= 40
    assert found["asked_again"] + found["unsure_twice"] >= 3 * found["summaries_judged"] > found["asked_again"] > 0
    assert not (tmp_path / "config.yaml").exists(), "a run's settings are not those of its judge's card"
    assert "same with options reordered" in capsys.readouterr().out
