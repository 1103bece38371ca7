"""`rondo plan`: what would be made and what that takes, held against what runs record."""

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
from tests.helpers.tables import write_table

DEMO = str(ROOT / "configs" / "demo.yaml")


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)  # the demo names its models from there


def config(*overrides):
    return load_config(DEMO, overrides)


def planned(settings, rates=(), price=None):
    estimator = Estimator(settings, Ledger(settings.run), Throughput([Ledger(root) for root in rates], settings), price)
    for _ in rounds(estimator):
        pass
    return {line.address: line for line in estimator.estimates}


class Played(DryRun):
    """Finishes what a run would make with records of our own: 10 seconds, of which 6 to start, and tokens by rows."""

    def make(self, stage, inputs, address):
        rows = {"train": 41, "eval": 78}.get(stage.split, 120)
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


def play(settings):
    book = Ledger(settings.run)
    for _ in rounds(Played(settings, book)):
        pass
    run_folder.write_settings(book, settings)


def test_before_anything_is_made_rows_are_exact_and_replies_at_most(tmp_path):
    lines = planned(config(f"run={tmp_path}/none", "articles.limit=120", "rounds=1"))

    assert {line.state for line in lines.values()} == {"to make"}
    assert lines["articles"].rows == lines["questions"].rows == 120
    assert lines["questions"].prompts == 360
    written = lines["round-01/summaries"]
    assert written.rows == written.prompts == 42  # as `make demo` splits them, by hash
    assert written.at_most and written.tally["tokens_out"] == 42 * 8 * 160
    assert lines["round-01/scores"].prompts == 42 * 8
    assert all(line.seconds is None for line in lines.values())
    assert not (tmp_path / "none").exists()


def test_prompts_of_a_sample_are_as_long_as_those_of_the_run(tmp_path):
    """The demo's 41 articles with questions have 5,709 tokens of prompt, by vLLM's count."""
    line = planned(config(f"run={tmp_path}/none", "articles.limit=120", "rounds=1"))["round-01/summaries"]

    assert line.tally["tokens_in"] / line.rows == pytest.approx(5709 / 41, rel=0.05)


def test_rates_are_those_of_a_smaller_run(tmp_path):
    small, large = f"{tmp_path}/small", f"{tmp_path}/large"
    play(config(f"run={small}", "articles.limit=120", "rounds=1"))

    lines = planned(config(f"run={large}", "articles.limit=480", "rounds=1"), rates=[small])

    written = lines["round-01/summaries"]
    assert not written.at_most and written.tally["tokens_out"] == pytest.approx(10 * written.rows)
    judged = lines["round-01/scores"]
    assert judged.prompts == 6 * judged.rows  # equal summaries of an article are judged once
    # Six seconds to start an engine, whatever comes; the rest grows with the tokens.
    computed = judged.tally["tokens_in"] + judged.tally["tokens_out"]
    assert judged.seconds == pytest.approx(6 + 4 * computed / (110 * 120))
    assert lines["round-01/references"].rows == round(lines["round-01/pairs"].rows / 2)


def test_the_seconds_of_a_resumed_table_are_those_of_its_last_rows(tmp_path):
    run = config(f"run={tmp_path}/run", "articles.limit=120", "rounds=1")
    play(run)
    book = Ledger(run.run)
    for address, share in (("round-01/scores", 0.75), ("round-01/summaries", 1)):
        record = book.find(address).record
        book.finish(address, record | {"resumed": round(share * record["in"])})
    measured_by_stage = {name: measured for (name, _), measured in Throughput([book], run).measured.items()}
    assert (measured_by_stage["scores"].seconds, measured_by_stage["references"].seconds) == (40, 10)
    assert "summaries" not in measured_by_stage, "its rows were there before the driver was"


def test_tables_of_one_pipeline_share_its_seconds_and_its_start():
    throughput, others = StageThroughput(), ["r/scores", "r/pairs", "r/references"]
    tally = {"tokens_in": 100, "engine starts": 1, "engine start ms": 9000}
    throughput.add({"in": 10, "kept": 10, "seconds": 60, "together_with": others, "tally": tally}, Hardware())
    assert (throughput.seconds, throughput.start_seconds) == (20, 3)  # r/pairs needs no engine: the other three share
    assert throughput.time(200, width=1) == 3 + 17 * 2


def test_a_pipeline_holds_the_gpus_of_all_its_tables(tmp_path):
    each = ["hardware.policy.gpus_per_replica=1", "hardware.judge.gpus_per_replica=1", "hardware.ray_cpus=null"]
    own = [f"run={tmp_path}/none", "articles.limit=120", "rounds=1", *each, "hardware.trainer.gpus_per_worker=1"]
    for together, gpus in (("true", 3), ("false", 1)):
        lines = planned(config(*own, f"hardware.together={together}"))
        assert [lines[f"round-01/{name}"].gpus for name in ("summaries", "scores", "references")] == [gpus] * 3
        assert lines["round-01/exam"].gpus == min(gpus, 2) and lines["round-01/policy"].gpus == 1


def test_a_second_judge_at_a_server_is_counted_and_costs(tmp_path):
    prices = "prices: {newsroom/models/judge: {input: 1, output: 1}}"
    second = "second_judge={model: newsroom/models/judge, wording: newsroom, served: {server: o}}"
    server = f"hardware.servers.o={{base_url: 'http://127.0.0.1:1/v1', {prices}}}"
    lines = planned(config(f"run={tmp_path}/none", "articles.limit=120", "rounds=1", second, server))
    scored = lines["round-00/second_scores"]
    assert scored.prompts == 3 * scored.rows  # the base's summary, and the two baselines
    assert scored.dollars > 0 and lines["second_questions"].dollars > 0
    assert lines["round-01/second_scores"].prompts == lines["round-01/second_scores"].rows


def test_what_is_there_is_reused_and_what_is_stale_is_said(tmp_path):
    run = f"run={tmp_path}/run"
    play(config(run, "articles.limit=120", "rounds=1"))
    same = {address: line.state for address, line in planned(config(run, "articles.limit=120", "rounds=2")).items()}
    other = planned(config(run, "articles.limit=120", "rounds=1", "pairs.threshold=4"))

    assert {state for address, state in same.items() if "round-02" not in address} == {"made"}
    assert {state for address, state in same.items() if "round-02" in address} == {"to make"}
    assert other["round-01/scores"].state == "made" and other["round-01/policy"].state == "stale"
    assert "--remake round-01/pairs" in other["round-01/pairs"].notes[0]


def test_gpus_cost_by_the_hour_and_more_of_them_take_less_time(tmp_path):
    gpu = ("articles.limit=120", "rounds=1", "hardware.judge.gpus_per_replica=2", "hardware.together=false")
    play(config(f"run={tmp_path}/small", *gpu))

    def scores(replicas):
        settings = config(f"run={tmp_path}/none", *gpu, f"hardware.judge.replicas={replicas}")
        return planned(settings, [f"{tmp_path}/small"], price=3.0)["round-01/scores"]

    one, four = scores(1), scores(4)
    assert four.seconds - 6 == pytest.approx((one.seconds - 6) / 4)
    assert (one.gpus, four.gpus) == (2, 8)
    assert one.dollars == pytest.approx(one.seconds * 2 / 3600 * 3)


def test_rates_of_other_models_or_of_cpus_are_not_taken(tmp_path):
    play(config(f"run={tmp_path}/small", "articles.limit=120", "rounds=1"))
    small = [f"{tmp_path}/small"]
    other = planned(config(f"run={tmp_path}/none", "rounds=1", "policy.dtype=bfloat16"), small)
    gpus = planned(config(f"run={tmp_path}/none", "rounds=1", "hardware.judge.gpus_per_replica=1"), small)

    assert other["round-01/summaries"].seconds is None and other["round-01/scores"].seconds is not None
    assert gpus["round-01/scores"].seconds is None and "without GPUs" in gpus["round-01/scores"].notes[0]


def test_a_served_judge_costs_what_its_server_asks(tmp_path):
    served = (
        "judge.dtype=bfloat16", "judge.max_model_len=null", "judge.served={server: ours}",
        "hardware.servers={ours: {base_url: 'http://127.0.0.1:1/v1'}}",
        "hardware.servers.ours.prices={newsroom/models/judge: {input: 2, output: 10}}",
    )  # fmt: skip
    line = planned(config(f"run={tmp_path}/none", "rounds=1", *served))["questions"]

    assert line.gpus == 0
    assert line.dollars == pytest.approx((2 * line.tally["tokens_in"] + 10 * line.tally["tokens_out"]) / 1e6)


def test_the_command_says_it_for_people_and_for_machines(tmp_path, capsys):
    play(config(f"run={tmp_path}/small", "articles.limit=120", "rounds=1"))
    arguments = [f"run={tmp_path}/none", "rounds=1", "articles.limit=240"]

    plan(DEMO, arguments, rates=[f"{tmp_path}/small"], price=2.0, out=str(tmp_path / "plan.json"))

    printed, written = capsys.readouterr().out, json.loads((tmp_path / "plan.json").read_text())
    assert "12 to make, 0 reused" in printed and "round-01/scores" in printed and "training" in printed
    assert written["total"]["prompts"] == sum(stage["prompts"] for stage in written["stages"])
    assert {need["use"] for need in written["memory"]} == {"policy", "judge", "training"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "small"]


def test_a_model_that_cannot_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    gpu = ["hardware.judge.gpus_per_replica=1", f"run={tmp_path}/none"]

    with pytest.raises(UserError, match="judge: 1.1M parameters in float32 .* use larger GPUs"):
        plan(DEMO, gpu, gpu_gib=2)
    with pytest.raises(UserError, match="judge: 1.1M"):
        check_gpu_memory(config(*gpu), 2 * GIB)
    check_gpu_memory(config(*gpu), None)  # of GPUs that nobody has seen nothing is said
    monkeypatch.setenv("RAY_ADDRESS", "ray-head:6379")
    check_gpu_memory(config(*gpu), 2 * GIB)  # the cluster's GPUs may be others than this machine's


def test_rates_need_a_run(tmp_path):
    with pytest.raises(UserError, match="the folder holds no run"):
        open_measured_run(str(tmp_path))
