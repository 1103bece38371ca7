"""A new policy is loaded into a running vLLM engine: nothing of the old weights stays, and a wrong load is caught."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from judges.base import Prompt, user
from pipeline.config import UserError
from pipeline.config.hardware import EngineHardware
from pipeline.config.training import Lora
from pipeline.inference import vllm as vllm_module
from pipeline.inference.vllm import VllmEngine, VllmFactory
from pipeline.training.batches.example import Example
from pipeline.training.batches.example_table import ExampleTable
from pipeline.training.consistency import make_engine_check
from pipeline.training.modeling import loading
from pipeline.training.modeling.fsdp import PolicyModule
from pipeline.training.modeling.logprobs import plain_logps
from tests.helpers.paths import POLICY_MODEL as POLICY

ARTICLE = "Summarize.\n" + "Officials said the scene was in Lima. The team was headed by Ana Santos. " * 4
PROMPT = Prompt(user(ARTICLE), max_tokens=24, temperature=0.0, logprobs=True)
LORA = Lora(r=4, lora_alpha=8).model_dump()
PASSPORT = {"dtype": "float32", "vllm_vs_trainer_max": 1e-6}


def examples() -> list[Example]:
    draw = np.random.default_rng(0)
    return [
        Example(f"a{i}", draw.integers(3, 700, 40), tuple(draw.integers(3, 700, 12) for _ in range(2)), ((0, 1),), ())
        for i in range(5)
    ]


def write_check(folder: Path) -> Path:
    """Write the check that the trainer writes with the weights in the folder."""
    policy = PolicyModule(loading.load_model(str(folder), "float32", article_tree=True))
    make_engine_check(policy, ExampleTable.of(examples()), torch.device("cpu"), PASSPORT).write(folder)
    return folder


def changed(folder: Path, seed: int) -> Path:
    """The demo's policy with other weights."""
    shutil.copytree(POLICY, folder)
    torch.manual_seed(seed)
    weights = {
        name: value + 0.02 * torch.randn_like(value) for name, value in load_file(POLICY / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return write_check(folder)


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    return [changed(tmp_path_factory.mktemp("policies") / f"round-{seed}", seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter on the demo's policy, as the trainer writes it."""
    model = loading.load_policy(POLICY, "float32", LORA, seed=0)
    torch.manual_seed(3)
    state = {name: value for name, value in model.state_dict().items() if "lora_" in name}
    for name, value in state.items():
        if "lora_B" in name:
            value += 0.1 * torch.randn_like(value)
    folder = tmp_path_factory.mktemp("adapter")
    loading.save_model(state, POLICY, folder, LORA)
    return write_check(folder)


@pytest.fixture(scope="module")
def engine():
    engine = VllmEngine(str(POLICY), "float32", 512, seed=0, hardware=EngineHardware(), lora_rank=4)
    yield engine
    engine.close()


def gap(engine: VllmEngine, folder: Path) -> float:
    """How far the engine's log-probability of its own sample is from that of the weights in the folder, in nats."""
    (reply,) = engine.generate([PROMPT])
    (sample,) = reply.samples
    model = loading.load_model(str(folder), "float32", article_tree=False)
    with torch.no_grad():
        return abs(sample.logp - plain_logps(model, reply.prompt_ids, [sample.token_ids]).item())


def test_after_a_load_the_log_probabilities_are_those_of_the_new_weights(engine, policies, adapter):
    """The prompt is in the prefix cache before each load."""
    assert gap(engine, POLICY) < 1e-3
    (again,) = engine.generate([PROMPT])
    assert again.cached_tokens > 0
    for folder in (policies[0], policies[1], policies[0], POLICY, adapter, policies[1], adapter):
        base = POLICY if folder == adapter else folder
        VllmFactory(str(folder), "float32", 512, EngineHardware(), None, "policy").update(engine)
        assert gap(engine, folder) < 1e-3, folder
        if base is not folder:
            assert gap(engine, base) > 0.1  # the adapter itself is served, not its base
    shutil.copy(policies[0] / "model.safetensors", policies[1])
    with pytest.raises(
        UserError, match=r"has loaded .*round-2, .* it serves other weights. Set hardware.keep_engines="
    ):
        engine.load(str(policies[1]))


def test_a_load_that_leaves_old_weights_behind_is_caught(engine, policies, monkeypatch):
    """`reload_weights` alone leaves a tied head as it was, on a CPU."""
    engine.load(str(POLICY))
    monkeypatch.setattr(vllm_module, "_pack_tied_head", lambda worker: None)
    with pytest.raises(UserError, match="log-probabilities differ from the trainer's by up to"):
        engine.load(str(policies[0]))
