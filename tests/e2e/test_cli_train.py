"""Training on pairs from elsewhere, end to end with the tiny policy; and a run's own pairs given to others and back."""

import json
import math
import shutil
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from jobs.cli import main
from jobs.sharing.export import export_pairs
from judges.base import fill, user
from pipeline import align
from pipeline.config import UserError
from pipeline.config.loader import load_alignment, load_config, parse_alignment
from pipeline.config.run import PolicySettings
from pipeline.data.pair_tokenizer import load_pair_tokenizer
from pipeline.data.preference_formats import Preference
from pipeline.stages.external_pairs import collect_pairs
from pipeline.storage import run_folder
from pipeline.storage.ledger import Ledger
from pipeline.storage.model_files.card import is_own_card
from tests.helpers.cli import kill, run_rondo, start_rondo, wait_for
from tests.helpers.paths import POLICY_MODEL, ROOT
from tests.helpers.tables import add_table, read_records

POLICY = str(POLICY_MODEL)
SMALL = {"hardware": {"trainer": {"tokens_per_batch": 768}}, "policy": {"dtype": "float32"}}


def given(count):
    """Pairs of text: of three sentences of an article the first over the others, and the third over the second."""
    pairs = []
    for line in (ROOT / "newsroom/articles.jsonl").read_text(encoding="utf-8").splitlines()[:count]:
        text = json.loads(line)["text"]
        first, second, third = text.split(". ")[:3]
        for chosen, rejected in ((first, second), (first, third), (third, second)):
            pairs.append({"prompt": f"Summarize.\n{text}\n", "chosen": chosen, "rejected": rejected})
    return pairs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`rondo train` with the demo's configuration: what only rounds use is left aside."""
    place = tmp_path_factory.mktemp("own")
    lines = [*map(json.dumps, given(16)), json.dumps({"prompt": "x", "chosen": "", "rejected": "y"})]
    (place / "pairs.jsonl").write_text("\n".join(lines))
    run = place / "run"
    training = ("eval_fraction=0.3", "pairs_per_step=12", "num_train_epochs=12")
    command = ("train", "configs/demo.yaml", f"pairs={place}/pairs.jsonl", f"run={run}")
    command += tuple(f"training.{setting}" for setting in training)
    done = run_rondo(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return run, command, done.stdout


def test_a_file_of_pairs_becomes_a_model(trained):
    run, _, output = trained
    made = read_records(run)
    assert set(made) == {"base/policy", "pairs", "references", "policy"}
    pairs, training = made["pairs"], made["policy"]["training"]
    assert (pairs["in"], pairs["kept"], pairs["skipped"]) == (49, 16, {"empty answer": 1})
    assert pairs["tally"]["pairs"] == 48
    assert training["step0_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert training["step0_max_abs_margin"] < 1e-3
    assert training["final_loss"] < training["step0_loss"]
    assert training["eval_accuracy_last"] > 0.5
    assert made["policy"]["digest"] != made["base/policy"]["digest"]
    assert AutoTokenizer.from_pretrained(run / "policy").eos_token == "</s>"
    assert is_own_card((run / "policy/README.md").read_bytes())
    assert f"Model: {run}/policy" in output
    assert "reward accuracy       0.00 before," in output
    assert "chosen fell           in " in output


def test_the_same_command_makes_nothing_and_another_setting_is_refused(trained):
    run, command, _ = trained
    made = read_records(run)
    again = run_rondo(*command)
    assert again.returncode == 0, again.stderr
    assert read_records(run) == made
    assert again.stdout.count("reused") == 4
    other = run_rondo(*command, "training.beta=0.5")
    assert other.returncode == 2
    assert "policy was made by another recipe:\n  settings.training.beta: was 0.3, now 0.5" in other.stderr


@pytest.mark.slow
def test_a_killed_driver_goes_on_at_the_step_it_left(trained, tmp_path):
    """And ends with the weights of a run that nobody disturbed."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    undisturbed, command, _ = trained
    run = tmp_path / "run"
    command = [f"run={run}" if word.startswith("run=") else word for word in command]
    command.append("hardware.trainer.save_steps=2")

    seen: set[str] = set()

    def third_checkpoint():
        seen.update(path.parent.name for path in run.glob("policy/checkpoints/last-*/state.json"))
        return len(seen) >= 3

    driver = start_rondo(*command)
    wait_for(third_checkpoint, driver)
    kill(driver)
    assert not (run / "policy/record.json").exists()
    done = run_rondo(*command, "report_to=[tensorboard]")
    assert done.returncode == 0, done.stdout + done.stderr

    events = accumulator.EventAccumulator(str(run / "tensorboard/policy")).Reload()
    steps = [event.step for event in events.Scalars("loss")]
    total = read_records(run)["policy"]["training"]["steps"]
    assert steps[0] > 2 and steps == list(range(steps[0], total + 1))
    lines = [json.loads(line) for line in (run / "policy/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, total + 1))
    assert not (run / "policy/checkpoints").exists()
    one, other = (load_file(folder / "policy/model.safetensors") for folder in (run, undisturbed))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_status_and_show_know_such_a_folder(trained):
    run, *_ = trained
    status = run_rondo("status", run)
    assert status.returncode == 0, status.stderr
    assert [line.split()[:2] for line in status.stdout.splitlines()[1:]] == [
        ["base/policy", "made"],
        ["pairs", "made"],
        ["references", "made"],
        ["policy", "made"],
    ]
    stale = run_rondo("status", run, "training.beta=0.5").stdout
    assert "policy                 stale   settings.training.beta: was 0.3, now 0.5" in stale
    shown = run_rondo("show", run, "references", "--rows", "1")
    assert shown.returncode == 0, shown.stderr
    assert "summary 0 over summary 1: given" in shown.stdout


def test_what_belongs_to_rounds_is_refused_there(trained):
    run, *_ = trained
    for command in (("run", "configs/demo.yaml", f"run={run}"), ("export", run, "--out", run / "pairs.jsonl")):
        refused = run_rondo(*command)
        assert refused.returncode == 2
        assert "elsewhere" in refused.stderr
        assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["training.beta=-1"], "training.beta is -1"),
        (["rounds=2"], "the configuration has no 'rounds'"),
        (["policy.instruction=Say {article}"], "policy.instruction is set, but these pairs have their own prompts"),
        (["pairs=none.jsonl"], "pairs is 'none.jsonl': no such file"),
        (["pairs=newsroom/articles.jsonl"], "newsroom/articles.jsonl has the columns id, text; known are chosen"),
        (["policy.model=no/such/folder"], "policy.model is 'no/such/folder': no such folder, and not a hub name"),
        (["--remake=round-01/policy"], "--remake round-01/policy: there is no such artifact; there are base/policy,"),
    ],
)
def test_a_users_mistake_ends_in_one_line_before_ray_starts(tmp_path, arguments, line, monkeypatch, capsys):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}))
    command = ["rondo", "train", "configs/own_pairs.yaml", f"pairs={tmp_path}/pairs.jsonl", f"run={tmp_path}/run"]
    monkeypatch.setattr(sys, "argv", [*command, *arguments])
    monkeypatch.setattr("pipeline.execution.runner.connected_ray", lambda hardware: pytest.fail("it asks for Ray"))
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        main()
    stderr = capsys.readouterr().err
    assert ended.value.code == 2
    assert stderr.startswith(f"error: {line}")
    assert stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_from_python_one_call_does_it(tmp_path):
    from datasets import Dataset

    rows = given(8)
    call = {"loss": "ipo", "out": tmp_path / "run", "beta": 0.1, "learning_rate": 1e-4, "pairs_per_step": 8, **SMALL}
    aligned = align(POLICY, rows, **call)
    assert Path(aligned.path, "config.json").is_file()
    assert aligned.metrics["step0_loss"] == pytest.approx(25, rel=1e-4)  # ipo: (0 - 1 / (2 beta))^2
    assert aligned.pairs["kept"] == 8
    first = read_records(tmp_path / "run")
    # A call that was cut off in training goes on: only that is made again.
    (tmp_path / "run/policy/record.json").unlink()
    again = align(POLICY, Dataset.from_list(rows), **call)
    second = read_records(tmp_path / "run")
    assert [name for name in first if first[name]["build"] != second[name]["build"]] == ["policy"]
    assert again.metrics["final_loss"] == pytest.approx(aligned.metrics["final_loss"], rel=1e-4)
    with pytest.raises(UserError, match="pairs was made by another recipe"):
        align(POLICY, rows[:-1], **call)


def test_from_python_a_mistake_is_refused_in_the_same_words(tmp_path):
    with pytest.raises(UserError, match=r"training has no 'beat' \(did you mean beta\?\)"):
        align(POLICY, "pairs.jsonl", beat=0.1)
    with pytest.raises(UserError, match="training.loss_type has an unknown loss 'dpo'; known losses are sigmoid"):
        align(POLICY, "pairs.jsonl", loss="dpo")
    with pytest.raises(UserError, match="policy.instruction is set, but these pairs have their own prompts"):
        align(POLICY, "pairs.jsonl", policy={"instruction": "Say {article}"})
    (tmp_path / "pairs.jsonl").write_text("not JSON\n" * 3 + json.dumps({"prompt": "p", "chosen": "a", "rejected": ""}))
    with pytest.raises(UserError, match=r"no such folder, and not a hub name"):
        align("no/such/model", tmp_path / "pairs.jsonl", out=tmp_path / "run")


def test_rows_in_memory_are_kept_as_what_they_say(tmp_path, monkeypatch):
    user_message, assistant_message = ({"role": role, "content": role} for role in ("user", "assistant"))
    row = {
        "prompt": [user_message],
        "chosen": [assistant_message],
        "rejected": "no",
        "score": 0.5,
        "when": "2026-01-31",
    }
    arrays = {"prompt": np.array([user_message]), "chosen": np.array([assistant_message]), "score": np.float32(0.5)}
    monkeypatch.setattr("pipeline.execution.align.run_alignment", lambda settings, *_: settings.pairs)
    kept = align(POLICY, [row | arrays | {"when": date(2026, 1, 31)}], out=tmp_path / "run")
    assert json.loads(Path(kept).read_text()) == row
    assert align(POLICY, [row], out=tmp_path / "run") == kept
    for table in (pd.DataFrame([row]), pa.Table.from_pylist([row])):
        assert align(POLICY, table, out=tmp_path / "run") == kept
    empty = align(POLICY, pd.DataFrame([row, row | {"score": pd.NA, "when": pd.NaT}]), out=tmp_path / "run")
    assert json.loads(Path(empty).read_text().splitlines()[1]) == row | {"score": None, "when": None}
    with pytest.raises(UserError, match="pairs is one dict: give a list of dicts"):
        align(POLICY, row, out=tmp_path / "run")
    with pytest.raises(UserError, match="pairs has a row that is a str: give dicts"):
        align(POLICY, ["row"], out=tmp_path / "run")
    with pytest.raises(UserError, match="pairs has a bytes in the column picture"):
        align(POLICY, [row | {"picture": [b"png"]}], out=tmp_path / "run")


def test_rows_in_memory_are_not_written_to_a_folder_that_is_refused(finished_run):
    config, _, _ = finished_run
    before = sorted(Path(config.run).rglob("*"))
    with pytest.raises(UserError, match="was made by `rondo run`, in rounds"):
        align(POLICY, given(1), out=config.run)
    assert sorted(Path(config.run).rglob("*")) == before


# Export


@pytest.fixture(params=["messages", "text"])
def finished_run(tmp_path, request):
    """The folder of a run with pairs in two rounds, of a policy with and without a chat template."""
    model = POLICY
    if request.param == "text":
        model = str(tmp_path / "model")
        shutil.copytree(POLICY, model)
        Path(model, "chat_template.jinja").unlink()
    config = load_config(ROOT / "configs/demo.yaml", [f"policy.model={model}", f"run={tmp_path}/run"])
    ledger, tokens = Ledger(config.run), load_pair_tokenizer(model)
    run_folder.write_settings(ledger, config)
    for number, articles in ((1, ["The roof was red.", "Nobody came {article}."]), (2, ["The bill was 21 million."])):
        rows = [row(config, tokens, f"{number}-{i}", article) for i, article in enumerate(articles)]
        if number == 2:  # sampled letter by letter: the same text tokenized again is shorter
            letters = [i for c in "It was red." for i in tokens.tokenizer(c, add_special_tokens=False)["input_ids"]]
            rows[0]["summaries"][0]["token_ids"] = [*letters, tokens.tokenizer.eos_token_id]
        add_table(ledger, f"round-{number:02d}/pairs", rows, build=str(number))
    return config, ledger, request.param


def row(config, tokens, article_id, article):
    """A row as a round makes it, of three summaries and two pairs."""
    texts = ["It was red.", "It was.", "Reports say so."]
    messages = list(user(fill(config.policy.instruction, {"article": article})))

    def ids(text):
        other = "Something else."
        if tokens.has_chat_template:
            answers = [[{"role": "assistant", "content": answer}] for answer in (text, other)]
            return tokens.encode(Preference(messages, *answers))
        return tokens.encode(Preference(messages[0]["content"], text, other))

    return {
        "article_id": article_id,
        "article": article,
        "split": "train",
        "prompt_ids": ids(texts[0]).prompt,
        "summaries": [{"text": text, "token_ids": ids(text).chosen, "finish_reason": "stop"} for text in texts],
        "pairs": [{"chosen": 0, "rejected": 2, "reason": "r"}, {"chosen": 1, "rejected": 2, "reason": "r"}],
    }


def test_what_is_exported_reads_back_as_the_same_pairs(finished_run, tmp_path):
    config, ledger, kind = finished_run
    done = export_pairs(config, ledger, str(tmp_path / "out.jsonl"), number=1)
    assert (done.rounds, done.pairs, done.same_ids) == ((1,), 4, 4)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {tuple(line) for line in lines} == {("prompt", "chosen", "rejected")}
    assert isinstance(lines[0]["prompt"], list if kind == "messages" else str)
    (part,) = collect_pairs("b", pairs=str(tmp_path / "out.jsonl"), max_model_len=None, model=config.policy.model)
    back, rows = part.to_pylist(), [r for p in Path(config.run).glob("round-01/pairs/*.parquet") for r in read(p)]
    assert len(back) == len(rows) == 2
    for again, before in zip(back, rows, strict=True):
        assert again["prompt_ids"] == before["prompt_ids"]
        assert ids_of_pairs(again) == ids_of_pairs(before)


def read(part):
    return pq.read_table(part).to_pylist()


def ids_of_pairs(row):
    ids = [summary["token_ids"] for summary in row["summaries"]]
    return [(ids[pair["chosen"]], ids[pair["rejected"]]) for pair in row["pairs"]]


def test_text_that_is_tokenized_otherwise_is_counted(finished_run, tmp_path):
    config, ledger, _ = finished_run
    done = export_pairs(config, ledger, str(tmp_path / "all.jsonl"))
    assert (done.rounds, done.pairs, done.same_ids) == ((1, 2), 6, 5)
    exported = run_rondo("export", config.run, "--out", tmp_path / "two.jsonl", "--round", 2)
    assert exported.returncode == 0, exported.stderr
    assert "2 pairs of round 2" in exported.stdout
    assert "of 1 of them gives the token ids that were sampled" in exported.stdout


def test_a_round_that_is_not_there_is_refused(finished_run, tmp_path):
    config, ledger, _ = finished_run
    with pytest.raises(UserError, match="has no pairs of round 3; it has pairs of round 1, 2"):
        export_pairs(config, ledger, str(tmp_path / "out.jsonl"), number=3)
    with pytest.raises(UserError, match="has no pairs to export"):
        export_pairs(config, Ledger(str(tmp_path / "empty")), str(tmp_path / "out.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    there = sorted(tmp_path.iterdir())
    for out, line in (
        ("none/out.jsonl", "which cannot be written"),
        ("folder.jsonl", "which cannot be written: it is a folder"),
        ("out.csv", "it should be the name of a JSONL file"),
    ):
        with pytest.raises(UserError, match=f"--out is .*{line}"):
            export_pairs(config, ledger, str(tmp_path / out))
    assert sorted(tmp_path.iterdir()) == there, "nothing half written is left"
    assert not list(tmp_path.glob("out.jsonl*"))


def test_the_instruction_of_rounds_is_left_aside(tmp_path):
    demo = load_alignment(ROOT / "configs/demo.yaml", ["pairs=x.jsonl"])
    assert demo.policy.instruction == PolicySettings(model=POLICY).instruction
    ledger = Ledger(str(tmp_path))
    run_folder.write_settings(ledger, demo)
    text = ledger.read("config.yaml").replace("Write a very short summary", "Summarize in an earlier version")
    ledger.write("config.yaml", text)
    assert run_folder.read_settings(ledger).policy == demo.policy
    with pytest.raises(UserError, match="policy.instruction is set"):
        run_folder.read_settings(ledger, ["policy.instruction=Say {article}"])


def test_a_folder_is_of_one_command(finished_run):
    config, ledger, _ = finished_run
    own = parse_alignment({"run": config.run, "pairs": "x.jsonl", "policy": {"model": POLICY}})
    with pytest.raises(UserError, match="was made by `rondo run`, in rounds: choose another folder, such as run="):
        run_folder.check_command(ledger, own)
    run_folder.check_command(ledger, config)
