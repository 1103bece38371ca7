"""Whole runs through the command line, with real vLLM, the tiny models, Ray Data and Ray Train on this CPU."""

import json
import math
import time

import psutil
import pytest

from tests.helpers.cli import RUN_TIMEOUT, kill, run_rondo, start_rondo, wait_for
from tests.helpers.paths import ROOT
from tests.helpers.secrets import SECRETS, check_holds_none
from tests.helpers.tables import read_records, read_rows

SMALL = ["rounds=2", "articles.limit=60", "summaries.n=4", "training.num_train_epochs=1", "training.pairs_per_step=16"]


@pytest.fixture(scope="module")
def secrets_about():
    """Secrets in the environment of every driver here, but for Ray's own token, which it would use."""
    with pytest.MonkeyPatch.context() as patch:
        for name in SECRETS.keys() - {"RAY_AUTH_TOKEN"}:
            patch.setenv(name, SECRETS[name])
        yield


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, secrets_about):
    """Two rounds, cut off twice: the driver killed as round 1 is judged, an engine killed as round 2 is written."""
    run = tmp_path_factory.mktemp("runs") / "two rounds"
    command = ("run", "configs/demo.yaml", f"run={run}", *SMALL)
    driver = start_rondo(*command)
    wait_for(lambda: (run / "round-01/summaries/record.json").exists(), driver)
    kill(driver)
    before = read_records(run)
    driver = start_rondo(*command)
    # Ray Data makes a new engine in its place. One of the evaluation that is just ending would be no loss: it must
    # be none of those seen before.
    seen: set[int] = set()

    def ended():
        seen.update(process.pid for process in engines(driver))
        return (run / "round-01/evaluation/record.json").exists()

    wait_for(ended, driver)
    engine = wait_for(lambda: [process for process in engines(driver) if process.pid not in seen], driver)[0]
    assert not (run / "round-02/summaries/record.json").exists()
    engine.kill()
    output, _ = driver.communicate(timeout=RUN_TIMEOUT)
    assert driver.returncode == 0, output
    return run, command, before, output


def engines(driver):
    """Processes of the driver's that are an engine's actor."""
    processes = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if "MapWorker" in " ".join(process.cmdline()):
                processes.append(process)
        except psutil.Error:
            continue
    return processes


def test_both_rounds_are_there_and_what_was_finished_was_not_made_again(finished_run):
    run, _, before, output = finished_run
    after = read_records(run)
    for stage in ("summaries", "scores", "pairs", "references", "policy", "evaluation"):
        assert {f"round-01/{stage}", f"round-02/{stage}"} <= set(after)
    assert "round-01/summaries" in before
    for address, record in before.items():
        assert after[address]["build"] == record["build"], f"{address} was made twice"
        assert f"{address:<22} reused" in output
    assert "took over the lock of a driver that is gone" in output


def test_no_secret_is_in_it(finished_run):
    run, _, _, output = finished_run
    check_holds_none(run, output)


def test_every_article_is_kept_once_or_skipped_with_a_reason(finished_run):
    run, *_ = finished_run
    for address, record in read_records(run).items():
        if "kept" not in record:
            continue
        kept, skipped = read_rows(run / address), read_rows(run / address / "skipped")
        keys = [(row["article_id"], row.get("writer")) for row in kept]
        assert len(keys) == len(set(keys)) == record["kept"], address
        assert len(skipped) == sum(record["skipped"].values())
        assert all(row["skipped"] for row in skipped)
        assert record["in"] == len(kept) + len(skipped)


def test_step_0_is_the_reference(finished_run):
    run, *_ = finished_run
    for number in (1, 2):
        training = read_records(run)[f"round-{number:02d}/policy"]["training"]
        assert training["step0_loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert training["step0_max_abs_margin"] < 1e-3
        assert 0 < training["passport"]["vllm_vs_trainer_max"] < 1e-3  # of the articles of the engine's first batch


def test_each_round_writes_with_the_policy_of_the_one_before(finished_run):
    run, *_ = finished_run
    made = read_records(run)
    for number in (1, 2):
        writer = made[f"round-{number - 1:02d}/policy"]
        assert {row["writer"] for row in read_rows(run / f"round-{number:02d}/summaries")} == {writer["build"]}
        references = read_rows(run / f"round-{number:02d}/references")
        assert {row["reference_digest"] for row in references} == {writer["digest"]}
    assert len({made[f"round-{number:02d}/policy"]["digest"] for number in (0, 1, 2)}) == 3


def test_what_is_trained_on_is_what_was_sampled(finished_run):
    from transformers import AutoTokenizer

    run, *_ = finished_run
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "newsroom/models/policy")
    for row in read_rows(run / "round-01/references"):
        assert row["prompt_ids"].count(tokenizer.bos_token_id) == 1
        for i, summary in enumerate(row["summaries"]):
            paired = any(i in (pair["chosen"], pair["rejected"]) for pair in row["pairs"])
            assert (row["reference_logps"][i] is not None) == paired
            if paired:
                assert summary["token_ids"][-1] == tokenizer.eos_token_id
                assert summary["finish_reason"] == "stop"


def test_rounds_differ_from_the_base(finished_run):
    run, *_ = finished_run
    texts = [
        {row["article_id"]: row["summaries"][0]["text"] for row in read_rows(run / f"round-{number:02d}/evaluation")}
        for number in (1, 2)
    ]
    base = {row["article_id"]: row["summaries"][0]["text"] for row in read_rows(run / "round-00/evaluation")}
    for text in texts:
        assert text.keys() == base.keys()
        assert any(text[article] != base[article] for article in base)


def test_the_report_says_what_the_tables_hold(finished_run):
    run, _, _, output = finished_run
    metrics = json.loads((run / "metrics.json").read_text())
    assert [entry["round"] for entry in metrics["rounds"]] == [1, 2]
    for entry in metrics["rounds"]:
        for against in ("vs_base", "vs_previous"):
            for rule in ("strict", "reference"):
                rate = entry[against][rule]
                assert 0 < rate["n"] == rate["wins"] + rate["ties"] + rate["losses"] <= entry["n"]
                assert rate["low"] <= rate["win_rate"] <= rate["high"]
        kept = read_rows(run / f"round-{entry['round']:02d}/evaluation")
        right = [row["scores"][0]["correct"] for row in kept if row["scores"][0]["unread"] == 0]
        assert entry["accuracy"] == pytest.approx(sum(c >= metrics["threshold"] for c in right) / len(right))
        assert entry["accuracy_above"] == pytest.approx(sum(c > metrics["threshold"] for c in right) / len(right))
    assert (run / "report.png").stat().st_size > 10_000
    assert "round 2 against base" in (run / "report.md").read_text()
    assert f"Report: {run}/report.md" in output
    assert "news-" in output.split("win rate")[-1]


def test_the_same_command_makes_nothing_and_another_setting_is_refused(finished_run):
    run, command, *_ = finished_run
    made = read_records(run)
    files = {name: (run / name).read_bytes() for name in ("config.yaml", "metrics.json", "report.md")}
    other = run_rondo(*command, "pairs.threshold=4")
    assert other.returncode == 2
    assert "round-01/pairs was made by another recipe:\n  settings.pairs.threshold: was 5, now 4" in other.stderr
    assert "--remake round-01/pairs" in other.stderr
    assert "Traceback" not in other.stderr
    assert {name: (run / name).read_bytes() for name in files} == files
    again = run_rondo(*command, RAY_ADDRESS="127.0.0.1:1")
    assert again.returncode == 0, f"it asks for Ray: {again.stderr}"
    assert read_records(run) == made
    wider = run_rondo(*command, "hardware.trainer.workers=2", "summaries.max_skipped=0.9")
    assert wider.returncode == 0, "neither hardware nor a limit makes anything stale"
    assert read_records(run) == made


def test_status_and_show(finished_run):
    run, *_ = finished_run
    status = run_rondo("status", run)
    assert status.returncode == 0, status.stderr
    assert "round-02/evaluation    made" in status.stdout
    assert "not made" not in status.stdout
    stale = run_rondo("status", run, "training.beta=0.5").stdout
    assert "round-01/pairs         made" in stale
    assert "round-01/policy        stale   settings.training.beta: was 0.3, now 0.5" in stale
    shown = run_rondo("show", run, "round-01/pairs", "--rows", "1")
    assert shown.returncode == 0, shown.stderr
    assert "over summary" in shown.stdout
    assert "right" in shown.stdout
    missing = run_rondo("show", run, "pears")
    assert missing.returncode == 2
    assert "has no 'pears'; it has articles" in missing.stderr


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["training.beta=-1"], "training.beta is -1"),
        (["rounds=two"], "rounds is 'two'"),
        (["policy.model=no/such/folder"], "policy.model is 'no/such/folder': no such folder, and not a hub name"),
        (["judge.model=newsroom"], "judge.model is 'newsroom', a path without config.json"),
        (["articles.path=none.jsonl"], "articles.path is 'none.jsonl': no such file"),
        (["--remake=pears"], "--remake pears: there is no such artifact; there are articles, questions,"),
    ],
)
def test_a_users_mistake_ends_in_one_line_before_ray_starts(tmp_path, overrides, line):
    began = time.monotonic()
    done = run_rondo("run", "configs/demo.yaml", f"run={tmp_path}/run", *overrides)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {line}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert time.monotonic() - began < 60
