"""When cards are written, of what, and what they never say."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from jobs.sharing.merge import _write_card
from pipeline.config.loader import load_config, parse_alignment
from pipeline.execution.progress import Display
from pipeline.execution.runner import Runner
from pipeline.stages.policy import train_policy
from pipeline.storage import run_folder
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.model_files import node_cache
from pipeline.storage.model_files.card.public_names import PublicNames
from pipeline.storage.model_files.card.writing import write_policy_card
from tests.helpers.paths import POLICY_MODEL, ROOT

TRAINING = {"pairs": 6, "steps": 1, "eval_pairs": 40, "eval_accuracy_last": 0.8, "warnings": [], "seconds": 1.0}
TRAINING |= {"step0_loss": 0.69, "final_loss": 0.6, "tokens": 10, "tokens_naive": 20}
ADAPTER = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "/data/models/little-base"}


@pytest.fixture
def run(tmp_path):
    """A run of rounds with an unfinished policy in round 1, and a training on pairs of an adapter."""
    config = load_config(ROOT / "configs/demo.yaml", [f"policy.model={POLICY_MODEL}", f"run={tmp_path}/run"])
    ledger = Ledger(config.run)
    run_folder.write_settings(ledger, config)
    shutil.copytree(POLICY_MODEL, tmp_path / "run/round-01/policy")
    return config, ledger


def test_the_runner_writes_a_card_before_the_record(run):
    config, ledger = run
    runner = Runner(config, ledger, Display())
    rows = Artifact(ledger.root, "round-01/references", {"build": "r", "recipe": {}, "kept": 3, "parts": []})
    base = Artifact(ledger.root, "round-00/policy", {"build": "b", "recipe": {}, "model": str(POLICY_MODEL)})
    ledger.begin("round-01/policy", {"build": "p", "recipe": runner.recipe(train_policy, (rows, base))})
    job = runner._begin(train_policy, (rows, base), "round-01/policy")
    assert job.artifact.build == "p", "a training that an older version began is resumed"
    policy = runner._finish(job, {"model": "m", "digest": "d", "training": TRAINING}, started=0.0)
    text = ledger.read("round-01/policy/README.md")
    card = ModelCard(text)
    assert card.data.library_name == "transformers"
    assert 'name = "."' in card.text
    assert "had not been evaluated" in card.text
    assert str(ROOT) not in text
    assert ledger.find("round-01/policy") == policy
    assert "README.md" not in policy.record
    files = node_cache._model_files(ledger.fs, ledger.path("round-01/policy"))
    assert "README.md" not in {info.base_name for info in files}, "a card fetches no remote model again"


def test_the_card_of_an_adapter_of_own_pairs(tmp_path):
    raw = {
        "run": str(tmp_path / "run"),
        "pairs": "/data/private/pairs.jsonl",
        "policy": {"model": "/data/models/little-base"},
    }
    settings = parse_alignment(raw | {"training": {"lora": {"r": 4, "lora_alpha": 8}, "loss_type": "ipo"}})
    ledger = Ledger(settings.run)
    shutil.copytree(
        POLICY_MODEL, tmp_path / "run/policy", ignore=shutil.ignore_patterns("*.safetensors", "config.json")
    )
    ledger.write("policy/adapter_config.json", json.dumps(ADAPTER))
    policy = Artifact(ledger.root, "policy", {"build": "p", "recipe": {}, "training": TRAINING})
    text = write_policy_card(ledger, settings, policy, PublicNames(), None, repo="ann/news")
    card = ModelCard(text)
    assert card.data.library_name == "peft"
    assert {"ipo", "lora"} <= set(card.data.tags)
    assert "dpo" not in card.data.tags
    assert card.data.license is None
    for part in (
        "AutoPeftModelForCausalLM",
        "max_lora_rank=8",
        'LLM("little-base", ',
        "80% of pairs",
        "pairs.jsonl, a file",
    ):
        assert part in card.text
    assert "/data" not in text
    for program in card.text.split("```python\n")[1:]:
        compile(program.split("```")[0], "card", "exec")


def test_a_merged_model_has_the_card_of_its_run_or_a_short_one(run, tmp_path):
    _, ledger = run
    ledger.write("round-01/policy/adapter_config.json", json.dumps(ADAPTER))
    adapter = f"{ledger.root}/round-01/policy"
    out = shutil.copytree(POLICY_MODEL, tmp_path / "merged")
    short = _write_card(adapter, adapter, str(out))
    assert "the LoRA adapter policy added" in short
    ledger.finish("round-01/policy", {"build": "p", "recipe": {}, "training": TRAINING})
    whole = _write_card(adapter, adapter, str(out))
    assert "## The judge" in whole
    for card in (short, whole):
        assert "AutoModelForCausalLM.from_pretrained(name" in card
        assert "peft" not in card.casefold()
        assert "/data" not in card


segments = st.from_regex(r"[A-Za-z0-9_@+-][A-Za-z0-9_.@+-]{0,8}[A-Za-z0-9_]", fullmatch=True)


@given(st.lists(segments, min_size=2, max_size=5), st.sampled_from(["see {}", "`{}`", "at {}, and", '"{}"', "({})"]))
def test_no_path_stays_in_a_text(parts, sentence):
    hidden = PublicNames().hide(sentence.format("/" + "/".join(parts)))
    assert hidden == sentence.format(parts[-1])


@pytest.mark.parametrize(
    "text",
    ["and/or", "https://huggingface.co/ann/news", "ann/news", "70% / 30%", "1/2/3", "</think>", "words/second/GPU"],
)
def test_what_is_no_path_stays(text):
    assert PublicNames().hide(text) == text


@pytest.mark.parametrize(
    ("location", "name", "is_local"),
    [
        ("ann/news", "ann/news", False),
        ("hf:ann/news/x:train", "hf:ann/news/x:train", False),
        ("s3://bucket/models/small", "small", True),
        ("/home/ann/models/small/", "small", True),
        ("runs/models/small", "small", True),
        ("models/small", "small", True),  # like a hub name, but a recipe has its fingerprint
        ("/c/hub/models--ann--news/snapshots/0123abcd", "ann/news", False),
        ("/data/copy", "ann/copied", False),  # the user says which model of the hub it is
    ],
)
def test_hub_names_stay_and_places_lose_their_path(location, name, is_local):
    names = PublicNames(frozenset({"models/small", "runs/models/small"}), {"/data/copy": "ann/copied"})
    assert (names.name(location), names.is_local(location)) == (name, is_local)
    assert names.hide_in({"a": [location], "n": 1}) == {"a": [name], "n": 1}


def test_a_card_is_text_on_any_machine():
    """No template of a card has a path of this machine."""
    for template in Path(ROOT).glob("**/*card*.j2"):
        assert PublicNames().hide(template.read_text()) == template.read_text()
