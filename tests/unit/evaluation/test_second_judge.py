"""Tests of the second judge's win rates, and of its agreement with the first judge."""

import pytest

from pipeline.config import run
from pipeline.evaluation.comparison import CountingSettings, judge_agreement, single_summary_rows, verdicts_by_article
from pipeline.evaluation.report.metrics import compare_by_second_judge, unconfirmed_wins
from pipeline.evaluation.report.tables import win_rate_table
from pipeline.judging.preference import accuracy_only


def row(article, writer, correct, words=10, unread=0):
    scores = [{"correct": correct, "words": words, "unread": unread, "answers": ["A"]}]
    summaries = [{"text": "", "finish_reason": "stop"}]
    return {"article_id": article, "article": "", "writer": writer, "scores": scores, "summaries": summaries}


def test_agreement_counts_articles_that_both_judged():
    assert judge_agreement({"a": 1, "b": 0, "c": -1, "d": 1}, {"a": 1, "b": 1, "c": 1, "e": 0}) == {
        "n": 3,
        "same": pytest.approx(1 / 3),
        "decided": 2,
        "same_winner": 0.5,
    }
    assert judge_agreement({}, {"a": 1}) == {"n": 0, "same": None, "decided": 0, "same_winner": None}


def test_verdicts_need_an_article_in_both_without_unread_answers():
    ours = [row("a", "x", 3), row("b", "x", 1), row("c", "x", 2, unread=1), row("d", "x", 1)]
    theirs = [row("a", "y", 1), row("b", "y", 1), row("c", "y", 1), row("e", "y", 1)]
    assert verdicts_by_article(ours, theirs, run.Pairs(), accuracy_only) == {"a": 1, "b": 0}


def test_second_win_rate_is_shown_next_to_the_first():
    counting = CountingSettings(run.Pairs(preference="accuracy_only"), run.Report(), seed=0)
    ours, theirs = (
        single_summary_rows([row(i, who, right) for i in "abcd"], 0) for who, right in (("new", 4), ("old", 2))
    )
    second_scores = {(i, "new"): row(i, "new", 1)["scores"] for i in "abc"}
    second_scores |= {(i, "old"): row(i, "old", {"a": 0, "b": 1, "c": 3}[i])["scores"] for i in "abc"}
    result = compare_by_second_judge(ours, theirs, counting, second_scores)["strict"]
    assert (result["rate"]["wins"], result["rate"]["ties"], result["rate"]["losses"]) == (1, 1, 1)
    assert result["agreement"] == {"n": 3, "same": pytest.approx(1 / 3), "decided": 2, "same_winner": 0.5}
    rate = {"win_rate": 1.0, "low": 1.0, "high": 1.0, "n": 4, "wins": 4, "ties": 0, "losses": 0, "better": True}
    entry = {"round": 1, "vs_base": {"strict": rate}, "second": {"vs_base": {"strict": result}}}
    metrics = {"second_judge": "cloze", "base": {}, "compared": {}, "rounds": [entry], "baselines": {"lead": {}}}
    heading, first, second = win_rate_table(metrics, second=True)
    assert len(heading) == len(first) == len(second) == 7
    assert second[1] == "strict, 2nd judge" and second[2] == "50.0%" and second[-1] == "33.3%"
    assert [len(line) for line in win_rate_table(metrics, second=False)] == [6, 6]
    with_server = metrics | {"compared": {"gpt-4o": {"vs_base": {"strict": rate}}}}
    *_, server_line = win_rate_table(with_server, second=True)  # the second judge does not judge it
    assert (server_line[:2], server_line[-1], len(server_line)) == (["gpt-4o against base", "strict"], "", 7)
    (note,) = unconfirmed_wins(metrics)
    assert "round 1 wins 100.0% [100.0%, 100.0%] against the base, but only 50.0%" in note
    assert unconfirmed_wins(metrics | {"second_judge": None}) == []
