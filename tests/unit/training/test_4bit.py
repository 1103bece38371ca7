"""QLoRA: an adapter on a base in 4 bits, its references, and what is written."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.config.training import FourBit, Lora, References, Training, check_4bit
from pipeline.training import consistency
from pipeline.training.modeling import loading
from pipeline.training.modeling.fsdp import PolicyModule, full_state_dict
from tests.helpers.training import LORA, learnable_examples, lora_loop, save_lora_base

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: make dev")

IN_4BIT = FourBit().model_dump()


@pytest.fixture(scope="module", autouse=True)
def no_compilation() -> Iterator[None]:
    """bitsandbytes compiles its kernels for a CPU, which takes most of a minute."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lora_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def first(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of a first round, which was trained on the base in 4 bits."""
    out = tmp_path_factory.mktemp("first") / "policy"
    loop = lora_loop(base, learnable_examples(base, load_in_4bit=IN_4BIT), load_in_4bit=IN_4BIT)
    answer = loop.run()
    loop.save(out)
    assert answer["step0_loss"] == pytest.approx(math.log(2), abs=1e-6) and answer["final_loss"] < 0.65
    return out


def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(torch.arange(20)[None]).logits


def test_linear_layers_are_quantized_and_neither_the_head_nor_the_adapter_is(base: Path) -> None:
    policy = loading.load_policy(base, "bfloat16", LORA, seed=0, load_in_4bit=IN_4BIT)
    quantized = {
        name.split(".")[-2] for name, module in policy.named_modules() if isinstance(module, bnb.nn.Linear4bit)
    }
    assert {n.rpartition(".")[2] for n, m in policy.named_modules() if isinstance(m, bnb.nn.Linear4bit)} == {
        "base_layer"
    }
    assert quantized == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert policy.get_output_embeddings().weight.dtype == torch.bfloat16
    trained = {name: p.dtype for name, p in policy.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained) and set(trained.values()) == {torch.bfloat16}


def test_the_reference_and_a_fresh_adapter_are_the_same_function_with_and_without_gradients(base: Path) -> None:
    """bitsandbytes computes in bfloat16 on some CPUs where no gradient is needed."""
    reference = loading.load_model(base, "float32", load_in_4bit=IN_4BIT).requires_grad_(False)
    policy = loading.load_policy(base, "float32", LORA, seed=0, load_in_4bit=IN_4BIT)
    with torch.no_grad():
        expected = logits(reference)
    torch.testing.assert_close(logits(policy).detach(), expected, rtol=1e-5, atol=1e-5)
    assert (expected - logits(loading.load_model(base, "float32")).detach()).abs().max() > 1e-2


@pytest.mark.slow
def test_the_next_round_starts_from_its_own_reference(base: Path, first: Path) -> None:
    """With references of the base in full precision, the margins at step 0 are not 0, and training stops."""
    config = json.loads((first / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    second = lora_loop(first, learnable_examples(first, load_in_4bit=IN_4BIT), load_in_4bit=IN_4BIT)
    assert second.run()["step0_loss"] == pytest.approx(math.log(2), abs=1e-6)
    with pytest.raises(ValueError, match="at step 0, before any update"):
        lora_loop(first, learnable_examples(first), load_in_4bit=IN_4BIT).run()
    examples = learnable_examples(base, load_in_4bit=IN_4BIT)
    in_4bit, in_full = (PolicyModule(loading.load_model(base, "float32", load_in_4bit=q)) for q in (IN_4BIT, None))
    device = torch.device("cpu")
    consistency.check_reference(in_4bit, "base", examples, "float32", device)
    with pytest.raises(ValueError, match="other weights, another dtype"):
        consistency.check_reference(in_full, "base", examples, "float32", device)


@pytest.mark.slow
@pytest.mark.parametrize("use_dora", [False, True])
def test_an_adapter_is_merged_into_the_base_in_full_precision(base: Path, tmp_path: Path, use_dora: bool) -> None:
    lora = LORA | {"merge": True, "use_dora": use_dora}
    loop = lora_loop(base, learnable_examples(base, load_in_4bit=IN_4BIT), lora=lora, load_in_4bit=IN_4BIT)
    loop.run()
    state = full_state_dict(loop.policy, keep=True)
    assert all(".lora_" in name for name in state)
    loop.save(tmp_path / "merged")
    expected = loading.load_policy(base, "float32", lora, seed=0)
    expected.load_state_dict(state, strict=False)
    merged = loading.load_model(tmp_path / "merged", "float32")
    torch.testing.assert_close(logits(merged), logits(expected), rtol=1e-3, atol=1e-4)
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())


def test_an_engine_is_compared_with_the_trainer_only_if_it_was_before_training(first: Path) -> None:
    """Its base is in full precision, so how far it may be off is only known where it was measured."""
    assert not (first / "engine_check.json").exists()
    loop = lora_loop(first, learnable_examples(first, load_in_4bit=IN_4BIT), load_in_4bit=IN_4BIT)
    passport = {"dtype": "float32", "vllm_vs_trainer_max": 0.2}
    check = consistency.make_engine_check(loop.policy, loop.train, loop.device, passport, is_exact=False)
    assert check is not None and check.limit == pytest.approx(0.4)


def test_what_needs_the_base_in_full_precision_is_refused() -> None:
    settings = Training(lora=Lora(), load_in_4bit=True)
    check_4bit(settings, References(), workers=1, cpu_offload=False)
    check_4bit(Training(), References(source="sampler"), workers=8, cpu_offload=True)
    for change, line in (
        ({"workers": 2}, "hardware.trainer.workers is 2: weights in 4 bits are not sharded"),
        ({"cpu_offload": True}, "hardware.trainer.cpu_offload is true: weights in 4 bits are not sharded"),
        ({"references": References(source="sampler")}, "references.source is sampler"),
    ):
        with pytest.raises(ValueError, match=line):
            check_4bit(settings, **{"references": References(), "workers": 1, "cpu_offload": False} | change)
