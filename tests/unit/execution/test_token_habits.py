"""Tests of what a plan says about token limits, from the summaries of earlier runs."""

import pytest

from pipeline.config.loader import parse_config
from pipeline.execution.planning.token_habits import Habit, habit_notes
from pipeline.storage.ledger import Ledger
from tests.helpers.tables import as_table, write_table

RAW = {"articles": {"path": "a.jsonl"}, "policy": {"model": "m"}, "judge": {"kind": "cloze"}}


def config(run, **sections):
    return parse_config({"run": str(run), **RAW, **sections})


def add_summaries(settings, address, lengths, limit, is_finished=True, thought=0):
    """A table whose rows have one summary of each length; those of `limit` tokens are cut off."""
    ledger = Ledger(settings.run)
    rows = [
        {
            "article_id": f"a{i}",
            "article": "Text.",
            "split": "train",
            "summaries": [
                {
                    "text": "t",
                    "token_ids": [1] * (thought + n),
                    "finish_reason": "length" if n == limit else "stop",
                    "thought_tokens": thought or None,
                }
                for n in lengths
            ],
            "skipped": None,
        }
        for i in range(8)
    ]
    own = {"summaries": {"max_tokens": limit}} if address.endswith("summaries") else {"evaluation.max_tokens": limit}
    recipe = {"settings": {**own, "policy": settings.policy.model_dump(mode="json")}}
    begun = {"build": "b", "recipe": recipe}
    counts = write_table([as_table(rows)], f"{settings.run}/{address}")
    if is_finished:
        ledger.finish(address, begun | counts)
    else:
        ledger.begin(address, begun)
    return ledger


@pytest.mark.parametrize("is_finished", [True, False])
def test_summaries_that_used_up_the_same_limit_are_told_of(tmp_path, is_finished):
    settings = config(tmp_path, summaries={"max_tokens": 96})
    ledger = add_summaries(settings, "round-01/summaries", [96, 96, 96, 40, 50], 96, is_finished)
    assert habit_notes(settings, [ledger]) == [
        f"{tmp_path}/round-01/summaries: summaries used 96 of 96 tokens in 60% of cases and were cut off by "
        "summaries.max_tokens=96: raise it, or ask for a shorter summary in policy.instruction"
    ]


def test_a_lower_limit_is_compared_with_the_lengths_and_one_that_is_enough_is_named(tmp_path):
    settings = config(tmp_path, summaries={"max_tokens": 48})
    ledger = add_summaries(settings, "round-01/summaries", [96, *[60] * 12, *[80] * 6, 40, *[41] * 5], 256)
    (note,) = habit_notes(settings, [ledger])
    assert "have more than 48 tokens in 76% of cases and would be cut off" in note
    assert "raise it to about 80, or" in note


def test_the_latest_round_counts_and_evaluations_have_their_own_limit(tmp_path):
    settings = config(tmp_path, summaries={"max_tokens": 96}, evaluation={"max_tokens": 64})
    add_summaries(settings, "round-01/summaries", [96, 96, 96], 96)
    add_summaries(settings, "round-00/exam", [20, 64, 64], 64)  # baselines follow the policy's own
    ledger = add_summaries(settings, "round-02/summaries", [50, 60, 70], 96)
    assert habit_notes(settings, [ledger]) == []
    ledger = add_summaries(settings, "round-01/exam", [64], 64)
    assert habit_notes(settings, [ledger]) == [], "8 summaries are few"


def test_nothing_is_said_without_summaries_of_this_policy_and_instruction(tmp_path):
    settings = config(tmp_path / "a", summaries={"max_tokens": 96})
    assert habit_notes(settings, [Ledger(settings.run)]) == []
    ledger = add_summaries(settings, "round-01/summaries", [96, 96, 96], 96)
    assert habit_notes(settings, [ledger])
    for change in ({"model": "other"}, {"instruction": "One sentence, please: {article}"}):
        other = config(tmp_path / "a", policy={"model": "m"} | change, summaries={"max_tokens": 96})
        assert habit_notes(other, [ledger]) == []


def test_a_higher_limit_is_not_judged_by_summaries_that_a_lower_one_cut_off():
    habit = Habit(96, [96] * 30 + [40] * 10, [True] * 30 + [False] * 10)
    assert habit.describe(96, "s.max_tokens") and habit.describe(64, "s.max_tokens")
    assert habit.describe(128, "s.max_tokens") == ""
    assert Habit(96, [96] * 15, [True] * 15).describe(96, "s.max_tokens") == "", "so few show nothing"


def test_thoughts_do_not_count(tmp_path):
    """`max_tokens` limits the summary alone."""
    settings = config(tmp_path, summaries={"max_tokens": 48})
    ledger = add_summaries(settings, "round-01/summaries", [40, 40, 40], 256, thought=200)
    assert habit_notes(settings, [ledger]) == []
