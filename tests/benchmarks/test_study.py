"""Tests of the study: its arms, what they share, how it resumes, and what its page says."""

import copy
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import study as study_module
from bench.ablation.arms import ARMS, BY_NAME, Times, plan_arms
from bench.ablation.figures import STEPS, costs
from bench.ablation.page import write_page
from bench.ablation.pooling import pool_verdicts
from bench.ablation.sharing import share, shareable
from bench.ablation.summary import summarize, worth
from bench.study import RESULTS, Study, read_results, run_study
from pipeline.config import UserError
from pipeline.config.loader import load_config
from pipeline.config.losses import LOSS_SETTINGS
from pipeline.evaluation.report.metrics import collect_metrics
from pipeline.evaluation.win_rate import win_rate
from pipeline.round import rounds
from pipeline.storage import run_folder
from pipeline.storage.ledger import Ledger
from tests.helpers.paths import DEMO, ROOT
from tests.helpers.scripted_rounds import ScriptedRounds

CONFIGS = [DEMO, ROOT / "configs" / "smollm2_cpu.yaml"]


# Arms


def flat(settings, prefix=""):
    parts = [flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}": v} for k, v in settings.items()]
    return {name: value for part in parts for name, value in part.items()}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_arm_differs_from_another_in_one_setting(path):
    planned, left_out = plan_arms(path)
    assert [each.arm.name for each in planned] == list(BY_NAME) and left_out == []
    settings = {each.arm.name: flat(each.config.model_dump()) for each in planned}
    for each in planned[1:]:
        ours, theirs = settings[each.arm.name], settings[each.arm.differs_from]
        changed = {name for name in ours if ours[name] != theirs[name]}
        needed = {need.partition("=")[0] for need in each.arm.needs}
        used = LOSS_SETTINGS[ours["training.loss_type"]]
        without_effect = {name for name in changed if name.startswith("training.") and name[9:] not in used}
        without_effect &= {f"training.{name}" for names in LOSS_SETTINGS.values() for name in names}
        assert changed - without_effect == {each.arm.setting} | needed, each.arm.name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_beta_and_learning_rate_have_three_values_and_the_loss_has_four_and_sft(path):
    settings = {each.arm.name: each.config.training for each in plan_arms(path)[0]}
    for group, name in (("beta", "beta"), ("lr", "learning_rate")):
        low, middle, high = sorted(
            {getattr(settings[arm.name], name) for arm in ARMS if arm.group in (group, "rounds")}
        )
        assert low == pytest.approx(middle / 3, rel=0.02) and high == pytest.approx(3 * middle, rel=0.02)
    assert {each.loss_type for each in settings.values()} == {"sigmoid", "ipo", "hinge", "apo_zero", "sft"}


def test_an_arm_brings_the_arms_that_it_needs():
    assert [each.arm.name for each in plan_arms(DEMO, names=["offline"])[0]] == ["dpo-1", "dpo-2", "offline"]
    assert [each.arm.name for each in plan_arms(DEMO, names=["sft"])[0]] == ["dpo-1", "sft"]


def test_arms_that_cannot_be_played_are_refused_or_named():
    with pytest.raises(UserError, match="--arms has dpo-9: the arms are dpo-1, "):
        plan_arms(DEMO, names=["dpo-9"])
    with pytest.raises(
        UserError, match=r"the arm replay \(pairs.replay=0.5\) is refused: references.source is sampler"
    ):
        plan_arms(DEMO, ["references.source=sampler", "summaries.logprobs=true"])
    planned, (line,) = plan_arms(DEMO, ["pairs.replay=0.5"])
    assert line.startswith("replay is left out") and line.endswith("already has pairs.replay=0.5")
    assert "replay" not in [each.arm.name for each in planned]


def test_a_multiple_keeps_the_kind_of_number():
    assert Times(2).of(1) == 2 and isinstance(Times(2).of(1), int)
    assert Times(1 / 3).of(1e-4) == 3.3e-5


# Sharing

SHARED = ["articles", "questions", "round-00/policy", "round-00/exam", "round-00/evaluation"]
SAMPLES = [f"round-01/{name}" for name in ("summaries", "scores", "pairs", "references")]
TRAINED = [f"round-01/{name}" for name in ("policy", "exam", "evaluation")]


def play(config, skills=(30, 60, 80, 90)):
    """Make a run with scripted results, as `rondo run` would, with its metrics."""
    ledger = Ledger(config.run)
    run = ScriptedRounds(config, ledger, skills, drift=[1.0, 2.0])
    found = list(rounds(run))
    run_folder.write_settings(ledger, config)
    for number in range(1, config.rounds + 1):
        lines = [{"step": step, "eval_loss": 0.5, "eval_logps/chosen": -9.0 - step, "eval_kl": step} for step in (0, 1)]
        lines = [line | {"eval_logps/rejected": -9.0 - 2 * line["step"]} for line in lines]
        ledger.write(f"round-{number:02d}/policy/metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
        record = ledger.find(f"round-{number:02d}/policy").record
        record = record | {"model": os.path.abspath(f"{config.run}/round-{number:02d}/policy")}
        ledger.write(f"round-{number:02d}/policy/record.json", json.dumps(record))
    ledger.write("metrics.json", json.dumps(collect_metrics(found, config, ledger)))
    return run.made


@pytest.fixture
def small(tmp_path):
    """A configuration whose judge needs no model."""
    path = tmp_path / "small.yaml"
    (tmp_path / "articles.jsonl").write_text("{}\n")
    path.write_text(
        f"run: unused\narticles: {{path: {tmp_path}/articles.jsonl}}\npolicy: {{model: no-such-model}}\n"
        "judge: {kind: cloze}\npairs: {threshold: 1}\nscores: {min_same_winner: null}\n"
    )
    return path


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("dpo-2", [*SHARED, *SAMPLES, *TRAINED]),
        ("beta-high", [*SHARED, *SAMPLES]),
        ("sft", [*SHARED, *SAMPLES]),
        ("early-stopping", [*SHARED, *SAMPLES]),
        ("offline", [*SHARED, *SAMPLES]),
    ],
)
def test_an_arm_takes_the_finished_stages_that_do_not_depend_on_its_setting(small, tmp_path, arm, expected):
    donor, run = tmp_path / "dpo-1", tmp_path / arm
    (each,) = (each for each in plan_arms(small)[0] if each.arm.name == arm)
    play(load_config(small, [f"run={donor}", "rounds=1"]))
    config = load_config(small, [*each.overrides, f"run={run}"])
    assert sorted(share(config, donor, run)) == sorted(expected)
    assert Ledger(str(run)).addresses() == sorted(expected)
    assert not (run / "metrics.json").exists()
    made = play(config)
    assert not made.keys() & set(expected) and made


def test_replay_keeps_the_samples_and_makes_the_pairs_again(small, tmp_path):
    play(load_config(small, [f"run={tmp_path / 'donor'}", "rounds=2"]))
    config = load_config(small, ["run=unused", "rounds=2", "pairs.replay=0.5"])
    assert sorted(shareable(config, tmp_path / "donor")) == sorted([*SHARED, *SAMPLES[:2]])


def test_a_shared_policy_lies_in_its_new_folder_and_an_existing_run_stays(small, tmp_path):
    donor, run = tmp_path / "donor", tmp_path / "run"
    play(load_config(small, [f"run={donor}", "rounds=1"]))
    config = load_config(small, [f"run={run}", "rounds=2"])
    share(config, donor, run)
    ours, theirs = (Ledger(str(folder)).find("round-01/policy") for folder in (run, donor))
    assert ours.build == theirs.build and ours.record["model"] == str(run / "round-01/policy")
    assert theirs.record["model"] == str(donor / "round-01/policy")
    (run / "articles" / "record.json").unlink()
    assert share(config, donor, run) == [] and not (run / "articles" / "record.json").exists()


# Running and resuming


class Scripted(Study):
    """A study whose runs are scripted. `fails` are arms that fail, and `played` those that were run."""

    fails: tuple[str, ...] = ()
    played: list[str]

    def _run(self, planned, seed):
        name = planned.arm.name
        self.played = [*getattr(self, "played", []), f"{name}-{seed}"]
        run = self.run_folder(name, seed)
        config = load_config(self.config, [*planned.overrides, f"seed={seed}", f"run={run}"])
        if planned.arm.differs_from and self.is_finished(planned.arm.differs_from, seed):
            share(config, self.run_folder(planned.arm.differs_from, seed), run)
        if name in self.fails:
            raise UserError("out of memory")
        play(config)


def start(small, out, names, *overrides):
    return Scripted(out, str(small), overrides, plan_arms(small, overrides, names)[0], ["small.yaml"])


def test_a_study_resumes_and_a_failed_arm_does_not_end_it(small, tmp_path):
    out = tmp_path / "study"
    study = start(small, out, ["dpo-2", "sft"])
    study.fails = ("dpo-2",)
    states = [study.play(each, seed)["status"] for seed in (0, 1) for each in study.planned]
    assert states == ["finished", "failed", "finished"] * 2
    assert study.played[:4] == ["dpo-1-0", "dpo-2-0", "dpo-2-0", "sft-0"]  # a failed run gets a second chance
    again = start(small, out, ["dpo-2", "sft", "beta-low"])
    for each in again.planned:
        again.play(each, 0)
    assert again.played == ["dpo-2-0", "beta-low-0"]
    arms = read_results(out)["arms"]
    assert arms["dpo-2"]["seeds"]["0"]["status"] == "finished"
    assert arms["dpo-2"]["seeds"]["1"]["error"] == "out of memory"
    assert arms["sft"]["seeds"].keys() == {"0", "1"}


def test_an_arm_without_the_stages_of_another_is_not_run(small, tmp_path):
    study = start(small, tmp_path / "study", ["dpo-2"])
    study.fails = ("dpo-1",)
    entries = [study.play(each, 0) for each in study.planned]
    assert [entry["status"] for entry in entries] == ["failed", "failed"]
    assert entries[1]["error"] == "dpo-1 failed, and this arm begins with its stages"
    assert study.played == ["dpo-1-0", "dpo-1-0"]


def test_an_arm_is_compared_once_its_opponent_is_finished(small, tmp_path):
    study = start(small, tmp_path / "study", ["offline"])
    study.fails = ("dpo-2",)
    assert "other" not in [study.play(each, 0) for each in study.planned][-1]["verdicts"]
    study.fails, study.played = (), []
    assert "other" in [study.play(each, 0) for each in study.planned][-1]["verdicts"]
    assert study.played == ["dpo-2-0"]


def test_figures_come_from_the_run(small, tmp_path):
    study = start(small, tmp_path / "study", ["dpo-2"])
    for each in study.planned:
        study.play(each, 0)
    results = read_results(tmp_path / "study")
    first, second = (results["arms"][name]["seeds"]["0"] for name in ("dpo-1", "dpo-2"))
    verdicts = second["verdicts"]["base"]  # the base is right on 30 articles, round 1 on 60, round 2 on 80
    assert (sum(v > 0 for v in verdicts.values()), len(verdicts)) == (50, 100)
    assert sum(v > 0 for v in second["verdicts"]["other"].values()) == 20
    assert (first["accuracy"], second["accuracy"]) == (0.6, 0.8)
    assert results["baselines"]["base"]["seeds"]["0"]["accuracy"] == 0.3
    training = second["training"]
    assert (training["chosen_change"], training["rejected_change"], training["kl"]) == (-1.0, -2.0, 1)
    assert training["kl_before"] == 1.0 and first["training"]["kl_before"] == 0.0
    # Every artifact took a second; those of round 1 were made by the other arm.
    assert sum(second["costs"]["seconds"].values()) == len([*SHARED, *SAMPLES, *TRAINED]) + 8
    assert sum(second["costs"]["own_seconds"].values()) == 8
    assert set(second["costs"]["seconds"]) == set(STEPS)


def test_an_arm_with_the_same_policy_is_known_as_the_same(small, tmp_path):
    study = start(small, tmp_path / "study", ["champion"])
    entries = {each.arm.name: study.play(each, 0) for each in study.planned}
    assert entries["champion"]["same"] and not entries["dpo-3"]["same"]  # each round beat the champion
    champion = next(arm for arm in summarize(study.results) if arm.name == "champion")
    assert worth(champion, {}).startswith("**It changed nothing.** Starting each round from the champion (`start_from=")


def test_the_seconds_of_a_pipeline_count_once(tmp_path):
    ledger = Ledger(str(tmp_path))
    for name, others in (("exam", "evaluation"), ("evaluation", "exam")):
        record = {"build": name, "recipe": {}, "seconds": 20.0, "together_with": [f"round-01/{others}"]}
        ledger.finish(f"round-01/{name}", record | {"tally": {"tokens_in": 100, "tokens_out": 10}})
    found = costs(ledger, ledger.artifacts(), None)
    assert found["seconds"]["evaluation"] == 20.0
    assert found["tokens"] == {"sampled": 10, "judged": 110, "trained": 0}


def test_a_study_with_other_settings_is_refused(small, tmp_path):
    start(small, tmp_path / "study", ["dpo-1"]).save()
    start(small, tmp_path / "study", ["dpo-2"], "hardware.ray_cpus=3")
    with pytest.raises(UserError, match=r"articles.limit: was None, now 9\): give another --out"):
        start(small, tmp_path / "study", ["dpo-1"], "articles.limit=9")


def test_a_run_that_fails_is_recorded_with_its_last_line(small, tmp_path):
    options = SimpleNamespace(config=str(small), overrides=[], out=str(tmp_path / "study"), seeds=[0], arms=["dpo-1"])
    run_study(SimpleNamespace(**vars(options), page=str(tmp_path / "page.md")))
    entry = read_results(tmp_path / "study")["arms"]["dpo-1"]["seeds"]["0"]
    assert entry["status"] == "failed" and "no-such-model" in entry["error"]
    assert entry["error"] in (tmp_path / "study" / "seed-0" / "dpo-1.log").read_text()
    assert "- **Not known.** DPO in one round (`rounds=1`) failed (seed 0: " in (tmp_path / "page.md").read_text()


def test_damaged_or_missing_results_are_one_line(tmp_path):
    with pytest.raises(UserError, match="has no results.json"):
        read_results(tmp_path)
    (tmp_path / RESULTS).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        read_results(tmp_path)


# Pooling

VERDICTS = st.dictionaries(st.integers(0, 30).map(str), st.sampled_from([-1, 0, 1]), min_size=1)


@given(st.lists(VERDICTS, min_size=1, max_size=3))
def test_a_pooled_rate_is_the_mean_over_seeds(by_seed):
    pooled = pool_verdicts(by_seed, 0.95, resamples=50)
    expected = sum(sum(v + 1 for v in seed.values()) / 2 / len(seed) for seed in by_seed) / len(by_seed)
    assert pooled["win_rate"] == pytest.approx(expected)
    assert 0 <= pooled["low"] <= pooled["high"] <= 1
    mirrored = pool_verdicts([{a: -v for a, v in seed.items()} for seed in by_seed], 0.95, resamples=50)
    assert mirrored["win_rate"] == pytest.approx(1 - expected)


def test_a_gain_or_loss_is_shown_if_interval_and_sign_test_agree():
    def shown(*scores):
        return pool_verdicts([{str(i): score for i, score in enumerate(scores)}], 0.95)["shown"]

    assert (shown(*[1] * 6, *[0] * 20), shown(*[-1] * 6, *[0] * 20)) == (1, -1)
    assert (shown(*[1] * 5, *[0] * 20), shown(*[-1] * 5, *[0] * 20), shown(1, -1)) == (0, 0, 0)


def test_one_seed_has_the_interval_of_the_report():
    verdicts = {str(i): 1 if i < 60 else -1 for i in range(100)}
    ours, report = (
        pool_verdicts([verdicts], 0.95),
        win_rate([*verdicts.values()], resamples=9999, confidence=0.95, seed=0),
    )
    assert ours["low"] == pytest.approx(report.low, abs=0.02) and ours["high"] == pytest.approx(report.high, abs=0.02)


def test_seeds_that_disagree_widen_the_interval():
    def width(*shares):
        seeds = [{str(i): 1 if i < share else -1 for i in range(100)} for share in shares]
        pooled = pool_verdicts(seeds, 0.95)
        return pooled["high"] - pooled["low"]

    assert width(40, 80) > 1.5 * width(60, 60)
    assert pool_verdicts([{}, {}], 0.95) is None


# The page


def entry(wins, n=100, words=30, hours=1.0, **more):
    """A finished arm that wins `wins[0]` of `n` articles against the base, and `wins[1]` against the other arm."""
    verdicts = [{f"a{i}": 1 if i < won else -1 for i in range(n)} for won in wins]
    by_opponent = dict(zip(("base", "other"), verdicts, strict=False))
    costs = {"seconds": {"training": 3600 * hours}, "own_seconds": {"training": 60.0}, "tokens": {"trained": 2e6}}
    training = {"pairs": 200, "steps": 10, "eval_accuracy": 0.7, "chosen_change": -1.25, "kl": 3.0, "kl_before": 0.0}
    figures = {"accuracy": 0.5, "words_median": words, "copied": 0.1, "training": training, "costs": costs}
    return {"status": "finished", "made": "2026-11-27T20:00:00Z", "commit": "abc", "wall": 1800.0, "same": False} | {
        **figures,
        "verdicts": by_opponent,
        **more,
    }


FAILED = {"status": "failed", "error": "error: out of memory", "made": "2026-11-28T01:00:00Z", "wall": 9.0}
PLAYED = {
    "dpo-1": [entry([80])],
    "dpo-2": [entry([85, 70], hours=2.0, words=60, second_verdicts={"other": {f"a{i}": 1 for i in range(20)}})],
    "sft": [entry([60, 20]), entry([62, 30])],
    "beta-low": [entry([80, 52])],
    "beta-high": [FAILED],
    "lr-low": [entry([80, 50], same=True)],
    "ipo": [entry([70, 80], second_verdicts={"other": {f"a{i}": -1 for i in range(20)}}), FAILED],
}


@pytest.fixture
def results():
    config = load_config(DEMO)
    heads = {arm.name: study_module._head(arm.title, f"{arm.setting}=1", arm.group, arm.compared_with) for arm in ARMS}
    return copy.deepcopy(
        {
            "config": "configs/demo.yaml",
            "command": ["configs/demo.yaml", "articles.path=/home/me/articles.jsonl", "--out", "runs/study"],
            "settings": config.model_dump(mode="json"),
            "machine": {"device": "a CPU", "cores": 2, "python": "3.11.1", "packages": {"torch": "2.13"}},
            "baselines": {"base": study_module._head("base", "", "base", None) | {"seeds": {"0": entry([])}}},
            "arms": {n: heads[n] | {"seeds": {str(s): e for s, e in enumerate(found)}} for n, found in PLAYED.items()},
        }
    )


def sentences(results):
    arms = {arm.name: arm for arm in summarize(results)}
    return {name: worth(arm, arms) for name, arm in arms.items() if name in results["arms"]}


def test_the_sentences_follow_from_the_figures(results):
    said = sentences(results)
    assert said["dpo-1"].startswith("**Better.** DPO in one round (`rounds=1`) wins 80.0 % [")
    assert "against the base (100 articles, 1 seed)." in said["dpo-1"]
    assert said["dpo-2"].startswith("**Better.**") and "wins 70.0 %" in said["dpo-2"] and "`dpo-1`" in said["dpo-2"]
    assert "The second judge agrees: 100.0 % [100.0, 100.0]." in said["dpo-2"]
    assert "Its summaries have 60 words, those of `dpo-1` 30." in said["dpo-2"]
    assert "It takes 2.0 times the hours of `dpo-1`." in said["dpo-2"]
    assert said["sft"].startswith("**Worse.** SFT") and "wins 25.0 %" in said["sft"] and "2 seeds" in said["sft"]
    assert said["beta-low"].startswith("**No difference is shown.**")
    low, high = re.search(r"52.0 % \[([\d.]+), ([\d.]+)\]", said["beta-low"]).groups()
    assert f"The interval excludes win rates above {high} % and below {low} %." in said["beta-low"]
    assert (
        said["beta-high"].startswith("**Not known.**") and "failed (seed 0: error: out of memory)" in said["beta-high"]
    )
    assert said["lr-low"].startswith("**It changed nothing.**")
    assert said["ipo"].startswith("**Better.**") and "The second judge says the opposite: 0.0 %" in said["ipo"]


def test_the_page_has_the_figures_the_plots_and_what_failed(results, tmp_path):
    page = tmp_path / "results.md"
    write_page([results, results | {"config": "configs/other.yaml"}, results], page)
    text = page.read_text()
    assert "(results/demo-3-hours.svg)" in text  # a second study of the same configuration has its own plots
    text = text.rpartition("## configs/demo.yaml")[0]
    for name in ("demo", "other"):
        assert f"## configs/{name}.yaml" in text
        for plot in ("win-rates", "choices", "hours"):
            assert f"(results/{name}-{plot}.svg)" in text
            assert (tmp_path / "results" / f"{name}-{plot}.svg").read_bytes().startswith(b"<?xml")
    assert "bench.study configs/demo.yaml articles.path=articles.jsonl --out runs/study\n" in text
    assert "2026-11-27 to 2026-11-28, 2 cores (a CPU), Python 3.11.1, torch 2.13, commit abc." in text
    (row,) = (line for line in text.split("## configs/other")[0].splitlines() if line.startswith("| sft | `"))
    assert row.split(" | ")[2].startswith("61.0 % [")
    assert "- `beta-high`, seed 0, failed: error: out of memory" in text
    assert "test articles" not in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("| ") and " | -1.2 | " in line}) == 1


def test_test_articles_are_the_last_column(results, tmp_path):
    for each in results["arms"]["sft"]["seeds"].values():
        each["test_verdicts"] = {"base": {f"t{i}": 1 for i in range(50)}, "other": {f"t{i}": -1 for i in range(50)}}
    write_page([results], tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith("| sft | `"))
    assert row.endswith("| 100.0 % [100.0, 100.0] |") and "| test articles |" in text
    assert "On the 50 test articles it wins 0.0 % [0.0, 0.0]." in sentences(results)["sft"]


def test_the_plots_are_the_same_for_the_same_figures(results, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_page([results], tmp_path / folder / "results.md")
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == Path(str(path).replace("/a/", "/b/")).read_bytes()
