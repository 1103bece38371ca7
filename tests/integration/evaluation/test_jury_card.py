"""The commands about judges with a jury: its card, with one for each member; its scores; its plan."""

import json
import sys

import pytest

from tests.helpers.paths import POLICY_MODEL, ROOT

CONFIG = str(ROOT / "configs" / "articles_cpu.yaml")
RULES = "def short(article, summary):\n    return [len(summary) < 200, len(summary) < len(article)]\n"


@pytest.fixture
def overrides(tmp_path, monkeypatch):
    """A folder of the user's with a function, and a jury of it and of the cloze judge."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "jury_rules.py").write_text(RULES)
    (articles,) = ROOT.glob("newsroom/**/articles.jsonl")
    members = "{names: {kind: cloze, weight: 2}, short: {kind: verifiable, settings: {function: jury_rules:short}}}"
    return [
        *(f"articles.path={articles}", "articles.limit=20", f"policy.model={POLICY_MODEL}", "run=card"),
        *(f"judge={{kind: jury, members: {members}}}", "pairs={preference: majority_vote}"),
    ]


def test_the_commands_know_a_jury(ray_cluster, tmp_path, overrides, capsys):
    from jobs.judge.card import make_judge_card
    from jobs.plan import plan
    from jobs.show.tables import show_rows

    make_judge_card(CONFIG, overrides)
    card = json.loads((tmp_path / "card/judge_card.json").read_text())
    assert list(card["members"]) == ["names", "short"]
    assert card["members"]["names"]["ceiling"] > 0.9 and card["members"]["names"]["questions_used"] > 0
    assert card["members"]["short"]["parse_rate"] == 1.0 and card["members"]["short"]["questions_asked"] == 0
    assert card["summaries_judged"] == card["members"]["short"]["summaries_judged"] > 0
    printed = capsys.readouterr().out
    assert "names: right from the whole article" in printed and "short: summaries with a score" in printed
    recipe = json.loads((tmp_path / "card/judge-card/evaluation/record.json").read_text())["recipe"]
    assert recipe["contents"]["judge.members"]["short"]["function"] is not None
    show_rows("card", "judge-card/evaluation", 1, None)
    assert "score " in capsys.readouterr().out
    plan(CONFIG, overrides)
    assert "round-01/scores" in capsys.readouterr().out
