"""The test articles: nothing reads them before the end of a run, they choose nothing, and each look is counted."""

import io
import json

import pytest
from rich.console import Console

from jobs.show.tables import _find_table, show_status
from pipeline.config import UserError
from pipeline.evaluation.report.looks import LOOKS, note_look, read_looks
from pipeline.evaluation.report.metrics import collect_metrics
from pipeline.evaluation.report.render import terminal_tables, write_report
from pipeline.evaluation.report.tables import result_tables
from pipeline.evaluation.win_rate import mean_share
from pipeline.execution.dry_run import DryRun
from pipeline.round import rounds
from pipeline.storage import run_folder
from pipeline.storage.ledger import Ledger
from tests.helpers.scripted_rounds import ScriptedRounds, settings

TEST = "articles.test_fraction=0.2"
SECOND = "second_judge={kind: cloze}"
CORPUS = {"train": {"a1", "a2"}, "eval": {"a3"}, "test": {"a4", "a5"}}


class TracedRounds(ScriptedRounds):
    """Follows the articles through the stages, as the runner hands rows on.

    Attributes:
        read: the articles that a stage got, by the address of what it made and by split.
    """

    def make(self, stage, inputs, address):
        self.read = getattr(self, "read", {})
        tables = [self.read[each.address] for each in inputs if each.address in self.read]
        if stage.writes:
            rows = tables[0] if tables else CORPUS
            self.read[address] = {split: ids for split, ids in rows.items() if split in (stage.splits or rows)}
        return super().make(stage, inputs, address)


@pytest.fixture
def walk(tmp_path):
    """Walk over scripted rounds with test articles. Gives the rounds, the last one with its test, and the run."""

    def _walk(skills, *overrides, name="run", **script):
        config = settings(tmp_path / name, skills, TEST, *overrides)
        run = TracedRounds(config, Ledger(config.run), skills, **script)
        found = []
        for current in rounds(run):
            found[current.number :] = [current]
        return found, run

    return _walk


@pytest.mark.parametrize("each_round", ["same", "new"])
def test_no_stage_before_the_end_reads_a_test_article(walk, each_round):
    _, run = walk([0, 40, 80], SECOND, f"articles.each_round={each_round}", "pairs.rejected=base", "pairs.replay=0.5")
    addresses = [address for address in run.made if not address.endswith(("articles", "policy"))]
    before = [address for address in addresses if not address.startswith("test/")]
    assert addresses[: len(before)] == before, "the test comes last"
    assert "round-02/second_scores" in before
    for address in before:
        assert "test" not in run.read[address], address
    assert addresses[len(before) :] == [
        "test/questions",
        "test/second_questions",
        *(f"test/{who}/{what}" for who in ("base", "round-02") for what in ("exam", "evaluation", "second_scores")),
    ]
    for address in addresses[len(before) :]:
        assert run.read[address] == {"test": CORPUS["test"]}, address


@pytest.mark.parametrize("start_from", ["latest", "champion"])
def test_test_articles_choose_nothing(walk, start_from):
    """Whatever the test shows, the same rounds are run, from the same policies, with the same end."""
    skills, overrides = [0, 40, 40, 90, 90, 20, 100], (f"start_from={start_from}", "stop.patience=2")
    runs = [walk(skills, *overrides, name=f"run{i}", test_skills=test) for i, test in enumerate(([100] * 7, [0] * 7))]
    (ours, run), (theirs, other) = runs
    assert ours[-1].ended.startswith("Stopped after round 5")
    assert [(one.start, one.ended, one.assessment) for one in ours] == [
        (one.start, one.ended, one.assessment) for one in theirs
    ]
    assert run.made == other.made


@pytest.mark.parametrize(("start_from", "tested"), [("latest", 3), ("champion", 2)])
def test_the_policy_that_another_round_would_start_from_is_tested(walk, start_from, tested):
    found, run = walk([0, 40, 80, 30], f"start_from={start_from}")
    assert found[-1].number == 3 and [one.number for one in found[-1].test] == [0, tested]
    assert run.made[f"test/round-{tested:02d}/exam"] == ("test/questions", f"round-{tested:02d}/policy")
    assert not any(one.test for one in found[:-1])


def test_a_run_that_ends_with_the_base_is_not_tested(walk):
    found, run = walk([40, 0], "start_from=champion")
    assert found[-1].test is None and not any(address.startswith("test/") for address in run.made)
    config = run.config
    assert collect_metrics(found, config, run.ledger)["test"] is None


def test_without_a_test_fraction_the_last_round_comes_once(tmp_path):
    config = settings(tmp_path, [0, 40])
    run = ScriptedRounds(config, Ledger(config.run), [0, 40])
    assert [one.number for one in rounds(run)] == [0, 1]
    assert not any(address.startswith("test/") for address in run.made)


def test_a_judge_that_compares_gets_the_summaries_of_the_base(walk):
    _, run = walk([0, 40], "judge={kind: pairwise, model: m, served: {server: s}}", "pairs.preference=higher_score",
                  "hardware.servers={s: {base_url: 'http://127.0.0.1:9/v1'}}")  # fmt: skip
    assert run.made["test/round-01/exam"] == ("test/base/evaluation", "round-01/policy")
    assert run.read["test/round-01/exam"] == {"test": CORPUS["test"]}


def test_more_rounds_test_only_the_new_policy_and_each_look_counts(walk, tmp_path):
    def test_once(skills):
        found, run = walk(skills, SECOND)
        note_look(found[-1], run.ledger)
        note_look(found[-1], run.ledger)  # the same evaluation again, as after an interruption, is no look
        return collect_metrics(found, run.config, run.ledger), run

    metrics, _ = test_once([0, 40])
    assert [look["round"] for look in metrics["test"]["looks"]] == [1]
    metrics, run = test_once([0, 40, 80])
    new = [address for address in run.made if address.startswith("test/")]
    assert new == ["test/round-02/exam", "test/round-02/evaluation", "test/round-02/second_scores"]
    assert [look["round"] for look in metrics["test"]["looks"]] == [1, 2]
    _, run = test_once([0, 40, 80])
    assert not run.made and len(read_looks(run.ledger)) == 2
    config = settings(tmp_path / "run", [0, 40, 80], TEST, SECOND)
    again = ScriptedRounds(config, Ledger(config.run), [0, 40, 80], remake="test/round-02/evaluation")
    note_look(list(rounds(again))[-1], again.ledger)
    assert [look["round"] for look in read_looks(again.ledger)] == [1, 2, 2], "the evaluation that was replaced counts"
    again.ledger.write(LOOKS, "[1]")
    with pytest.raises(UserError, match=r"test/looks.json is damaged"):
        read_looks(again.ledger)


def test_the_report_gives_the_test_first_beside_the_held_out_figures(walk):
    faults = {"repeated": 0.0, "copied": 0.2, "lead_copied": 0.1, "off_topic_end": 0.0, "other_language": None}
    found, run = walk([0, 40, 80], SECOND, test_skills=[0, 40, 10], faults=[faults] * 3)
    note_look(found[-1], run.ledger)
    metrics = collect_metrics(found, run.config, run.ledger)
    test, *_ = result_tables(metrics, wide=True)
    lines = {tuple(line[:2]): line[2:] for line in test}
    assert lines["", "figure"] == ["test", "interval", "n", "held-out", "interval", "n"]
    assert lines["round 2 against base", "strict"][::3] == ["55.0%", "90.0%"]
    assert lines["round 2 against base", "strict, 2nd judge"][::3] == ["55.0%", "90.0%"]
    assert lines["lead against base", "strict"][2] == "100"
    assert lines["round 2", "copied 8-grams, mean"][::3] == ["20.0%", "20.0%"]
    assert lines["base", "cut off"][:2] == ["0.0%", "0.0–3.7%"]
    assert metrics["test"]["round"] == 2 and json.dumps(metrics)
    assert not any("not confirmed" in note for note in metrics["notes"]), "10 wins without a loss are a gain"
    write_report(metrics, [], run.config, run.ledger)
    report = run.ledger.read("report.md")
    order = ("## Test articles", "| round 2 against base | strict | 55.0%", "## Held-out articles", "| accuracy")
    assert sorted(order, key=report.index) == list(order)
    assert "that of round 2. The held-out\n" in report and "They were looked at once in this run folder.\n" in report
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*terminal_tables(*result_tables(metrics)))
    shown = console.export_text()
    assert "strict, 2nd judge" in shown and "…" not in shown.split("accuracy")[0], "a terminal has room for the test"


def test_a_gain_that_the_test_does_not_confirm_is_a_note(walk):
    found, run = walk([0, 40, 80], test_skills=[0, 40, 1])
    notes = collect_metrics(found, run.config, run.ledger)["notes"]
    assert [note for note in notes if "not confirmed" in note] == [
        "By the strict rule, round 2 wins 90.0% [86.0%, 94.0%] against the base on held-out articles, but only "
        "50.5% [50.0%, 51.5%] on the test articles: the gain is not confirmed."
    ]


def test_status_and_show_keep_the_test_apart(walk, capsys):
    found, run = walk([0, 40, 40, 40, 90], "stop.patience=2")
    run_folder.write_settings(run.ledger, run.config)
    assert _find_table(run.ledger, "evaluation").address == "round-03/evaluation"
    assert _find_table(run.ledger, "round-03/evaluation").address == "round-03/evaluation"
    assert _find_table(run.ledger, "test/round-03/evaluation").address == "test/round-03/evaluation"
    show_status(run.ledger.root, [])
    shown = capsys.readouterr().out
    assert shown.count("test/round-03/evaluation") == shown.count(found[-1].ended) == 1
    assert list(rounds(DryRun(run.config, run.ledger)))[-1].test


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([0.0] * 100, 0.0, 0.0370),  # Wilson's interval of 0 of 100
        ([1.0] * 8 + [0.0] * 2, 0.4902, 0.9433),  # and of 8 of 10
        ([0.4, 0.6] * 50, 0.4038, 0.5962),  # as for 50 of 100
    ],
)
def test_the_interval_of_a_mean_of_shares(values, low, high):
    found = mean_share(values, 0.95)
    assert found["n"] == len(values) and found["mean"] == pytest.approx(sum(values) / len(values))
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
