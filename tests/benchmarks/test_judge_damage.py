"""Tests the damages of summaries, and the figures for judges that notice all of them, none, or only the length."""

import json
import random
import re
import sys
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import judge_damage
from bench.judge_damage import make_case, measure, read_cases, rouge_1, rouge_2, rouge_l
from bench.judge_quality.damages import DAMAGES, HARMLESS, Material, apply, damage_often, names, numbers, sentences
from pipeline.config import UserError
from tests.helpers.paths import ROOT

ARTICLE = (
    "(CNN)Mayor Ann Lee opened the bridge in Oslo on 3 May. It cost 1,200,000 crowns. The work took 14 months, said "
    'Tom Berg. Dr. Ida Holm of the U.S. embassy called it "a gift". Visitors came from Bergen and Turku. A band played.'
)
SUMMARY = "Ann Lee opened Oslo's bridge after 14 months. It cost 1,200,000 crowns. Tom Berg didn't speak."
OTHER = "The senate met in Lisbon on 9 June to vote on taxes. Rui Costa opposed the plan with 45 others."
MATERIAL = Material(ARTICLE, OTHER, "Lisbon's senate voted on taxes. Rui Costa opposed.")


def changed(name, summary=SUMMARY, seed="0"):
    return apply((DAMAGES | HARMLESS)[name], summary, MATERIAL, seed)


def test_names_and_numbers_are_found():
    assert set(names(SUMMARY)) == {"Oslo", "Ann Lee", "Tom Berg"}
    assert {"Mayor Ann Lee", "Oslo", "Tom Berg", "Bergen", "Turku"} <= set(names(ARTICLE))
    assert numbers(ARTICLE) == ("3", "1,200,000", "14")
    assert len(sentences("He met Dr. Holm in the U.S. embassy. She left.")) == 2


def test_each_damage_is_what_its_name_says():
    assert set(numbers(changed("number swapped"))) - set(numbers(SUMMARY)) == {"3"}
    foreign = changed("name from elsewhere")
    assert any(name in foreign for name in ("Lisbon", "Rui Costa")) and changed("name swapped") != SUMMARY
    assert Counter(changed("names exchanged").replace("'s", "").split()) == Counter(SUMMARY.replace("'s", "").split())
    assert "did speak" in changed("negated")
    assert "was not here" in changed("negated", "She was here.")
    assert changed("negated", "I can't go.") == "I can go."
    assert len(sentences(changed("sentence dropped"))) == 2
    assert (
        changed("stray ending").startswith(SUMMARY) and changed("stray ending").removeprefix(SUMMARY).strip() in OTHER
    )
    assert changed("other article's summary") == MATERIAL.other_summary
    assert len(sentences(changed("sentence repeated"))) == 4 and set(sentences(changed("sentence repeated"))) == set(
        sentences(SUMMARY)
    )
    assert changed("lead repeated").count("opened the bridge in Oslo") == 3
    shuffled = re.findall(r"\w+", changed("words shuffled"))
    assert Counter(shuffled) == Counter(re.findall(r"\w+", SUMMARY)) and shuffled != re.findall(r"\w+", SUMMARY)
    assert changed("sentences cut").startswith("Ann Lee opened Oslo's bridge It cost")
    assert changed("cut in half") == "Ann Lee opened Oslo's bridge after 14 months."


def test_each_harmless_change_keeps_the_content():
    assert changed("lower case") == SUMMARY.lower()
    assert changed("typographic signs", 'Ann\'s "gift" - 5...') == "Ann’s “gift” — 5…"
    assert changed("typographic signs", "Ann’s “gift”") == 'Ann\'s "gift"'
    assert (
        "1200000" in changed("thousands")
        and changed("thousands", "It cost 15000 in 1998.") == "It cost 15,000 in 1998."
    )
    assert changed("thousands", "In 1998 it cost 12.5.") is None
    assert unicodedata.normalize("NFC", changed("NFD", "Zoë ran.")) == "Zoë ran." and changed("NFD") is None
    for name in ("line ends", "no-break spaces"):
        assert changed(name) != SUMMARY and changed(name).split() == SUMMARY.split()
    assert "1,200,000 crowns．" in changed("full-width signs")


def test_a_damage_that_does_not_apply_gives_none():
    plain = "a dog ran."
    for name in ("number swapped", "name swapped", "names exchanged", "name from elsewhere", "negated"):
        assert changed(name, plain) is None
    assert changed("sentence dropped", plain) is None and changed("cut in half", plain) is None


@given(st.text(max_size=60).filter(str.strip), st.integers(0, 3))
def test_changes_survive_any_text_and_depend_on_the_seed_alone(text, seed):
    material = Material(text, OTHER, text)
    for change in (DAMAGES | HARMLESS).values():
        first = apply(change, text, material, str(seed))
        assert first == apply(change, text, material, str(seed))
        assert first is None or first.strip() not in ("", text.strip())


def test_damages_add_up():
    versions = damage_often(SUMMARY, MATERIAL, "0")
    assert len(versions) == len(set(versions)) == 5 and versions[0] == SUMMARY
    assert damage_often("a dog ran.", MATERIAL, "0")[0] == "a dog ran."


def test_rouge_equals_values_computed_by_hand():
    text, reference = "the cat sat on a mat", "The cat lay on the mat."
    assert rouge_1(text, reference) == pytest.approx(4 / 6)  # the, cat, on, mat
    assert rouge_2(text, reference) == pytest.approx(1 / 5)  # the cat
    assert rouge_l(text, reference) == pytest.approx(4 / 6)
    assert rouge_1("", reference) == rouge_2("x", reference) == rouge_l("", "") == 0


def cases():
    return [make_case(str(i), ARTICLE, SUMMARY.replace("14", str(14 + i)), OTHER, "Taxes rise.", i) for i in range(4)]


def test_a_judge_that_notices_everything_wins_always():
    own = cases()
    perfect = [[-float(i in case.damaged.values()) for i in range(len(case.texts))] for case in own]
    for case, values in zip(own, perfect, strict=True):
        for times, i in enumerate(case.often):
            values[i] = -float(times)
    result = measure(own, perfect)
    assert result["damaged"]["mean"]["wins"] == {"value": 1, "low": 1, "high": 1, "n": 4}
    assert result["harmless"]["lower case"]["order_kept"]["value"] == 1
    assert result["often"]["judge"]["value"] == pytest.approx(1)


def test_a_judge_that_sees_nothing_ties_and_unread_values_are_left_out():
    own = cases()
    result = measure(own, [[1.0] * len(case.texts) for case in own[:3]] + [[None] * len(own[3].texts)])
    mean = result["damaged"]["mean"]
    assert (mean["wins"]["value"], mean["ties"]["value"], mean["score"]["value"], mean["score"]["n"]) == (0, 1, 0.5, 3)
    assert result["often"]["judge"] == {"value": None, "low": None, "high": None, "n": 0}


def test_a_judge_by_length_equals_the_rule_for_length():
    own = cases()
    result = measure(own, [[float(len(text.split())) for text in case.texts] for case in own])
    for figures in result["damaged"].values():
        assert figures["score"] == figures["longer"]
    assert result["damaged"]["sentence dropped"]["longer"]["value"] == 1
    assert result["damaged"]["stray ending"]["shorter"]["value"] == 1
    assert all(among["judge"] == among["words"] for of in result["rouge"].values() for among in of.values())


def test_articles_without_a_summary_are_refused_in_one_line(tmp_path):
    path = tmp_path / "articles.jsonl"
    path.write_text(json.dumps({"id": 1, "text": "x"}) + "\n")
    with pytest.raises(UserError, match="0 usable articles and the columns id, text; it needs two or more with text"):
        read_cases(str(path), 10)


def test_the_command_prints_and_writes_results(tmp_path, monkeypatch, capsys):
    path, out = tmp_path / "articles.jsonl", tmp_path / "out.json"
    rng = random.Random(0)
    people = [f"{a} {b}" for a in ("Ann", "Tom", "Ida", "Rui") for b in ("Lee", "Berg", "Holm", "Costa")]
    with path.open("w") as file:
        for i in range(3):
            facts = [
                f"In {1950 + i + 7 * n} the mayor {person} came." for n, person in enumerate(rng.sample(people, 9))
            ]
            row = {"id": i, "text": " ".join(facts), "highlights": facts[:2]}
            file.write(json.dumps(row | {"samples": [[facts[0], "stop"], ["No.", "stop"], [facts[2], "stop"]]}) + "\n")
    config = str(ROOT / "configs/articles_cpu.yaml")
    monkeypatch.setattr(sys, "argv", ["judge_damage", config, str(path), "--articles", "2", "--json", str(out)])
    judge_damage.main()
    result = json.loads(out.read_text())
    assert result["judge"] == "cloze" and result["articles"] == 2
    assert result["damaged"]["mean"]["preferred"]["n"] == 2
    assert result["rouge"]["ROUGE-1"]["samples"]["words"]["n"] == 2
    assert "Spearman's rho per article" in capsys.readouterr().out


def test_articles_that_give_no_questions_are_named_in_one_line(tmp_path, monkeypatch):
    path = tmp_path / "articles.jsonl"
    rows = [{"id": i, "text": f"It rained {i} times. The sun came.", "highlights": ["It rained."]} for i in range(2)]
    path.write_text("\n".join(map(json.dumps, rows)))
    config = str(ROOT / "configs/articles_cpu.yaml")
    monkeypatch.setattr(sys, "argv", ["judge_damage", config, str(path), "--articles", "2"])
    with pytest.raises(UserError, match=r"no article could be scored \(.*: 2\)"):
        judge_damage.main()
