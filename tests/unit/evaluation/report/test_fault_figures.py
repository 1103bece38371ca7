"""Tests of faults in the figures of a run: means, rises over the base, the report, the bounds and the champion."""

import pytest

from jobs.show.tables import show_rows
from pipeline.config import UserError
from pipeline.config.judging import Pairs
from pipeline.config.run import Report
from pipeline.evaluation.comparison import CountingSettings, compare_writers
from pipeline.evaluation.fault_figures import clear_rises, mean_faults
from pipeline.evaluation.report.metrics import collect_metrics, risen_faults
from pipeline.evaluation.report.render import write_report
from pipeline.evaluation.report.tables import result_tables
from pipeline.judging.tallies import describe_unusable
from pipeline.round import rounds
from pipeline.storage.ledger import Ledger
from tests.helpers.scripted_rounds import ScriptedRounds, settings
from tests.helpers.tables import add_table, row_with_pairs

SOUND = {"repeated": 0.0, "copied": 0.25, "lead_copied": 0.125, "off_topic_end": 0.25, "other_language": None}
FAULTS = (
    "copied 8-grams, mean",
    "… from the lead, mean",
    "words said twice, mean",
    "ends off topic",
    "another language",
)


def row(article, faults=None, **score):
    score = {"correct": 1, "words": 9, "unread": 0, "faults": faults, **score}
    summaries = [{"text": "Text.", "finish_reason": "stop"}]
    return {"article_id": str(article), "article": "Text.", "summaries": summaries, "scores": [score]}


def run_rounds(folder, skills, *overrides, **script):
    run = ScriptedRounds(settings(folder, skills, *overrides), Ledger(str(folder)), skills, **script)
    return list(rounds(run)), run


def test_means_and_shares_of_what_is_known():
    assert mean_faults([]) == mean_faults([row(1), row(2)]) == {}
    rows = [
        row(1, SOUND),
        row(2, SOUND | {"repeated": 0.5, "copied": 0.75, "off_topic_end": 0.7}),
        row(3, SOUND | {"copied": None, "lead_copied": None, "off_topic_end": None, "other_language": "de"}),
        row(4),  # from an older version
    ]
    assert mean_faults(rows) == pytest.approx(
        {"repeated": 0.5 / 3, "copied": 0.5, "lead_copied": 0.125, "off_topic_end": 1 / 3, "other_language": 1 / 3}
    )


@pytest.mark.parametrize(
    ("ours", "base", "rises"),
    [
        ([0.40] * 40, [0.34] * 40, True),
        ([0.40] * 40, [0.36] * 40, False),  # less than 5 points
        ([0.30] * 40, [0.40] * 40, False),  # a fall
        ([1.0, 0.0] * 4, [0.9, 0.0] * 4, False),  # 5 points exactly
        ([1.0] + [0.0] * 9, [0.0] * 10, False),  # 10 points, but only one of ten articles: one standard error
        ([1.0] * 4 + [0.0] * 6, [0.0] * 10, True),
        ([0.9], [0.1], False),  # one article has no standard error
        ([], [], False),
    ],
)
def test_a_rise_is_clear_if_it_is_large_and_no_chance(ours, base, rises):
    one, other = ([row(i, SOUND | {"copied": value}) for i, value in enumerate(side)] for side in (ours, base))
    found = clear_rises(one, [*other, row("only the base has it", SOUND | {"copied": 0.0})])
    assert found.keys() == ({"copied"} if rises else set())
    if rises:
        assert found["copied"] == pytest.approx((sum(ours) / len(ours), sum(base) / len(base)))
    assert clear_rises(one, [row(i) for i in range(len(base))]) == {}, "an older table has nothing to compare with"


def test_report_shows_faults_and_warns_where_training_made_them_frequent(tmp_path):
    copies = SOUND | {"copied": 0.5, "repeated": 0.0625}
    rounds_so_far, run = run_rounds(tmp_path, [0, 40, 80], faults=[SOUND, SOUND, copies])
    metrics = collect_metrics(rounds_so_far, run.config, run.ledger)
    assert [entry["copied"] for entry in (metrics["base"], *metrics["rounds"])] == [0.25, 0.25, 0.5]
    assert metrics["baselines"]["lead"]["copied"] == 0.25
    notes = risen_faults(metrics)
    assert notes == [
        "Round 2 says more of its words twice: 6.2%, and the base 0.0% on the same articles.",
        "Round 2 copies more from the article: 50.0%, and the base 25.0% on the same articles.",
    ]
    assert all(note in metrics["notes"] for note in notes)
    lines = {line[0]: line[1:] for line in result_tables(metrics)[0]}
    assert lines["copied 8-grams, mean"][:3] == ["25.0%", "25.0%", "50.0%"]
    assert lines["words said twice, mean"][:3] == ["0.0%", "0.0%", "6.2%"]
    assert "ends off topic" not in lines and "another language" not in lines, "all are 0"
    write_report(metrics, [], run.config, run.ledger)
    assert "Round 2 copies more from the article: 50.0%" in run.ledger.read("report.md")


def test_report_of_an_older_run_says_that_faults_are_unknown(tmp_path):
    rounds_so_far, run = run_rounds(tmp_path, [0, 40], "stop.max_copied=0.0", "stop.max_copied_rise=0.0")
    metrics = collect_metrics(rounds_so_far, run.config, run.ledger)
    assert "copied" not in metrics["base"] and metrics["rounds"][0]["fault_rises"] == {}
    lines = {line[0]: line[1:] for line in result_tables(metrics)[0]}
    assert all(set(lines[name]) == {"–"} for name in FAULTS)
    assert rounds_so_far[-1].ended is None and rounds_so_far[-1].assessment.champion == 1
    write_report(metrics, [], run.config, run.ledger)


def test_a_policy_that_copies_more_is_no_champion_and_ends_the_run(tmp_path):
    faults = [SOUND, SOUND | {"copied": 0.5}, SOUND]
    rounds_so_far, _ = run_rounds(tmp_path / "a", [0, 40, 80], "stop.max_copied_rise=0.05", faults=faults)
    assert rounds_so_far[-1].ended == (
        "Stopped after round 1: stop.max_copied_rise=0.05: on average, 50.0% of a summary's 8-grams are copied from "
        "its article, and 25.0% of the base's"
    )
    assert rounds_so_far[-1].assessment.champion == 0
    rounds_so_far, _ = run_rounds(tmp_path / "b", [0, 40, 80], faults=faults)
    assert rounds_so_far[-1].assessment.champion == 2


def test_unusable_summaries_are_counted_where_a_reader_looks(tmp_path):
    unusable = {"summaries to pair": 1384, "unusable: too short": 3, "unusable: cut off": 1240}
    line = "unusable summaries: cut off 1,240 of 1,384, too short 3"
    assert describe_unusable(unusable) == line and describe_unusable({"summaries to pair": 5}) == ""
    rounds_so_far, run = run_rounds(tmp_path / "a", [0, 40], unusable=unusable)
    metrics = collect_metrics(rounds_so_far, run.config, run.ledger)
    write_report(metrics, [], run.config, run.ledger)
    assert f"- Round 1, {line}." in run.ledger.read("report.md")
    rounds_so_far, _ = run_rounds(tmp_path / "b", [0, 40], yields=[0], unusable=unusable)
    assert rounds_so_far[-1].ended.startswith(f"Round 1 gave no pairs (all ties: 100; {line}). There is nothing")
    assert ". Main reason: all ties (100 of 100 articles): raise summaries.n=8 or " in rounds_so_far[-1].ended
    new = ("articles.each_round=new",)
    rounds_so_far, run = run_rounds(tmp_path / "c", [0, 40, 80], *new, yields=[0, 60], unusable=unusable)
    notes = collect_metrics(rounds_so_far, run.config, run.ledger)["notes"]
    (note,) = (note for note in notes if note.startswith(f"Round 1 gave no pairs ({line}), so nothing was trained. "))
    assert "trained. Main reason: all ties (100 of 100 articles): raise summaries.n=8 or " in note
    assert not any("articles gave a pair" in note for note in notes)
    rounds_so_far, run = run_rounds(tmp_path / "d", [0, 40], yields=[20], unusable=unusable)
    notes = collect_metrics(rounds_so_far, run.config, run.ledger)["notes"]
    assert any(
        note.startswith("Round 1: only 20 of 100 articles gave a pair. Main reason: all ties (80 ") for note in notes
    )


def test_show_says_why_summaries_were_not_paired(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    ledger = Ledger(str(tmp_path))
    kept = add_table(ledger, "round-01/pairs", [row_with_pairs("w", 2, [(1, 0)])])
    unusable = {"summaries to pair": 384, "unusable: cut off": 240}
    ledger.finish("round-01/pairs", kept.record | {"tally": unusable})
    show_rows(str(tmp_path), "pairs", 1, None)
    assert "unusable summaries: cut off 240 of 384" in capsys.readouterr().out
    nothing = {"kept": 0, "in": 64, "skipped": {"under two usable summaries": 64}, "parts": []}
    ledger.finish("round-02/pairs", kept.record | nothing | {"tally": unusable})
    reasons = r"64 in +0 kept  64 skipped \(under two usable summaries 64\)  unusable summaries: cut off 240 of 384"
    with pytest.raises(
        UserError, match=rf"round-02/pairs holds no kept rows: {reasons}.* are in round-02/pairs/skipped/"
    ):
        show_rows(str(tmp_path), "pairs", 1, None)


@pytest.mark.parametrize(
    ("pairs", "wins", "losses"), [(Pairs(), 2, 1), (Pairs(max_copied=0.5), 1, 0), (Pairs(max_repeated=0.5), 2, 1)]
)
def test_a_summary_beyond_a_limit_wins_no_comparison(pairs, wins, losses):
    copies = SOUND | {"copied": 0.75}
    ours = [row(1, SOUND, correct=4), row(2, copies, correct=4), row(3, SOUND, correct=0)]
    theirs = [row(1, copies, correct=0), row(2, SOUND, correct=0), row(3, copies, correct=4)]
    for rate in compare_writers(ours, theirs, CountingSettings(pairs, Report(), 0)).values():
        assert (rate.wins, rate.losses, rate.n) == (wins, losses, 3)


def test_show_names_the_faults_of_a_summary(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    scores = [
        {"answers": ["A"], "correct": 1, "words": 9, "faults": SOUND},
        {"answers": ["A"], "correct": 1, "words": 9, "faults": SOUND | {"repeated": 0.5, "other_language": "de"}},
        {"answers": ["A"], "correct": 1, "words": 9},
    ]
    summaries = [{"text": "Text.", "finish_reason": "stop"}] * 3
    add_table(
        Ledger(str(tmp_path)),
        "scores",
        [{"article_id": "a", "split": "train", "article": "Text.", "summaries": summaries, "scores": scores}],
    )
    show_rows(str(tmp_path), "scores", 1, None)
    sound, faulty, unknown = (line.strip() for line in capsys.readouterr().out.splitlines() if "right (A)" in line)
    assert sound == "summary 0  1 right (A), 9 words" and unknown == "summary 2  1 right (A), 9 words"
    assert faulty.endswith("9 words, says 50% of its words twice, is in another language (de)")
