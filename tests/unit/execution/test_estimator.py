"""Tests of `rondo plan`: what a run would make, and its rows, prompts, tokens, seconds, GPUs and cost."""

import json

import pytest

from jobs.plan import plan
from pipeline.config import UserError
from pipeline.config.hardware import Hardware
from pipeline.config.loader import load_config
from pipeline.execution.dry_run import DryRun
from pipeline.execution.planning.estimator import Estimator
from pipeline.execution.planning.gpu_memory import GIB
from pipeline.execution.planning.throughput import StageThroughput, Throughput, open_measured_run
from pipeline.execution.preflight import check_gpu_memory
from pipeline.round import rounds
from pipeline.storage import run_folder
from pipeline.storage.ledger import Ledger
from tests.helpers.paths import ROOT
from tests.helpers.tables import as_table, write_table

DEMO = str(ROOT / "configs" / "demo.yaml")


@pytest.fixture(autouse=True)
def _work_in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)  # the demo's paths of models are relative to it


def config(*overrides):
    return load_config(DEMO, overrides)


def estimate_stages(settings, rates=(), price=None):
    estimator = Estimator(settings, Ledger(settings.run), Throughput([Ledger(root) for root in rates], settings), price)
    for _ in rounds(estimator):
        pass
    return {stage.address: stage for stage in estimator.estimates}


class RecordingDryRun(DryRun):
    """Writes an invented record for each artifact: 10 seconds, 6 of them to start, and tokens in proportion to rows."""

    def make(self, stage, inputs, address):
        rows = {("train",): 41, ("eval",): 78}.get(stage.splits, 120)
        recipe = self.recipe(stage, inputs)
        if stage.name == "articles":
            content = write_table(stage(articles=self.config.articles), f"{self.ledger.root}/articles")
        elif not stage.writes:
            content = {"model": "newsroom/models/policy", "digest": "0"}
            if "training" in stage.settings:
                content["training"] = {"steps": 7, "pairs": 444, "tokens": 18_000, "seconds": 4.0}
        else:
            kept = rows // 2 if stage.name == "pairs" else rows
            tally = {"train": 42, "eval": 78, "tokens_in": 100 * rows, "tokens_out": 10 * rows}
            tally |= {"engine starts": 1, "engine start ms": 6000}
            tally |= {
                "summaries": {"summaries": 8 * rows},
                "scores": {"judged": 6 * rows},
                "pairs": {"pairs": 3 * rows},
            }.get(stage.name, {})
            content = {"in": rows, "kept": kept, "skipped": {}, "tally": tally, "parts": []}
        return self.ledger.finish(address, {"build": address, "recipe": recipe, "seconds": 10.0, **content})


def write_records(settings):
    ledger = Ledger(settings.run)
    for _ in rounds(RecordingDryRun(settings, ledger)):
        pass
    run_folder.write_settings(ledger, settings)


def test_without_records_rows_are_exact_and_tokens_are_upper_limits(tmp_path):
    stages = estimate_stages(config(f"run={tmp_path}/none", "articles.limit=120", "rounds=1"))

    assert {stage.state for stage in stages.values()} == {"to make"}
    assert stages["articles"].rows == stages["questions"].rows == 120
    assert stages["questions"].prompts == 360
    summaries = stages["round-01/summaries"]
    assert summaries.rows == summaries.prompts == 42  # as `make demo` splits them, by hash
    assert summaries.at_most and summaries.tally["tokens_out"] == 42 * 8 * 160
    assert stages["round-01/scores"].prompts == 42 * 8
    assert all(stage.seconds is None for stage in stages.values())
    assert not (tmp_path / "none").exists()


def test_the_rows_and_prompts_of_a_test_are_estimated(tmp_path):
    shares = ("articles.eval_fraction=0.4", "articles.test_fraction=0.3")
    settings = config(f"run={tmp_path}/none", "articles.limit=120", "rounds=2", *shares)
    stages = estimate_stages(settings, price=2.0)
    assert [address for address in stages if address.startswith("test/")] == [
        "test/questions", "test/base/exam", "test/base/evaluation", "test/round-02/exam", "test/round-02/evaluation"
    ]  # fmt: skip
    test = stages["test/questions"]
    assert stages["questions"].rows == stages["articles"].rows - test.rows and 20 < test.rows < 60
    assert test.prompts == 3 * test.rows and test.tally["tokens_in"] > 0
    assert stages["test/base/exam"].rows == stages["test/round-02/evaluation"].rows == test.rows
    assert stages["round-01/exam"].rows + stages["round-01/summaries"].rows == stages["questions"].rows


def test_prompts_of_the_sample_are_as_long_as_in_a_run(tmp_path):
    """In a run of the demo, vLLM counted 5,709 prompt tokens for 41 training articles."""
    stage = estimate_stages(config(f"run={tmp_path}/none", "articles.limit=120", "rounds=1"))["round-01/summaries"]

    assert stage.tally["tokens_in"] / stage.rows == pytest.approx(5709 / 41, rel=0.05)


def test_rates_come_from_the_records_of_a_smaller_run(tmp_path):
    small, large = f"{tmp_path}/small", f"{tmp_path}/large"
    write_records(config(f"run={small}", "articles.limit=120", "rounds=1"))

    stages = estimate_stages(config(f"run={large}", "articles.limit=480", "rounds=1"), rates=[small])

    summaries = stages["round-01/summaries"]
    assert not summaries.at_most and summaries.tally["tokens_out"] == pytest.approx(10 * summaries.rows)
    scores = stages["round-01/scores"]
    assert scores.prompts == 6 * scores.rows  # equal summaries of an article are judged once
    # The 6 seconds to start an engine are constant; the other 4 grow with the tokens.
    computed = scores.tally["tokens_in"] + scores.tally["tokens_out"]
    assert scores.seconds == pytest.approx(6 + 4 * computed / (110 * 120))
    assert stages["round-01/references"].rows == round(stages["round-01/pairs"].rows / 2)


def test_the_seconds_of_a_resumed_table_are_scaled_up_to_all_its_rows(tmp_path):
    run = config(f"run={tmp_path}/run", "articles.limit=120", "rounds=1")
    write_records(run)
    ledger = Ledger(run.run)
    for address, share in (("round-01/scores", 0.75), ("round-01/summaries", 1)):
        record = ledger.find(address).record
        ledger.finish(address, record | {"resumed": round(share * record["in"])})
    measured_by_stage = {name: measured for (name, _), measured in Throughput([ledger], run).measured.items()}
    assert (measured_by_stage["scores"].seconds, measured_by_stage["references"].seconds) == (40, 10)
    assert "summaries" not in measured_by_stage, "its last attempt made no row"


def test_tables_of_one_pipeline_share_its_seconds_and_its_start_seconds():
    throughput, others = StageThroughput(), ["r/scores", "r/pairs", "r/references"]
    tally = {"tokens_in": 100, "engine starts": 1, "engine start ms": 9000}
    throughput.add({"in": 10, "kept": 10, "seconds": 60, "together_with": others, "tally": tally}, Hardware())
    assert (throughput.seconds, throughput.start_seconds) == (20, 3)  # three tables share them: r/pairs needs no engine
    assert throughput.time(200, width=1) == 3 + 17 * 2


def test_a_pipeline_holds_the_gpus_of_all_its_tables(tmp_path):
    one_gpu_each = [
        "hardware.policy.gpus_per_replica=1",
        "hardware.judge.gpus_per_replica=1",
        "hardware.trainer.gpus_per_worker=1",
    ]
    overrides = [f"run={tmp_path}/none", "articles.limit=120", "rounds=1", *one_gpu_each]
    for together, gpus in (("true", 3), ("false", 1)):
        stages = estimate_stages(config(*overrides, "hardware.ray_cpus=null", f"hardware.together={together}"))
        assert [stages[f"round-01/{name}"].gpus for name in ("summaries", "scores", "references")] == [gpus] * 3
        assert stages["round-01/exam"].gpus == min(gpus, 2) and stages["round-01/policy"].gpus == 1


def test_each_check_of_questions_that_asks_the_judge_is_a_prompt(tmp_path):
    settings = (f"run={tmp_path}/none", "articles.limit=120", "rounds=1", "second_judge={kind: cloze}")
    few, more = (
        estimate_stages(config(*settings, f"questions.more_checks=[{checks}]"))
        for checks in ("no_overlap", "single_key, no_overlap")
    )
    assert (few["questions"].prompts, more["questions"].prompts) == (360, 480)
    assert few["questions"].tally["tokens_in"] < more["questions"].tally["tokens_in"]
    assert more["second_questions"].prompts == 0


def test_the_prompts_and_the_cost_of_a_served_second_judge_are_estimated(tmp_path):
    prices = "prices: {newsroom/models/judge: {input: 1, output: 1}}"
    second = "second_judge={model: newsroom/models/judge, wording: newsroom, served: {server: o}}"
    server = f"hardware.servers.o={{base_url: 'http://127.0.0.1:1/v1', {prices}}}"
    stages = estimate_stages(config(f"run={tmp_path}/none", "articles.limit=120", "rounds=1", second, server))
    scored = stages["round-00/second_scores"]
    assert scored.prompts == 3 * scored.rows  # the base's summary, and the two baselines
    assert scored.dollars > 0 and stages["second_questions"].dollars > 0
    assert stages["round-01/second_scores"].prompts == stages["round-01/second_scores"].rows


def test_finished_artifacts_are_reused_and_stale_ones_are_reported(tmp_path):
    run = f"run={tmp_path}/run"
    write_records(config(run, "articles.limit=120", "rounds=1"))
    longer = estimate_stages(config(run, "articles.limit=120", "rounds=2"))
    changed = estimate_stages(config(run, "articles.limit=120", "rounds=1", "pairs.threshold=4"))

    assert {stage.state for address, stage in longer.items() if "round-02" not in address} == {"made"}
    assert {stage.state for address, stage in longer.items() if "round-02" in address} == {"to make"}
    assert changed["round-01/scores"].state == "made" and changed["round-01/policy"].state == "stale"
    assert "--remake round-01/pairs" in changed["round-01/pairs"].notes[0]


def test_gpus_cost_by_the_hour_and_more_of_them_take_less_time(tmp_path):
    gpu = ("articles.limit=120", "rounds=1", "hardware.judge.gpus_per_replica=2", "hardware.together=false")
    write_records(config(f"run={tmp_path}/small", *gpu))

    def scores(replicas):
        settings = config(f"run={tmp_path}/none", *gpu, f"hardware.judge.replicas={replicas}")
        return estimate_stages(settings, [f"{tmp_path}/small"], price=3.0)["round-01/scores"]

    one, four = scores(1), scores(4)
    assert four.seconds - 6 == pytest.approx((one.seconds - 6) / 4)
    assert (one.gpus, four.gpus) == (2, 8)
    assert one.dollars == pytest.approx(one.seconds * 2 / 3600 * 3)


def test_rates_of_other_models_or_of_cpus_are_not_used(tmp_path):
    write_records(config(f"run={tmp_path}/small", "articles.limit=120", "rounds=1"))
    small = [f"{tmp_path}/small"]
    other_policy = estimate_stages(config(f"run={tmp_path}/none", "rounds=1", "policy.dtype=bfloat16"), small)
    on_gpus = estimate_stages(config(f"run={tmp_path}/none", "rounds=1", "hardware.judge.gpus_per_replica=1"), small)

    assert other_policy["round-01/summaries"].seconds is None
    assert other_policy["round-01/scores"].seconds is not None
    assert on_gpus["round-01/scores"].seconds is None and "without GPUs" in on_gpus["round-01/scores"].notes[0]


def test_a_served_judge_costs_its_tokens_at_the_prices_of_its_server(tmp_path):
    served = (
        "judge.dtype=bfloat16", "judge.max_model_len=null", "judge.served={server: ours}",
        "hardware.servers={ours: {base_url: 'http://127.0.0.1:1/v1'}}",
        "hardware.servers.ours.prices={newsroom/models/judge: {input: 2, output: 10}}",
    )  # fmt: skip
    stage = estimate_stages(config(f"run={tmp_path}/none", "rounds=1", *served))["questions"]

    assert stage.gpus == 0
    assert stage.dollars == pytest.approx((2 * stage.tally["tokens_in"] + 10 * stage.tally["tokens_out"]) / 1e6)


def test_the_command_prints_the_plan_and_writes_it_as_json(tmp_path, capsys):
    write_records(config(f"run={tmp_path}/small", "articles.limit=120", "rounds=1"))
    arguments = [f"run={tmp_path}/none", "rounds=1", "articles.limit=240"]

    plan(DEMO, arguments, rates=[f"{tmp_path}/small"], price=2.0, out=str(tmp_path / "plan.json"))

    printed, written = capsys.readouterr().out, json.loads((tmp_path / "plan.json").read_text())
    assert "12 to make, 0 reused" in printed and "round-01/scores" in printed and "training" in printed
    assert written["total"]["prompts"] == sum(stage["prompts"] for stage in written["stages"])
    assert {need["use"] for need in written["memory"]} == {"policy", "judge", "training"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "small"]


def test_the_plan_says_how_many_articles_are_left_and_which_limit_cuts_off_summaries(tmp_path, capsys):
    small = config(f"run={tmp_path}/small", "articles.limit=120", "rounds=1")
    write_records(small)
    summaries = [{"text": "t", "token_ids": [1] * 160, "finish_reason": "length"}] * 8
    row = {"article_id": "a", "article": "t", "split": "train", "summaries": summaries, "skipped": None}
    address = "round-01/summaries"
    write_table([as_table([row | {"article_id": f"a{i}"} for i in range(4)])], f"{tmp_path}/small/{address}")

    arguments = [f"run={tmp_path}/none", "rounds=1", "articles.limit=240", "articles.max_words=110"]
    plan(DEMO, [*arguments, "policy.max_model_len=288"], rates=[f"{tmp_path}/small"], out=str(tmp_path / "plan.json"))

    written = json.loads((tmp_path / "plan.json").read_text())
    notes = [note for note in written["notes"] if note.startswith(("articles: ", f"{tmp_path}/small"))]
    skipped, too_long, habit = notes
    assert "articles.limit=240 counts rows of the file" in skipped and "or raise articles.max_words=110" in skipped
    assert "articles are too long for policy.max_model_len=288 with a reply of 160, and will be skipped" in too_long
    assert habit.startswith(f"{tmp_path}/small/{address}: summaries used 160 of 160 tokens in 100% of cases")
    rows = {stage["address"]: stage["rows"] for stage in written["stages"]}
    assert 0 < rows["round-01/scores"] < rows["round-01/summaries"], "those that are too long leave"

    write_records(config(f"run={tmp_path}/small", "articles.limit=120", "rounds=1"))
    plan(DEMO, [f"run={tmp_path}/small", "rounds=1", "articles.limit=120"])
    assert "cut off" not in capsys.readouterr().out.split("reused")[-1], "nothing is sampled any more"


def test_a_model_that_cannot_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    gpu = ["hardware.judge.gpus_per_replica=1", f"run={tmp_path}/none"]

    with pytest.raises(UserError, match="judge: 1.1M parameters in float32 .* use larger GPUs"):
        plan(DEMO, gpu, gpu_gib=2)
    with pytest.raises(UserError, match="judge: 1.1M"):
        check_gpu_memory(config(*gpu), 2 * GIB)
    check_gpu_memory(config(*gpu), None)  # unknown GPUs: nothing is refused
    monkeypatch.setenv("RAY_ADDRESS", "ray-head:6379")
    check_gpu_memory(config(*gpu), 2 * GIB)  # the nodes of the cluster may have other GPUs


def test_a_folder_for_rates_must_hold_a_run(tmp_path):
    with pytest.raises(UserError, match="the folder holds no run"):
        open_measured_run(str(tmp_path))


def test_the_prompts_of_judges_that_give_scores_are_counted(tmp_path):
    """likelihood: the article with all summaries, its key sentences alone, and these after each summary."""
    model = "model: newsroom/models/policy"
    settings = (f"run={tmp_path}/none", "articles.limit=120", "rounds=1", "pairs.threshold=3")
    for kind, prompts in (("likelihood", 1 + 1 + 8), ("rubric", 8), ("pairwise", 8 * 7)):
        stages = estimate_stages(config(*settings, f"judge={{kind: {kind}, {model}}}"))
        assert stages["round-01/scores"].prompts == 42 * prompts
