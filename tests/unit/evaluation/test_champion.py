"""Tests of the rounds of a run, with the real `round.py` and ledger. Stages are scripted, so the winners are known."""

import json
from pathlib import Path

import pytest

from pipeline.config import UserError
from pipeline.config.messages import escape_markdown
from pipeline.evaluation import champion
from pipeline.evaluation.report.metrics import collect_metrics
from pipeline.evaluation.report.render import write_report
from pipeline.execution.dry_run import DryRun
from pipeline.round import rounds
from pipeline.storage.ledger import Ledger
from tests.helpers.scripted_rounds import ScriptedRounds, settings


@pytest.fixture
def walk(tmp_path):
    """Walk over the scripted rounds of a run. Gives the rounds and the run."""

    def _walk(skills, *overrides, remake=None, name="run", **script):
        run = ScriptedRounds(
            settings(tmp_path / name, skills, *overrides), Ledger(str(tmp_path / name)), skills, **script
        )
        run.remake = remake
        return list(rounds(run)), run

    return _walk


def champions(rounds_so_far):
    return [one.assessment.champion for one in rounds_so_far]


@pytest.mark.parametrize(
    ("skills", "expected"),
    [
        ([0, 40, 80], [0, 1, 2]),  # each beats the one before it
        ([40, 0, 0], [0, 0, 0]),  # the base stays
        ([0, 80, 40, 79, 100], [0, 1, 1, 1, 4]),  # 40 and 79 lose to 80
        ([0, 40, 41], [0, 1, 1]),  # a gain of one article is within the interval
    ],
)
def test_only_a_policy_that_beats_the_champion_becomes_champion(walk, skills, expected):
    rounds_so_far, _ = walk(skills)
    assert champions(rounds_so_far) == expected
    for one, before in zip(rounds_so_far[1:], expected, strict=False):
        assert one.assessment.challenge.wins == max(0, skills[one.number] - skills[before])


@pytest.mark.parametrize(("start_from", "starts"), [("latest", [0, 1, 2, 3]), ("champion", [0, 1, 1, 1])])
def test_next_round_starts_from_the_latest_policy_or_the_champion(walk, start_from, starts):
    rounds_so_far, run = walk([0, 80, 40, 30, 90], f"start_from={start_from}")
    assert [one.start for one in rounds_so_far[1:]] == starts
    for number, start in enumerate(starts, 1):
        policy = f"round-{start:02d}/policy"
        for stage in ("summaries", "references", "policy"):
            given = [address for address in run.made[f"round-{number:02d}/{stage}"] if address.endswith("policy")]
            assert given == [policy], "writer, reference and starting weights are one"
    assert [one.assessment.figures.gained.wins for one in rounds_so_far[1:]] == [
        80,
        0,
        0,
        90 - [0, 80, 40, 30][starts[3]],
    ]


def test_policy_out_of_bounds_does_not_become_champion(walk):
    rounds_so_far, _ = walk([0, 40, 90], "stop.min_words=10", words=[20, 20, 4])
    assert champions(rounds_so_far) == [0, 1, 1]
    assert rounds_so_far[-1].ended == "Stopped after round 2: stop.min_words=10: the median summary has 4 words"


def test_patience_ends_the_run_and_a_gain_resets_it(walk):
    rounds_so_far, run = walk([0, 40, 40, 90, 90, 20, 100], "stop.patience=2")
    assert len(rounds_so_far) == 6
    assert rounds_so_far[-1].ended.startswith(
        "Stopped after round 5: stop.patience=2: no shown gain over the starting policy (round 4 "
    )
    assert not any(one.ended for one in rounds_so_far[:-1])
    assert "round-06/summaries" not in run.made


def test_patience_compares_with_the_champion_if_rounds_start_from_it(walk):
    """Rounds 3 and 4 are better than the round before them, but not better than the champion that they started from."""
    rounds_so_far, _ = walk([0, 80, 20, 40, 60], "start_from=champion", "stop.patience=3")
    assert rounds_so_far[-1].ended.startswith("Stopped after round 4")
    rounds_so_far, _ = walk([0, 80, 20, 40, 60], "stop.patience=3", name="latest")
    assert rounds_so_far[-1].ended is None


def test_low_yield_ends_the_run_by_a_rule_and_no_pairs_without_one(walk):
    rounds_so_far, _ = walk([0, 40, 80, 90], "stop.min_yield=0.3", yields=[60, 29, 60])
    assert (
        rounds_so_far[-1].ended
        == "Stopped after round 2: stop.min_yield=0.3: only 29.0% of the judged articles gave a pair"
    )
    rounds_so_far, run = walk([0, 40, 80, 90], yields=[60, 0, 60], name="none")
    assert rounds_so_far[-1].ended.startswith("Round 2 gave no pairs (all ties: 100). There is nothing to train on, so")
    assert (
        len(rounds_so_far) == 3
        and rounds_so_far[2].policy is rounds_so_far[1].policy
        and champions(rounds_so_far) == [0, 1, 1]
    )
    assert "round-02/policy" not in run.made


def test_kl_is_measured_from_round_2_on_and_can_end_the_run(walk):
    rounds_so_far, run = walk([0, 40, 80, 90], "stop.max_kl=5", drift=[4.0, 6.5])
    assert [one.assessment.figures.kl for one in rounds_so_far[1:]] == pytest.approx([0.0, 4.0, 6.5])
    assert "round-01/drift" not in run.made
    assert run.made["round-02/drift"] == ("round-02/summaries", "round-01/policy", "round-00/policy")
    assert rounds_so_far[-1].ended == (
        "Stopped after round 3: stop.max_kl=5.0: the KL of the round's writer to the base is 6.50 nats per summary"
    )
    rounds_so_far, _ = walk([0, 40, 80], "stop.max_kl=5", name="unknown")
    assert rounds_so_far[-1].assessment.figures.kl is None and rounds_so_far[-1].ended is None


def test_reference_policy_can_be_the_base(walk):
    _, run = walk([0, 40, 80], "references.policy=base")
    assert run.made["round-01/references"] == ("round-01/pairs", "round-00/policy")
    assert run.made["round-01/policy"] == ("round-01/references", "round-00/policy")
    assert run.made["round-02/references"] == ("round-02/pairs", "round-00/policy")
    assert run.made["round-02/policy"] == ("round-02/references", "round-01/policy", "round-00/policy")


def test_replay_and_rejected_summaries_of_the_base(walk):
    _, run = walk([0, 40, 80, 90], "pairs.replay=0.25", "pairs.rejected=base")
    assert "round-01/replay" not in run.made
    assert run.made["round-03/replay"] == ("round-03/pairs", "round-01/pairs", "round-02/pairs")
    assert run.made["round-03/references"] == ("round-03/replay", "round-02/policy")
    assert run.made["round-01/summaries"] == ("questions", "round-00/policy")
    assert run.made["round-03/summaries"] == ("round-01/scores", "round-02/policy")


def test_new_articles_each_round(walk):
    _, run = walk([0, 40, 80, 90], "articles.each_round=new", "pairs.rejected=base")
    assert run.made["round-01/summaries"] == ("questions", "round-00/policy")
    assert run.made["round-03/articles"] == ("articles", "round-02/articles")
    assert run.made["round-03/base/summaries"] == ("round-03/questions", "round-00/policy")
    assert run.made["round-03/summaries"] == ("round-03/base/scores", "round-02/policy")
    assert all(run.made[f"round-{i:02d}/exam"][0] == "questions" for i in range(4)), "one exam"


def test_round_waits_for_new_articles(walk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("a corpus")
    rounds_so_far, run = walk([0, 40, 80, 90], "articles.each_round=new", dry=[2])
    assert rounds_so_far[-1].ended.startswith("Round 2 was not run, because a.jsonl has no new article to train on")
    assert champions(rounds_so_far) == [0, 1, 1] and not any(address.startswith("round-02") for address in run.made)
    Path("a.jsonl").write_text("a corpus that has grown, in which nothing that was taken is stale")
    rounds_so_far, run = walk([0, 40, 80, 90], "articles.each_round=new")
    assert rounds_so_far[-1].ended is None and len(rounds_so_far) == 4
    assert "articles" not in run.made and "round-01/policy" not in run.made and "round-03/policy" in run.made


@pytest.mark.parametrize("overrides", [[], ["start_from=champion"], ["stop.patience=1", "start_from=champion"]])
def test_same_command_again_makes_nothing_and_gives_the_same_result(walk, overrides):
    skills = [0, 80, 40, 90]
    first, _ = walk(skills, *overrides)
    again, run = walk(skills, *overrides)
    assert run.made == {}
    assert [(one.ended, one.assessment) for one in again] == [(one.ended, one.assessment) for one in first]


def test_dry_run_knows_what_is_made_and_guesses_nothing(walk, tmp_path):
    skills = [0, 80, 40, 90]
    config = settings(tmp_path / "run", skills, "start_from=champion", "stop.patience=1")
    not_run_yet = list(rounds(DryRun(config, Ledger(config.run))))
    assert len(not_run_yet) == 4 and not any(one.assessment or one.ended for one in not_run_yet[1:])
    walk(skills, "start_from=champion", "stop.patience=1")
    dry_run = DryRun(config, Ledger(config.run))
    rounds_so_far = list(rounds(dry_run))
    assert (
        len(rounds_so_far) == 3 and rounds_so_far[-1].ended.startswith("Stopped after round 2") and not dry_run.unmade
    )


def test_changed_start_from_is_refused_and_overwrites_nothing(walk, tmp_path):
    skills = [0, 80, 40, 90]
    walk(skills)
    with pytest.raises(UserError, match="round-03/summaries was made by another recipe") as caught:
        walk(skills, "start_from=champion")
    assert "inputs.round-02/policy: was " in str(caught.value)
    assert "--remake round-03/summaries" in str(caught.value)
    rounds_so_far, run = walk(skills, "start_from=champion", remake="round-03/summaries")
    assert [one.start for one in rounds_so_far[1:]] == [0, 1, 1]
    assert "round-02/policy" not in run.made and "round-03/policy" in run.made


def test_dry_run_of_a_remake_does_not_need_the_new_champion(walk, tmp_path):
    skills = [0, 80, 40, 90]
    walk(skills, "start_from=champion")
    config = settings(tmp_path / "run", skills, "start_from=champion")
    dry_run = DryRun(config, Ledger(config.run), remake="round-02/pairs")
    list(rounds(dry_run))
    assert {"round-02/policy", "round-03/summaries"} <= set(dry_run.unmade)
    rounds_so_far, run = walk(skills, "start_from=champion", remake="round-02/pairs")
    assert [one.start for one in rounds_so_far[1:]] == [0, 1, 1]
    assert "round-02/policy" in run.made and "round-03/policy" not in run.made, "its start is still the champion"


def test_remake_uses_the_new_setting_in_later_rounds_too(walk):
    """After the remake that the error message advises, no later round with the same setting is refused."""
    skills = [0, 40, 80]
    walk(skills)
    with pytest.raises(UserError, match="--remake round-01/pairs"):
        walk(skills, "pairs.threshold=2")
    _, run = walk(skills, "pairs.threshold=2", remake="round-01/pairs")
    assert {"round-01/pairs", "round-01/policy", "round-02/pairs", "round-02/policy"} <= set(run.made)
    assert "round-01/scores" not in run.made


def test_remake_by_pattern_covers_what_no_single_address_does(walk):
    skills = [0, 40, 80]
    walk(skills)
    with pytest.raises(UserError, match="was made by another recipe"):
        walk(skills, "evaluation.max_tokens=99", remake="round-00/exam")
    _, run = walk(skills, "evaluation.max_tokens=99", remake="round-*/exam")
    assert {f"round-0{i}/{name}" for i in range(3) for name in ("exam", "evaluation")} == set(run.made)


def test_unfinished_table_of_another_setting_is_not_removed_silently(walk, tmp_path):
    """It may hold hours of samples, so it is refused like a finished one, unless nothing was written yet."""
    skills = [0, 40, 80]
    walk(skills)
    ledger = Ledger(str(tmp_path / "run"))
    cut_off = ledger.find("round-02/pairs")
    ledger.clear("round-02/pairs")
    ledger.begin("round-02/pairs", {"build": cut_off.build, "recipe": cut_off.record["recipe"]})
    (tmp_path / "run/round-02/pairs/part-x.parquet").write_bytes(b"rows")
    changed = settings(tmp_path / "run", skills, "pairs.threshold=2")
    with pytest.raises(UserError, match="round-01/pairs was made by another recipe"):
        list(rounds(DryRun(changed, ledger)))
    first = ledger.find("round-01/pairs").record
    first["recipe"]["settings"]["pairs"]["threshold"] = 2
    ledger.finish("round-01/pairs", first)
    with pytest.raises(UserError, match=r"round-02/pairs was begun by another recipe:\n  settings.pairs.threshold"):
        list(rounds(DryRun(changed, ledger)))
    list(rounds(DryRun(changed, ledger, remake="round-02/pairs")))
    (tmp_path / "run/round-02/pairs/part-x.parquet").unlink()
    list(rounds(DryRun(changed, ledger)))


def test_remake_that_exceeds_its_limits_can_be_repeated(walk, tmp_path):
    skills = [0, 40]
    walk(skills, "summaries.max_skipped=1")
    ledger = Ledger(str(tmp_path / "run"))
    summaries = ledger.find("round-01/summaries")
    ledger.finish(summaries.address, summaries.record | {"build": "bad", "skipped": {"prompt too long": 90}})
    ledger.write("remake.json", '{"round-01/summaries": "before"}')  # the bad artifact replaced it
    with pytest.raises(UserError, match="--remake round-01/summaries"):
        walk(skills, "summaries.max_skipped=0.1")
    _, run = walk(skills, "summaries.max_skipped=0.1", remake="round-01/summaries")
    assert "round-01/summaries" in run.made


def test_round_of_new_articles_without_pairs_does_not_end_the_run(walk):
    overrides = ("articles.each_round=new", "references.policy=base", "pairs.replay=0.5")
    rounds_so_far, run = walk([0, 40, 80, 90], *overrides, yields=[0, 60, 60])
    assert [one.trained for one in rounds_so_far] == [True, False, True, True] and rounds_so_far[-1].ended is None
    assert [one.start for one in rounds_so_far] == [0, 0, 0, 2] and champions(rounds_so_far) == [0, 0, 2, 3]
    assert rounds_so_far[2].assessment.figures.gained.wins == 80, "it started from the base"
    assert run.made["round-02/policy"] == ("round-02/references", "round-00/policy"), "the base is its own reference"
    assert run.made["round-03/replay"] == ("round-03/pairs", "round-02/pairs"), "a round without pairs is not replayed"
    metrics = collect_metrics(rounds_so_far, run.config, run.ledger)
    assert [(entry["round"], entry["previous"]) for entry in metrics["rounds"]] == [(2, 0), (3, 2)]
    rounds_so_far, _ = walk([0, 40, 80, 90], *overrides, "stop.min_yield=0.1", yields=[60, 0, 60], name="poor")
    assert (
        rounds_so_far[-1].ended
        == "Stopped after round 2: stop.min_yield=0.1: only 0.0% of the judged articles gave a pair"
    )


def test_champion_json_has_the_address_and_the_beaten_round(walk):
    rounds_so_far, run = walk([0, 40, 80, 30])
    champion.write_champion(rounds_so_far[:1], run.ledger)
    base = json.loads(run.ledger.read("champion.json"))
    assert (base["round"], base["address"], base["beat"]) == (0, "round-00/policy", None)
    champion.write_champion(rounds_so_far, run.ledger)
    written = json.loads(run.ledger.read("champion.json"))
    assert (written["round"], written["address"], written["model"]) == (2, "round-02/policy", "models/2")
    assert written["build"] == rounds_so_far[2].policy.build
    assert written["beat"]["round"] == 1 and written["beat"]["strict"]["wins"] == 40


def test_report_has_the_rounds_the_champion_and_the_reason_to_stop(walk):
    rounds_so_far, run = walk([0, 80, 40, 30, 90], "start_from=champion", "stop.patience=2", drift=[3.0, 4.0])
    metrics = collect_metrics(rounds_so_far, run.config, run.ledger)
    assert metrics["champion"] == 1
    assert metrics["stopped"] == rounds_so_far[-1].ended
    assert f"{metrics['stopped']}." in metrics["notes"]
    assert [entry["start"] for entry in metrics["rounds"]] == [0, 1, 1]
    assert [entry["became_champion"] for entry in metrics["rounds"]] == [True, False, False]
    assert [entry["kl"] and entry["kl"]["per_summary"] for entry in metrics["rounds"]] == [None, 3.0, 4.0]
    third = metrics["rounds"][2]
    assert third["yield"] == 0.6
    assert third["vs_start"]["strict"] == third["vs_champion"]["strict"] != third["vs_previous"]["strict"]
    write_report(metrics, [], run.config, run.ledger)
    text = run.ledger.read("report.md")
    assert "| 2 | round 1 | 100 | 60.0 % | 60 | – | 3 | 1.5 | 30.0% [2" in text
    assert "The champion is the policy of round 1. " in text
    assert "The champion was chosen on the same articles that its win rates are measured on, in 3 comparisons." in text
    assert escape_markdown(rounds_so_far[-1].ended) in text
    assert "- **words** are separated by white space, and characters in Chinese, Japanese, Thai" in text
