"""A judge of the user's, from one file in the folder of the command, works in the real stages on Ray."""

import json
import sys

import pytest

from pipeline.config import UserError
from pipeline.execution.recipe import fingerprint_user_code
from tests.helpers.paths import POLICY_MODEL, ROOT, documented_judge

CONFIG = str(ROOT / "configs" / "articles_cpu.yaml")
KIND = "travelling_judge:KeywordJudge"


def test_a_card_of_a_judge_of_the_users(ray_cluster, tmp_path, monkeypatch):
    """The workers cannot import the module, so its class is sent to them by value."""
    from jobs.judge.card import make_judge_card

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "travelling_judge.py").write_text(documented_judge())
    (articles,) = ROOT.glob("newsroom/**/articles.jsonl")
    overrides = [f"articles.path={articles}", "articles.limit=20", f"policy.model={POLICY_MODEL}", "run=card"]
    overrides += [f"judge.kind={KIND}", "judge.settings={min_letters: 3}"]
    make_judge_card(CONFIG, overrides)
    card = json.loads((tmp_path / "card/judge_card.json").read_text())
    assert card["floor"] == 0 and card["ceiling"] == card["floor_unsure"] == card["parse_rate"] == 1
    assert card["questions_used"] > 0 and card["summaries_judged"] > 0
    for address in ("questions", "judge-card/evaluation"):
        record = json.loads((tmp_path / "card" / address / "record.json").read_text())
        assert record["judge"] == KIND and record["recipe"]["contents"]["judge.kind"] == fingerprint_user_code(KIND)
    with pytest.raises(UserError, match="settings.judge.settings.min_letters: was 3, now 4"):
        make_judge_card(CONFIG, [*overrides, "judge.settings={min_letters: 4}"])
