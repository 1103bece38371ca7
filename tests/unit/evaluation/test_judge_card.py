"""Tests of the judge card: its figures for scripted judges, good and bad."""

import math
import re
from collections import defaultdict

import pytest

from judges.base import LETTERS, UNSURE, Question
from pipeline.config import run
from pipeline.evaluation import judge_card, reliability
from pipeline.evaluation.win_rate import homogeneity_p
from pipeline.inference.scripted import ScriptedEngine
from pipeline.judging import tallies
from pipeline.judging.factory import make_judge
from pipeline.judging.question_generation import generate_questions
from pipeline.judging.scoring.exam import score_summaries

JUDGE = run.JudgeSettings(model="none", questions=4, options=4, wording="plain")
NAMES = ("Ana", "Ben", "Carla", "Dan")


def judge_engine(answers):
    """A scripted judge LLM. It asks who led, who built and so on; `answers(passage, options)` gives its answers."""

    def script(prompt, sample):
        text = prompt.messages[0]["content"]
        if "write 4 multiple-choice" in text:
            who, place = text.split("<article>\n")[1].split("\n")[:2]
            others = [name for name in NAMES if name != who]
            return "\n".join(
                f"Q{n} Who {verb} in {place}? Answer {' | '.join([who, *others])}"
                for n, verb in enumerate(("led", "built", "sang", "led"), 1)
            )
        passage = text.split("<passage>\n")[1].split("\n")[0]
        blocks = text.split("Write one line")[0].split("Who ")[1:]
        replies = []
        for n, block in enumerate(blocks, 1):
            options = [line[3:] for line in block.split("\n")[1:5]]
            replies.append(f"Q{n} {answers(passage, options)}")
        return "\n".join(replies)

    return ScriptedEngine(script)


def honest(passage, options):
    return LETTERS[options.index(passage)] if passage in options else "Unsure"


def always_b(passage, options):
    return "B"


def record(outcomes):
    tally = {"engine ms": 2000}
    for outcome in outcomes:
        for what, count in outcome["tally"].items():
            tally[what] = tally.get(what, 0) + count
    return {"tally": tally, "seconds": 99.0}


def card_of(answers, passages=("Ana", "nobody", ""), check=True, count=40):
    """The card of a scripted judge from `count` articles, each with the summaries `passages`."""
    engine = judge_engine(answers)
    rows = [{"article_id": str(i), "article": f"{NAMES[i % 4]}\n{i}"} for i in range(count)]
    asked = generate_questions(make_judge(JUDGE, 0), 4, run.Questions(min_questions=1, check=check), engine, rows)
    summaries = [{"text": text} for text in passages]
    judged = [row | outcome | {"summaries": summaries} for row, outcome in zip(rows, asked, strict=True)]
    scored = score_summaries(make_judge(JUDGE, 0), engine, [row for row in judged if row["questions"]], again=1.0)
    return judge_card.measure_card(record(asked), [record(scored)], [record(scored)], 4)


def test_card_of_an_honest_judge():
    card = card_of(honest)
    assert (card["ceiling"], card["floor"], card["floor_unsure"]) == (1.0, 0.0, 1.0)
    assert (card["agreement"], card["parse_rate"]) == (1.0, 1.0)
    assert card["unsure"] == pytest.approx(2 / 3)
    # The first summary is judged again: all three answers choose an option, so none is unsure twice.
    assert card["checked"] == 3 * 40 and (card["asked_again"], card["unsure_twice"]) == (3 * 40, 0)
    assert (card["questions_asked"], card["questions_used"]) == (160, 120)
    assert card["questions_dropped"] == {"question asked twice": 40}
    assert card["summaries_judged"] == 120
    assert card["seconds_per_summary"] == pytest.approx(2 / (120 + 40))  # judged, and judged again
    assert card["tokens_out_per_summary"] > 10 and card["prefix_cache_hit_rate"] == 0
    assert judge_card.card_notes(card) == []
    assert all(len(line) == 3 and all(isinstance(cell, str) for cell in line) for line in judge_card.card_lines(card))


def test_mean_probability_of_right_and_wrong_answers():
    row = {"article_id": "1", "article": "Ana\nRome"}
    sure = JUDGE.model_copy(update={"logprobs": True})
    asked = generate_questions(make_judge(sure, 0), 4, run.Questions(min_questions=1), judge_engine(always_b), [row])
    card = judge_card.measure_card(record(asked), [], [], 4)
    right, wrong = card["confidence_right"], card["confidence_wrong"]
    # `Q1 B` and the end of the line are 5 tokens of 1 nat.
    assert right[0] is None or right[0] == pytest.approx(math.exp(-5), abs=1e-6)
    assert wrong[0] == pytest.approx(math.exp(-5), abs=1e-6)
    assert right[1] + wrong[1] == card["checked"] == 3 and right[1] == round(3 * card["ceiling"])
    assert ["mean probability if wrong", "0.7%", f"{wrong[1]} answers"] in judge_card.card_lines(card)
    assert "confidence_right" not in card_of(honest)


def test_card_of_a_judge_that_always_answers_b():
    card = card_of(always_b)
    assert card["ceiling"] == card["floor"]
    assert 0.1 < card["floor"] < 0.4
    assert card["letters"] == {"A": 0, "B": 1, "C": 0, "D": 0}
    assert card["letters_p"] < 1e-9
    assert {note.split(":")[0] for note in judge_card.card_notes(card)} >= {"The judge favours the letter B"}


def test_judge_that_chooses_by_position_disagrees_with_itself():
    card = card_of(lambda passage, options: "B" if passage == "nobody" else honest(passage, options), ("nobody",))
    assert (card["ceiling"], card["floor"]) == (1.0, 0.0)
    assert 0.1 < card["agreement"] < 0.4  # by chance the same option may be there again
    assert "With the options in another order" in judge_card.card_notes(card)[0]


def test_unsure_twice_does_not_count_as_agreement():
    card = card_of(
        lambda passage, options: "B" if passage.startswith("B") else "Unsure", ("nobody", "Ben"), check=False
    )
    assert (card["agreement"], card["asked_again"], card["unsure_twice"]) == (None, 0, 3 * 40)
    mixed = card_of(lambda passage, options: "B" if passage == "Ben" else "Unsure", ("Ben", "nobody"), check=False)
    assert mixed["agreement"] < 0.4 and (mixed["asked_again"], mixed["unsure_twice"]) == (3 * 40, 0)


def test_card_without_checks_or_judging_has_no_shares():
    card = card_of(honest, check=False)
    assert card["ceiling"] is card["floor"] is card["letters_p"] is None
    nothing = judge_card.measure_card({"tally": {}}, [], [], 4)
    assert {line[1] for line in judge_card.card_lines(nothing)[1:]} == {"–", "0 of 0", "A – B – C – D –"}
    assert judge_card.card_notes(nothing) == []


def test_every_kind_of_card_shows_the_reliability():
    single = reliability.Reliability(0, 0, reason="a score is one item, so that it has no halves to compare")
    for scored, first in (({}, "right from the whole article"), ({tallies.ANSWERS: 4}, "summaries with a score")):
        card = judge_card.measure_card({"tally": {}}, [], [{"tally": scored}], 4, single)
        lines = judge_card.card_lines(card)
        assert lines[1][0] == first
        assert all(line in lines for line in reliability.reliability_lines(single.as_dict()))


def test_judging_a_share_again_depends_on_the_article_and_changes_no_score():
    question = {"question_id": "q", "question": "Who led?", "options": list(NAMES), "answer": 2}
    rows = [
        {
            "article_id": str(i),
            "article": "",
            "questions": [question],
            "summaries": [{"text": "Carla"}, {"text": "Ben"}],
        }
        for i in range(400)
    ]
    some, none = (score_summaries(make_judge(JUDGE, 0), judge_engine(honest), rows, again=share) for share in (0.25, 0))
    assert [outcome["scores"] for outcome in some] == [outcome["scores"] for outcome in none]
    asked = [outcome["tally"].get("asked again", 0) for outcome in some]
    assert 70 < sum(asked) < 130
    assert not any("asked again" in outcome["tally"] for outcome in none)
    assert asked[:50] == [
        outcome["tally"].get("asked again", 0)
        for outcome in score_summaries(make_judge(JUDGE, 0), judge_engine(honest), rows[:50], again=0.25)
    ]
    assert some[0]["scores"][0]["answers"] == [Question("q", "", NAMES, 2).letter] != [UNSURE]


@pytest.mark.parametrize("options", [2, 4])
def test_reordered_options_are_in_another_order(options):
    orders = defaultdict(list)

    def script(prompt, sample):
        number, block = re.search(r"Who led (\d+)\?\n(.*?)\n\n", prompt.messages[0]["content"], re.DOTALL).groups()
        order = [line[3:] for line in block.split("\n")[:options]]
        orders[number].append(order)
        return f"Q1 {LETTERS[order.index('Ben')]}"

    question = {"question_id": "q", "options": list(NAMES[:options]), "answer": 1}
    rows = [
        {
            "article_id": str(i),
            "article": "",
            "questions": [question | {"question": f"Who led {i}?"}],
            "summaries": [{"text": "Ben"}],
        }
        for i in range(50)
    ]
    outcomes = score_summaries(make_judge(JUDGE, 0), ScriptedEngine(script), rows, again=1.0)
    assert len(orders) == 50
    for first, second in orders.values():
        assert first == list(NAMES[:options]) != second and sorted(first) == sorted(second)
    assert [outcome["tally"]["same again"] for outcome in outcomes] == [1] * 50, "Ben both times"


@pytest.mark.parametrize(
    ("one", "other", "p"),
    [
        ((10, 20), (20, 10), math.erfc(math.sqrt(10 / 3))),  # x = 20 / 3
        ((10, 20, 30), (30, 20, 10), math.exp(-10)),  # x = 20
        ((10, 0, 20, 30), (30, 0, 20, 10), math.exp(-10)),  # a kind that neither set has does not count
        ((1, 2, 3), (10, 20, 30), 1.0),
        ((5, 0), (7, 0), 1.0),
        ((0, 0), (7, 1), None),
    ],
)
def test_homogeneity_by_hand(one, other, p):
    assert homogeneity_p(one, other) == (p if p is None else pytest.approx(p, rel=1e-9))


@pytest.mark.parametrize(("kinds", "point"), [(4, 7.814728), (5, 9.487729), (10, 16.918978)])
def test_homogeneity_at_the_5_percent_points_of_chi_square(kinds, point):
    # Both sets have n of each kind, except the first two: one set has n + d and n - d of them, the other n - d and
    # n + d. So x = 4 d^2 / n.
    n, d = 1000, math.sqrt(point * 1000 / 4)
    rest = [n] * (kinds - 2)
    assert homogeneity_p([n + d, n - d, *rest], [n - d, n + d, *rest]) == pytest.approx(0.05, rel=1e-5)
