"""`rondo push` against a local hub, with the real `huggingface_hub` as the client; and the cards that it pushes."""

import getpass
import json
import shutil
import socket
import sys

import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard, ModelCard, constants
from pyarrow.fs import copy_files

from jobs.cli import main
from judges.base import fill, user
from pipeline.config.loader import load_config
from pipeline.data.pair_tokenizer import load_pair_tokenizer
from pipeline.data.preference_formats import Preference
from pipeline.execution.recipe import fingerprint
from pipeline.storage import run_folder
from pipeline.storage.files import open_location
from pipeline.storage.ledger import Ledger
from pipeline.storage.model_files.card import is_own_card
from pipeline.storage.model_files.card.public_names import public_names
from pipeline.storage.model_files.card.writing import read_license, write_policy_card
from pipeline.training.modeling.loading import weights_digest
from tests.helpers import s3_server
from tests.helpers.paths import POLICY_MODEL, ROOT
from tests.helpers.tables import add_table
from tests.integration.sharing import hub_server
from tests.integration.sharing.hub_server import OWNER, TOKEN

ARTICLE = "The roof was red. Nobody came."
TEXTS = ("It was red.", "Reports say so.")
TRAINING = {"pairs": 1, "eval_pairs": 0, "warnings": []}
SCORE = {"answers": ["A"], "correct": 1, "unread": 0, "words": 3, "invalid_chars": 0, "value": 1.0, "items": [1.0]}
QUESTION = {"question_id": "q", "question": "What was red?", "options": ["roof", "door"], "answer": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two rounds, whose base is a local folder. Round 1 is the champion; round 2 is not evaluated."""
    place = tmp_path_factory.mktemp("secret-place")
    base = shutil.copytree(POLICY_MODEL, place / "little-base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Little base\n")
    config = load_config(ROOT / "configs/demo.yaml", [f"policy.model={base}", f"run={place}/run", "second_judge=null"])
    ledger, tokens = Ledger(config.run), load_pair_tokenizer(str(base))
    run_folder.write_settings(ledger, config)
    ledger.finish("round-00/policy", {"build": "b", "recipe": {"contents": {"policy.model": "f"}}, "model": str(base)})
    for number, before in ((1, "round-00"), (2, "round-01")):
        folder = run_folder.round_folder(number)
        shutil.copytree(base, place / "run" / folder / "policy", ignore=shutil.ignore_patterns("README.md"))
        settings = place / "run" / folder / "policy/config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"_name_or_path": str(base)}))
        messages = list(user(fill(config.policy.instruction, {"article": ARTICLE})))
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in TEXTS)
        ids = tokens.encode(Preference(messages, chosen, rejected))
        summaries = [
            {"text": text, "token_ids": each, "finish_reason": "stop"}
            for text, each in zip(TEXTS, (ids.chosen, ids.rejected), strict=True)
        ]
        row = {"article_id": "a", "article": ARTICLE, "split": "train", "questions": [QUESTION], "writer": "b"}
        row |= {
            "prompt_ids": ids.prompt,
            "summaries": summaries,
            "scores": [SCORE, SCORE | {"correct": 0, "value": 0.0}],
        }
        add_table(ledger, f"{folder}/scores", [row])
        add_table(ledger, f"{folder}/pairs", [row | {"pairs": [{"chosen": 0, "rejected": 1, "reason": "1 over 0"}]}])
        recipe = {"inputs": {f"{folder}/pairs": "build-1", f"{before}/policy": "b"}}
        record = {"build": f"p{number}", "recipe": recipe, "model": f"{place}/run/{folder}/policy"}
        policy = ledger.finish(f"{folder}/policy", record | {"training": TRAINING})
        card = write_policy_card(ledger, config, policy, public_names(ledger, config), read_license(str(base)))
        (place / "run" / folder / "policy/README.md").write_text(card)
    rate = {"win_rate": 0.75, "low": 0.6, "high": 0.9, "n": 40, "wins": 30, "ties": 0, "losses": 10, "better": True}
    figures = {"n": 40, "words_median": 20.0, "cut_off": 0.05, "vs_base": {"strict": rate}}
    judge = {"ceiling": 0.95, "checked": 200, "reliability": None}
    metrics = {
        "rounds": [figures | {"round": 1, "training": TRAINING}],
        "base": {"words_median": 30.0, "cut_off": 0.5},
        "baselines": {"lead": {"vs_base": {"strict": rate | {"win_rate": 0.125}}}},
        "test": None,
        "confidence": 0.95,
        "judge": judge,
        "notes": [f"Round 1 is fine, see {place}/run/report.md.", "Round 2 is not."],
    }
    ledger.write("metrics.json", json.dumps(metrics))
    ledger.write("champion.json", json.dumps({"round": 1}))
    return place / "run"


@pytest.fixture(scope="module")
def server():
    with hub_server.serving() as hub:
        yield hub


@pytest.fixture
def hub(server, monkeypatch):
    """The hub without repositories, and an environment that points there with the right token."""
    server.repos.clear()
    server.requests.clear()
    server.fail = 0
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files go by LFS
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    return server


@pytest.fixture
def push(run, monkeypatch, capsys):
    """Run `rondo push` in this process. Gives the exit status, stdout and stderr."""

    def call(*options, folder=run):
        monkeypatch.setattr(sys, "argv", ["rondo", "push", str(folder), *map(str, options)])
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = ended.code
        printed = capsys.readouterr()
        assert TOKEN not in printed.out + printed.err
        return status, printed.out, printed.err

    return call


def leaks(files, run):
    """What of this machine is in the files: a path, the folder of the run, or the name of the host."""
    secrets = [str(run.parent), run.parent.name, "/tmp/", "/root", "/home/", TOKEN]
    secrets += [name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 5]
    return [(name, secret) for name, data in files.items() for secret in secrets if secret.encode() in data]


def test_the_champion_is_pushed_with_its_card(run, hub, push):
    status, out, err = push("--to", f"{OWNER}/news", "--private")
    assert status == 0, err
    assert out == f"{hub.url}/{OWNER}/news: model of round 1\n"
    repo = hub.repos[f"models/{OWNER}/news"]
    files = repo.branches["main"]
    assert repo.private
    assert repo.commits == ["Add model of round 1"]
    assert set(files) == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert files["model.safetensors"] == (run / "round-01/policy/model.safetensors").read_bytes()
    assert json.loads(files["config.json"])["_name_or_path"] == "little-base"
    assert leaks(files, run) == []
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert card.data.base_model is None, "a local folder is no model that others can fetch"
    assert {"rondo", "dpo", "generated_from_trainer"} <= set(card.data.tags)
    assert card.data.eval_results[0].metric_value == 0.75
    for part in (
        "**little-base**",
        "| 75.0% | 60.0% to 90.0% | 40 |",
        "12.5%",
        "95.0% | 200 questions",
    ):
        assert part in card.text
    assert "Round 1 is fine, see run/report.md" in card.text.replace("\\", "")
    assert "Round 2" not in card.text


def test_another_round_branch_and_message_replace_old_weights(hub, push):
    options = ("--round", 2, "--revision", "second", "--commit-message", "Try this", "--base", "owner/base")
    hub.repos[f"models/{OWNER}/news"] = hub_server.Repo(
        branches={"main": {"adapter_config.json": b"{}", "keep.txt": b""}}
    )
    status, out, err = push("--to", f"{OWNER}/news", *options)
    assert status == 0, err
    assert out == f"{hub.url}/{OWNER}/news/tree/second: model of round 2\n"
    repo = hub.repos[f"models/{OWNER}/news"]
    files = repo.branches["second"]
    assert repo.commits == ["Try this"]
    assert "adapter_config.json" not in files
    assert "keep.txt" in files
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == "owner/base"
    assert card.data.eval_results is None
    assert "2 rounds" in card.text
    assert "had not been evaluated" in card.text


def test_pairs_and_scores_are_pushed_as_a_data_set(run, hub, push, tmp_path):
    status, out, err = push("--to", f"{OWNER}/pairs", "--dataset")
    assert status == 0, err
    assert out == f"{hub.url}/datasets/{OWNER}/pairs: 2 pairs and 4 scored summaries\n"
    files = hub.repos[f"datasets/{OWNER}/pairs"].branches["main"]
    assert leaks(files, run) == []
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    pairs = pq.read_table(tmp_path / "pairs/round-02.parquet", partitioning=None)
    assert pairs.column_names[:3] == ["prompt", "chosen", "rejected"]
    (pair,) = pairs.to_pylist()
    assert pair["chosen"] == [{"role": "assistant", "content": TEXTS[0]}]
    assert pair["chosen_score"]["answers"] == ["A"]
    assert (pair["chosen_writer"], pair["round"], pair["questions"][0]["answer"]) == ("base", 2, 0)
    assert pq.read_table(tmp_path / "scores/round-01.parquet", partitioning=None)["summary"].to_pylist() == list(TEXTS)
    card = DatasetCard((tmp_path / "README.md").read_text())
    assert [each["config_name"] for each in card.data.configs] == ["pairs", "scores"]
    from datasets import load_dataset

    assert load_dataset(str(tmp_path), "pairs", split="train", cache_dir=str(tmp_path / "cache")).num_rows == 2


def test_a_dry_run_shows_the_folder_and_pushes_nothing(run, hub, push, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    status, out, err = push("--to", f"{OWNER}/news", "--dry-run", "--out", tmp_path / "shown")
    assert status == 0, err
    assert hub.requests == []
    assert (tmp_path / "shown/model.safetensors").is_file()
    assert not (tmp_path / "shown/model.safetensors").is_symlink()
    assert "MiB  model.safetensors" in out
    assert "library_name: transformers" in out
    assert weights_digest(tmp_path / "shown") == weights_digest(run / "round-01/policy")


@pytest.mark.slow
def test_a_run_in_an_object_store_is_pushed_too(run, hub, push, monkeypatch, tmp_path):
    for name, value in s3_server.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with s3_server.serving() as bucket:
        fs, path = open_location(f"{bucket}/runs/mine")
        copy_files(str(run), path, destination_filesystem=fs)
        assert push("--to", f"{OWNER}/news", folder=f"{bucket}/runs/mine")[0] == 0
        assert push("--to", f"{OWNER}/pairs", "--dataset", folder=f"{bucket}/runs/mine")[0] == 0
    files = hub.repos[f"models/{OWNER}/news"].branches["main"]
    assert files["model.safetensors"] == (run / "round-01/policy/model.safetensors").read_bytes()
    assert leaks(files, run) == []
    assert b"bucket" not in files["README.md"]
    assert set(hub.repos[f"datasets/{OWNER}/pairs"].branches["main"]) == {
        "README.md", "pairs/round-01.parquet", "pairs/round-02.parquet", "scores/round-01.parquet",
        "scores/round-02.parquet",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--to", "news"], "--to is 'news': it should be OWNER/NAME"),
        (["--to", "a b/c"], "--to is 'a b/c': it should be OWNER/NAME"),
        (["--to", "somebody/news"], "somebody/news cannot be written: it belongs to somebody else"),
        (["--to", f"{OWNER}/public", "--private"], f"--private is set, and {OWNER}/public exists and is public"),
        (["--to", "other/public"], "other/public cannot be written: it belongs to somebody else"),
        (["--to", f"{OWNER}/x", "--round", "7"], "has no round-07/policy; it has policies of round 1, 2"),
        (["--to", f"{OWNER}/x", "--dataset", "--round", "7"], "has no pairs of round 7; it has pairs of round 1, 2"),
        (["--to", f"{OWNER}/x", "--out", "y"], "--out is set, and only --dry-run leaves a folder"),
    ],
)
def test_a_mistake_is_one_line(hub, push, options, line):
    hub.repos |= {f"models/{owner}/public": hub_server.Repo() for owner in (OWNER, "other")}
    status, _, err = push(*options)
    assert status == 2
    assert line in err
    assert err.count("\n") == 1


def test_what_the_hub_or_the_network_refuses_is_one_line(hub, push, monkeypatch, tmp_path):
    to = ("--to", f"{OWNER}/news")
    hub.fail = 503
    assert "is busy or has a fault (status 503): repeat the command later" in push(*to)[2]
    monkeypatch.setenv("HF_TOKEN", "hf_WrongToken987654321")
    status, _, err = push(*to)
    assert (status, err.count("\n")) == (2, 1)
    assert "refuses the token: make another with the role write" in err
    assert "hf_WrongToken987654321" not in err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    status, _, err = push(*to)
    assert (status, err.count("\n")) == (2, 1)
    assert "there is no token for the hub" in err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    status, _, err = push(*to)
    assert (status, err.count("\n")) == (2, 1)
    assert f"the hub cannot be reached at {nobody}" in err


def test_a_card_changes_no_identity(run, tmp_path):
    folder = shutil.copytree(run / "round-01/policy", tmp_path / "policy")
    assert is_own_card((folder / "README.md").read_bytes())
    before, digest = fingerprint(str(folder)), weights_digest(folder)
    (folder / "README.md").unlink()
    fingerprint.cache_clear()
    assert fingerprint(str(folder)) == before
    assert weights_digest(folder) == digest
    (folder / "README.md").write_text("# A card that came with the model")
    fingerprint.cache_clear()
    assert fingerprint(str(folder)) != before, "as in versions that knew no cards"


def test_the_snippet_of_a_card_runs_as_it_is(run, monkeypatch, capsys):
    card = (run / "round-01/policy/README.md").read_text()
    program, other = (part.split("```")[0] for part in card.split("```python\n")[1:])
    compile(other, "vllm", "exec")
    monkeypatch.chdir(run / "round-01/policy")
    exec(compile(program, "transformers", "exec"), {})
    assert capsys.readouterr().out.strip()
