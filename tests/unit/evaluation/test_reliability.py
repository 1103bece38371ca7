"""Tests of the reliability of a score: known answers, coins, what is not defined, and what a run does with a coin."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import UserError
from pipeline.config.judging import Pairs
from pipeline.config.run import Report
from pipeline.evaluation.comparison import CountingSettings
from pipeline.evaluation.reliability import (
    coin_message,
    measure_reliability,
    measure_table,
    reliability_lines,
    reliability_notes,
)
from pipeline.round import rounds
from pipeline.storage.ledger import Ledger
from tests.helpers.scripted_rounds import ScriptedRounds
from tests.helpers.scripted_rounds import settings as run_settings
from tests.helpers.tables import add_table, row_with_pairs


def counting(preference="higher_score", resamples=500, **pairs):
    return CountingSettings(Pairs(preference=preference, **pairs), Report(resamples=resamples), 0)


def article(items, name="a", **score):
    """A row with a summary for each line of `items`, whose value is their sum."""
    row = row_with_pairs("w", len(items), [], name)
    for summary_score, parts in zip(row["scores"], items, strict=True):
        summary_score |= {"items": [float(part) for part in parts], "value": float(sum(parts)), **score}
    return row


def articles(items):
    return [article(of_article, f"a{i}") for i, of_article in enumerate(items)]


def simulate(rng, agreement, count, summaries, size):
    """Items of normal summaries: two items of a summary correlate by `agreement`, over the summaries of an article."""
    common = rng.normal(0, agreement**0.5, (count, summaries, 1))
    of_question = rng.normal(0, 3, (count, 1, size))  # some questions are harder, which says nothing about summaries
    return common + of_question + rng.normal(0, (1 - agreement) ** 0.5, (count, summaries, size))


def within(estimate, value):
    return estimate.low <= value <= estimate.high


# Known answers


@pytest.mark.parametrize(("agreement", "size"), [(0.1, 4), (0.1, 20), (0.5, 5), (0.8, 2)])
def test_a_known_reliability_is_recovered(agreement, size):
    items = simulate(np.random.default_rng(7), agreement, 300, 6, size)
    found = measure_reliability(articles(items), counting())
    whole = size * agreement / (1 + (size - 1) * agreement)
    half = (size / 2) * agreement / (1 + (size / 2 - 1) * agreement)
    assert (found.articles, found.summaries, found.items, found.unit) == (300, 1800, size, "items")
    assert within(found.reliability, whole) and found.reliability.high - found.reliability.low < 0.15
    assert within(found.half_correlation, half)
    assert within(found.items_needed, 0.7 / 0.3 * (1 - agreement) / agreement)
    # Sheppard (1899): for a bivariate normal, the signs agree with probability 1/2 + asin(r) / pi.
    assert within(found.same_winner, 0.5 + np.arcsin(whole) / np.pi)
    assert within(found.same_winner_by_halves, 0.5 + np.arcsin(half) / np.pi)


def test_two_summaries_by_hand():
    """Two items: deviations (1/2, -1/2) twice in the first article, and opposite ones in the second."""
    agree, disagree = [[1, 1], [0, 0]], [[1, 0], [0, 1]]
    found = measure_reliability(articles([agree] * 3 + [disagree]), counting())
    assert found.half_correlation.value == pytest.approx((3 - 1) / (3 + 1))
    assert found.reliability.value == pytest.approx(2 * 0.5 / 1.5)
    assert found.items_needed.value == pytest.approx(0.7 / 0.3)
    assert (found.half_pairs, found.same_winner_by_halves.value) == (4, 0.75)
    assert found.pairs == 3, "equal values are a tie"


def test_another_set_of_questions_agrees_as_often_as_expected():
    """Right and wrong answers, not normal numbers: the share that is estimated from one set, and that of another."""
    rng = np.random.default_rng(3)

    def exam(skills):
        difficulty = rng.normal(-1, 1, (400, 1, 5))
        return (rng.random((400, 6, 5)) < 1 / (1 + np.exp(-skills - difficulty))).astype(float)

    skills = rng.normal(0, 1.2, (400, 6, 1))
    first, second = exam(skills), exam(skills)
    a, b = np.triu_indices(6, 1)
    signs = [np.sign(items.sum(2)[:, a] - items.sum(2)[:, b]) for items in (first, second)]
    decided = signs[0] != 0
    same = ((signs[0] * signs[1])[decided] + 1).mean() / 2  # a tie counts one half
    found = measure_reliability(articles(first), counting())
    assert found.pairs == decided.sum()
    assert found.same_winner.value == pytest.approx(same, abs=0.03)


def test_a_coin_is_a_coin():
    coins = np.random.default_rng(5).integers(0, 2, (150, 6, 5))
    found = measure_reliability(articles(coins), counting())
    assert within(found.same_winner, 0.5) and within(found.same_winner_by_halves, 0.5) and within(found.reliability, 0)
    assert found.items_needed is None or found.items_needed.high is None
    message = coin_message(found, 0.6)
    assert "another set of 5 items" in message and "\n" not in message
    assert "scores.min_same_winner asks for 60%" in message and "min_same_winner=null" in message
    assert coin_message(found, 0.5) is None, "the interval reaches one half"
    (note,) = reliability_notes(found.as_dict())
    assert "is no better than a coin" in note
    few = measure_reliability(articles(coins[:20]), counting())
    assert coin_message(few, 1.0) is None, "20 articles show nothing"


def test_a_good_score_has_no_warning():
    found = measure_reliability(articles(simulate(np.random.default_rng(1), 0.5, 60, 5, 10)), counting())
    assert coin_message(found, 0.6) is None and reliability_notes(found.as_dict()) == []
    lines = reliability_lines(found.as_dict())
    assert [line[0] for line in lines] == [
        "same winner by other items",
        "same winner by the other half",
        "correlation of the halves",
        "reliability of the score",
        "items for reliability 0.7",
    ]


def test_clear_pairs_are_confirmed_more_often():
    """What the message proposes helps: pairs that differ by more than their noise are confirmed more often."""
    rows = articles(simulate(np.random.default_rng(2), 0.1, 200, 6, 5))
    shares = [measure_reliability(rows, counting(min_standard_errors=least)).same_winner.value for least in (0, 1, 2)]
    assert shares[0] + 0.02 < shares[1] < shares[2]


# What counts


def test_answers_of_old_tables_are_items():
    """Tables of older versions have answers and keys, and no items and no value."""
    row = row_with_pairs("w", 3, [])
    row["questions"] = [
        {"question_id": str(i), "question": "?", "options": ["x", "y"], "answer": key} for i, key in enumerate((0, 1))
    ]
    for score, answers in zip(row["scores"], (["A", "B"], ["A", "unsure"], ["B", "A"]), strict=True):
        score |= {"answers": answers, "correct": sum(a == b for a, b in zip(answers, "AB", strict=True))}
    new = article([[1, 1], [1, 0], [0, 0]], answers=["A", "A"])
    for score in new["scores"]:
        score["correct"] = int(score["value"])
    old_figures = measure_reliability([row], counting("accuracy_only")).as_dict()
    assert old_figures == measure_reliability([new], counting("accuracy_only")).as_dict()
    assert old_figures["unit"] == "questions"


def test_only_different_summaries_that_may_be_paired_count():
    items = [[1, 1], [0, 0], [1, 0], [1, 1], [0, 1], [1, 1]]
    row = article(items)
    row["summaries"][2]["finish_reason"] = "length"
    row["scores"][3]["unread"] = 1
    row["summaries"][4]["text"] = row["summaries"][1]["text"] + " "
    row["scores"][5]["words"] = 1
    found = measure_reliability([row], counting())
    assert (found.articles, found.summaries, found.pairs) == (1, 2, 1)


def test_pairs_that_length_decides_are_counted_apart():
    row = article([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]])
    for score, words in zip(row["scores"], (30, 20, 10), strict=True):
        score |= {"correct": int(score["value"]), "words": words}
    found = measure_reliability([row], counting("accuracy_then_length", threshold=3))
    assert (found.pairs, found.pairs_by_length) == (2, 1)


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([], "no article has two different summaries to pair"),
        ([[[1, 0]]], "no article has two different summaries to pair"),
        ([[[1], [0]]], "a score is one item, so that it has no halves to compare"),
        ([[[1, 0], [1, 0]]], "all summaries of an article have the same items"),
        ([[[1, 0], [0, 1]]], "all summaries of an article have the same value"),
    ],
)
def test_what_is_not_defined_says_why(items, reason):
    found = measure_reliability(articles(items), counting())
    assert found.reason == reason
    assert found.same_winner is found.reliability is found.half_correlation is found.items_needed is None
    assert coin_message(found, 1.0) is None and reliability_notes(found.as_dict()) == []
    assert any(reason in line for line in reliability_lines(found.as_dict()))


def test_a_score_without_items_says_why():
    row = article([[1], [0]], value=0.5)
    for score, value in zip(row["scores"], (0.5, -0.5), strict=True):
        score |= {"items": [], "value": value}
    assert measure_reliability([row], counting()).reason == "a score is one item, so that it has no halves to compare"


def test_a_score_that_asks_no_questions_is_not_said_to_have_any():
    row = article([[1], [0]])
    for score in row["scores"]:
        score["items"] = []
    assert measure_reliability([row], counting()).unit == "items"
    by_value = CountingSettings(Pairs(preference="higher_score"), Report(), 0, judge="value")
    assert (measure_reliability([], by_value).unit, measure_reliability([], counting()).unit) == ("items", "questions")


def test_a_jury_has_no_score_whose_items_could_be_compared():
    """Its members' scales differ, and their votes decide the pairs, so no run may stop because of the mean."""
    rows = [article([[1, -9], [0, 9], [1, 0]], f"a{i}", weights=[1.0, 1.0]) for i in range(40)]
    jury = CountingSettings(Pairs(preference="majority_vote"), Report(resamples=100), 0, judge="votes")
    found = measure_reliability(rows, jury)
    assert "no common scale" in found.reason and found.same_winner is None and coin_message(found, 1.0) is None
    assert reliability_lines(found.as_dict())[0][1] == "–"


def test_pairs_that_training_leaves_out_do_not_count():
    row = article([[1, 1, 1], [1, 1, 0], [0, 0, 1]])
    faults = {"repeated": 0.0, "lead_copied": 0.0, "off_topic_end": 0.0, "other_language": None}
    for score, copied in zip(row["scores"], (0.9, 0.1, 0.1), strict=True):
        score["faults"] = faults | {"copied": copied}
    assert measure_reliability([row], counting()).pairs == 3
    assert measure_reliability([row], counting(max_copied_gap=0.2)).pairs == 1


def test_a_value_that_is_not_made_of_its_items_is_refused():
    row = article([[1, 1], [0, 0], [1, 0]])
    for score, value in zip(row["scores"], (0.0, 1.0, 0.9), strict=True):
        score["value"] = value
    assert measure_reliability([row], counting()).reason == "the value is not the sum of its items"


def round_robin(verdict, summaries=6):
    """Each summary against each other one, as the pairwise judge compares them: none against itself."""
    items = np.full((summaries, summaries), np.nan)
    for i in range(summaries):
        for j in range(i):
            items[i, j] = verdict(i, j)
            items[j, i] = 1 - items[i, j]
    row = article(np.nan_to_num(items))
    for score, of_summary in zip(row["scores"], items, strict=True):
        score |= {
            "items": [None if np.isnan(item) else float(item) for item in of_summary],
            "value": float(np.nanmean(of_summary)),
        }
    return row


def test_items_that_are_not_there_are_left_out():
    rng = np.random.default_rng(4)
    skill = rng.normal(0, 1, (80, 6))
    clear = [
        round_robin(lambda i, j, k=k: float(skill[k, i] > skill[k, j])) | {"article_id": str(k)} for k in range(80)
    ]
    found = measure_reliability(clear, counting())
    assert (found.articles, found.items) == (80, 5)
    assert found.same_winner.low > 0.8 and found.same_winner_by_halves.low > 0.8
    coins = [round_robin(lambda i, j: float(rng.integers(2))) | {"article_id": str(k)} for k in range(80)]
    found = measure_reliability(coins, counting())
    assert found.same_winner.low < 0.5 and found.same_winner.high < 0.6


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 6).flatmap(
        lambda size: st.lists(
            st.lists(st.lists(st.integers(0, 3), min_size=size, max_size=size), min_size=1, max_size=5),
            min_size=1,
            max_size=6,
        )
    ),
    st.randoms(use_true_random=False),
)
def test_figures_are_shares_and_depend_on_no_order(items, random):
    rows = articles(items)
    found = measure_reliability(rows, counting(resamples=100))
    for share in (found.same_winner, found.same_winner_by_halves):
        assert share is None or (0 <= share.low <= share.high <= 1 and 0 <= share.value <= 1)
    for correlation in (found.half_correlation, found.reliability):
        assert correlation is None or -1 <= correlation.low <= correlation.high <= 1
    for row in rows:
        order = random.sample(range(len(row["summaries"])), len(row["summaries"]))
        row |= {name: [row[name][i] for i in order] for name in ("summaries", "scores")}
    again = measure_reliability(rows, counting(resamples=100))
    for name in ("pairs", "half_pairs", "reason"):
        assert getattr(again, name) == getattr(found, name)
    if found.same_winner:
        assert again.same_winner.value == pytest.approx(found.same_winner.value)


# In a run


class ScoredRounds(ScriptedRounds):
    """Scripted rounds whose first samples have these items."""

    def __init__(self, config, ledger, items):
        super().__init__(config, ledger, [50, 60])
        self.items = items

    def make(self, stage, inputs, address):
        if stage.name != "scores":
            return super().make(stage, inputs, address)
        rows = [row | {"questions": [], "skipped": None} for row in articles(self.items)]
        self.made[address] = ()
        record = {"build": "scores", "recipe": self.recipe(stage, inputs), "seconds": 1.0}
        return self.ledger.finish(address, record | self.write(address, rows))


COINS = np.random.default_rng(5).integers(0, 2, (150, 6, 5))


def play(folder, items, *overrides):
    run = ScoredRounds(
        run_settings(folder, [50, 60], "pairs.preference=higher_score", "report.resamples=500", *overrides),
        Ledger(str(folder)),
        items,
    )
    return run, rounds(run)


def test_a_run_stops_before_it_trains_on_a_coin(tmp_path):
    run, page = play(tmp_path, COINS)
    with pytest.raises(UserError, match=r"round-01/scores: another set of 5 items would pick the same winner in \d"):
        list(page)
    assert "round-01/scores" in run.made and "round-01/policy" not in run.made
    _, page = play(tmp_path, COINS)
    with pytest.raises(UserError, match="same winner"):
        list(page)
    run, page = play(tmp_path, COINS, "scores.min_same_winner=null")
    assert [current.number for current in page] == [0, 1]
    assert "round-01/policy" in run.made and "round-01/scores" not in run.made, "a limit makes nothing stale"


def test_a_finished_round_is_not_stopped_afterwards(tmp_path):
    """Older versions had no such limit, and their runs are resumed and reported."""
    _, page = play(tmp_path, COINS, "scores.min_same_winner=null")
    list(page)
    _, page = play(tmp_path, COINS)
    assert [current.number for current in page] == [0, 1]
    assert (tmp_path / "round-01/policy/record.json").exists()


def test_a_run_trains_on_a_good_score(tmp_path):
    run, page = play(tmp_path, simulate(np.random.default_rng(1), 0.5, 60, 5, 10))
    list(page)
    assert "round-01/policy" in run.made


def test_a_large_table_is_sampled_and_only_some_fields_are_read(tmp_path, monkeypatch):
    ledger, config = Ledger(str(tmp_path)), run_settings(tmp_path, [0, 0], "pairs.preference=higher_score")
    table = add_table(ledger, "round-01/scores", articles(COINS))
    assert measure_table(table, config, ledger).articles == 150
    monkeypatch.setattr("pipeline.evaluation.reliability.MAX_ARTICLES", 50)
    some = measure_table(table, config, ledger)
    assert 30 <= some.articles <= 70 and some == measure_table(table, config, ledger)
