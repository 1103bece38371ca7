"""What `align` starts from: a model, a folder of mergekit, a policy of an earlier run, or an adapter."""

import json
import shutil

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import pipeline.execution.align
from pipeline import align
from pipeline.config import UserError
from pipeline.config.loader import load_config, parse_alignment
from pipeline.storage import run_folder
from pipeline.storage.ledger import Ledger
from tests.helpers.paths import DEMO, POLICY_MODEL


@pytest.fixture
def settings(monkeypatch):
    """The settings that the call would train with."""
    monkeypatch.setattr(pipeline.execution.align, "run_alignment", lambda settings, display, remake: settings)
    return lambda **start: align(pairs="pairs.jsonl", **start)


@pytest.fixture
def adapter(tmp_path):
    """An adapter of the newsroom's policy, on two kinds of layers."""
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(POLICY_MODEL), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def write_champion(folder, model):
    ledger = Ledger(str(folder))
    run_folder.write_settings(ledger, load_config(DEMO, [f"run={folder}"]))
    ledger.write(run_folder.CHAMPION, json.dumps({"round": 1, "model": str(model)}))


def test_a_model_and_a_merged_model(settings, tmp_path):
    assert settings(model=POLICY_MODEL).policy.model == str(POLICY_MODEL)
    assert settings(model=POLICY_MODEL).run == "runs/policy-aligned"
    merged = shutil.copytree(POLICY_MODEL, tmp_path / "merged")
    with pytest.raises(UserError, match=r"merged is '.*merged', which has no mergekit_config.yml: .* use model="):
        settings(merged=merged)
    (merged / "mergekit_config.yml").write_text("merge_method: slerp\n")
    assert settings(merged=merged).policy.model == str(merged)


def test_an_adapter_brings_its_own_settings_of_lora(settings, adapter):
    lora = settings(adapter=adapter).training.lora
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (3, 5, ("q_proj", "up_proj"))
    assert settings(adapter=adapter, lora={"r": 4}).training.lora.r == 4  # refused later: it does not match
    with pytest.raises(UserError, match=r"has no adapter_config.json: use model="):
        settings(adapter=POLICY_MODEL)


def test_the_policy_of_an_earlier_run(settings, adapter, tmp_path):
    write_champion(tmp_path / "rounds", POLICY_MODEL)
    started = settings(aligned=tmp_path / "rounds")
    assert (started.policy.model, started.training.lora) == (str(POLICY_MODEL), None)
    assert started.run == "runs/rounds-aligned"
    write_champion(tmp_path / "rounds", adapter)
    assert settings(aligned=tmp_path / "rounds").training.lora.r == 3

    ledger = Ledger(str(tmp_path / "trained"))
    run_folder.write_settings(
        ledger,
        parse_alignment({"run": ledger.root, "pairs": "pairs.jsonl", "policy": {"model": str(POLICY_MODEL)}}),
    )
    with pytest.raises(UserError, match="has no trained policy yet: finish it with `rondo train`"):
        settings(aligned=ledger.root)
    ledger.write("policy/record.json", json.dumps({"build": "b", "recipe": {}, "model": str(POLICY_MODEL)}))
    assert settings(aligned=ledger.root).policy.model == str(POLICY_MODEL)


def test_a_folder_of_another_kind_is_refused(settings, tmp_path):
    write_champion(tmp_path / "rounds", POLICY_MODEL)
    with pytest.raises(UserError, match="the folder of a run: use aligned="):
        settings(model=tmp_path / "rounds")
    with pytest.raises(UserError, match=r"holds no run: it has no config.yaml"):
        settings(aligned=POLICY_MODEL)


def test_exactly_one_start_is_given(settings):
    with pytest.raises(UserError, match="one of model, merged, aligned and adapter, and got none"):
        settings()
    with pytest.raises(UserError, match="and got model='a' and adapter='b'"):
        settings(model="a", adapter="b")
    with pytest.raises(UserError, match="pairs is missing"):
        align("model")
