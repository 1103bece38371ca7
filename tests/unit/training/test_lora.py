"""LoRA: a fresh adapter changes nothing, a later one is its own reference, and PEFT can read what is written."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.config import UserError
from pipeline.config.training import Lora
from pipeline.execution.recipe import fingerprint
from pipeline.storage.model_files.hub import check_lora, check_model
from pipeline.training.modeling import loading
from tests.helpers.tiny_models import save_tiny_model
from tests.helpers.training import (
    LORA,
    LORA_VOCABULARY,
    FolderCheckpointStore,
    learnable_examples,
    lora_loop,
    save_lora_base,
    train_lora_round,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lora_base(tmp_path_factory.mktemp("base"))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(20)[None]).logits


def trained(base: Path, out: Path, draw: int = 1, **lora: Any) -> Path:
    """Write an adapter that changes the model."""
    settings = LORA | lora
    model = loading.load_policy(base, "float32", settings, seed=0)
    generator = torch.Generator().manual_seed(draw)
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for tensor in state.values():
        tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
    loading.save_model(state, base, out, settings)
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fresh_adapter_changes_nothing_and_depends_on_the_seed_alone(base: Path, dtype: str) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, same, other = (loading.load_policy(base, dtype, LORA, seed) for seed in (0, 0, 1))

    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(logits(first), logits(loading.load_model(base, dtype)), rtol=0, atol=0)
    torch.testing.assert_close(first.state_dict(), same.state_dict(), rtol=0, atol=0)
    q_proj = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert not torch.equal(first.state_dict()[q_proj], other.state_dict()[q_proj])
    assert {p.dtype for p in first.parameters()} == {getattr(torch, dtype)}
    learning = {name for name, p in first.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * 7 * 2 and all(".lora_" in name for name in learning)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_written_adapter_can_be_read_by_rondo_and_by_peft(base: Path, tmp_path: Path, use_rslora: bool) -> None:
    out = trained(base, tmp_path / "adapter", use_rslora=use_rslora)
    ours = loading.load_model(out, "float32").train()  # in any mode

    assert (logits(ours) - logits(loading.load_model(base, "float32"))).abs().max() > 0.1
    torch.testing.assert_close(logits(ours), logits(AutoPeftModelForCausalLM.from_pretrained(out).eval()))
    assert {name for name, p in ours.named_parameters() if p.requires_grad} == {
        name for name, _ in ours.named_parameters() if ".lora_" in name
    }
    assert (out / "chat_template.jinja").is_file()
    loading.save_model(ours, base, tmp_path / "again", LORA | {"use_rslora": use_rslora})
    assert loading.weights_digest(tmp_path / "again") == loading.weights_digest(out)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)


def test_an_adapter_written_by_peft_can_be_read(base: Path, tmp_path: Path) -> None:
    """It has a pattern for its layers, some layers only, and dropout, which Rondo never writes."""
    config = LoraConfig(r=2, target_modules=r".*\.1\.self_attn\.(q|v)_proj", lora_dropout=0.5, init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(raw | {"init_lora_weights": True}))

    torch.testing.assert_close(logits(loading.load_model(tmp_path, "float32").train()), logits(model.eval()))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merging_keeps_the_function(base: Path, tmp_path: Path, family: str) -> None:
    if family == "gpt2":  # its linear layers are transposed
        base = save_tiny_model(tmp_path / "base", "gpt2", vocab_size=LORA_VOCABULARY)
    adapter = trained(base, tmp_path / "adapter")
    expected = logits(loading.load_model(adapter, "float32"))

    result = CliRunner().invoke(app, ["merge", str(adapter), "--out", str(tmp_path / "merged")])
    assert result.exit_code == 0, result.output
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert merged.state_dict().keys() == AutoModelForCausalLM.from_pretrained(base).state_dict().keys()
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    if family == "llama":
        assert json.loads((tmp_path / "merged" / "config.json").read_text())["attention_dropout"] == 0.1
    again = CliRunner().invoke(app, ["merge", str(adapter), "--out", str(tmp_path / "merged")])
    assert isinstance(again.exception, UserError) and "does not exist yet" in str(again.exception)


def test_dora_is_trained_and_merged(base: Path, tmp_path: Path) -> None:
    dora = Lora(**LORA | {"merge": True, "use_dora": True}).model_dump()
    fresh = loading.load_policy(base, "float32", dora, seed=0)
    torch.testing.assert_close(logits(fresh), logits(loading.load_model(base, "float32")), rtol=1e-4, atol=1e-5)
    loop = lora_loop(base, learnable_examples(base), lora=dora)
    result = loop.run()
    assert abs(result["step0_loss"] - math.log(2)) < 1e-6 and result["final_loss"] < 0.6
    before, after = dict(fresh.named_parameters()), dict(loop.policy.model.named_parameters())
    magnitudes = [name for name in after if "lora_magnitude_vector" in name]
    assert len(magnitudes) == 2 * 7 and not any(torch.equal(before[name], after[name]) for name in magnitudes)

    loop.save(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), logits(loop.policy.model), rtol=1e-4, atol=1e-4)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_the_digest_covers_base_adapter_and_scale(base: Path, tmp_path: Path) -> None:
    adapter = trained(base, tmp_path / "adapter")
    other_base = shutil.copytree(base, tmp_path / "base")
    tensors = load_file(other_base / "model.safetensors")
    save_file({n: t + 1e-4 for n, t in tensors.items()}, other_base / "model.safetensors", metadata={"format": "pt"})

    def changed(name: str, **config: Any) -> Path:
        out = shutil.copytree(adapter, tmp_path / name)
        raw = json.loads((out / "adapter_config.json").read_text())
        (out / "adapter_config.json").write_text(json.dumps(raw | config))
        return out

    folders = [
        base,
        adapter,
        trained(base, tmp_path / "other", draw=2),
        changed("scale", lora_alpha=12),
        changed("moved", base_model_name_or_path=str(other_base)),
    ]
    assert len({loading.weights_digest(folder) for folder in folders}) == len(folders)
    assert len({fingerprint(str(folder)) for folder in folders}) == len(folders)
    assert loading.weights_digest(changed("same", task_type=None)) == loading.weights_digest(adapter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, r"is not plain LoRA: adapter_config.json has use_dora true \(expected null\)"),
        ({"init_lora_weights": "pissa"}, "is not plain LoRA"),
        ({"peft_type": "IA3"}, "is not plain LoRA"),
        ({"base_model_name_or_path": None}, "has no base_model_name_or_path"),
        ({"r": 4}, "of another shape .*lora_A"),
        ({"base_model_name_or_path": "ADAPTER"}, "an adapter too: merge that one first"),
        ({"base_model_name_or_path": "/nowhere"}, "no config.json"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_refused(
    base: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    out = trained(base, tmp_path / "adapter")
    raw = json.loads((out / "adapter_config.json").read_text()) | change
    raw = {name: str(trained(base, tmp_path / "2")) if value == "ADAPTER" else value for name, value in raw.items()}
    (out / "adapter_config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=message):
        loading.load_model(out, "float32")


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (None, "training.lora is not set, which trains all weights"),
        (LORA | {"r": 4}, "training.lora.r is 4, and the adapter has 3"),
        (
            LORA | {"target_modules": ("q_proj",)},
            "training.lora.target_modules is .'q_proj'., and the adapter has .'down_proj', ",
        ),
        (LORA | {"target_modules": ("qproj",)}, "has qproj; the linear layers of LlamaForCausalLM are down_proj, "),
    ],
)
def test_training_continues_an_adapter_only_with_its_own_settings(
    base: Path, tmp_path: Path, lora: Any, message: str
) -> None:
    out = trained(base, tmp_path / "adapter")
    loading.load_policy(out, "float32", LORA, seed=0)
    with pytest.raises(ValueError, match=message):
        loading.load_policy(out, "float32", lora, seed=0)


@pytest.mark.parametrize(
    ("adapted", "lora", "message"),
    [
        (True, None, "a LoRA adapter, but training.lora is not set, so all weights would be trained"),
        (
            True,
            {"r": 4},
            "an adapter with r 3, but training.lora has another value: set training.lora like the adapter",
        ),
        (
            True,
            {"use_dora": True, "merge": True},
            "an adapter with use_dora False, but training.lora has another value",
        ),
        (True, {"use_rslora": True}, "an adapter with use_rslora False, but training.lora has another value"),
        (False, {"target_modules": ["qproj", "q_proj"]}, "target_modules has qproj, but .* it has down_proj, "),
    ],
)
def test_an_adapter_that_does_not_fit_the_settings_is_refused_before_anything_starts(
    base: Path, tmp_path: Path, adapted: bool, lora: Any, message: str
) -> None:
    policy = trained(base, tmp_path / "adapter") if adapted else base
    own = Lora(**LORA)
    check_lora(str(policy), own)
    with pytest.raises(UserError, match=message):
        check_lora(str(policy), lora and Lora(**{**LORA, **lora}))


def test_the_head_cannot_be_adapted(base: Path, tmp_path: Path) -> None:
    """Log-probabilities use its bare weight, so an adapter on it would be silently ignored."""
    with pytest.raises(ValueError, match="has lm_head; the linear layers"):
        loading.load_policy(base, "float32", LORA | {"target_modules": ("lm_head",)}, seed=0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["lm_head"]))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(ValueError, match="on the embeddings or the head"):
        loading.load_model(tmp_path, "float32")


def test_a_base_with_a_relative_path_or_that_does_not_exist_is_refused(
    base: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    out = trained(base, tmp_path / "adapter")
    check_model("policy.model", str(out))
    path = out / "adapter_config.json"
    raw = json.loads(path.read_text())
    monkeypatch.chdir(base.parent)
    for name, message in (
        (base.name, "a relative path, which is wrong in any other folder: write"),
        ("/gone", "whose base is '/gone'"),
    ):
        path.write_text(json.dumps(raw | {"base_model_name_or_path": name}))
        with pytest.raises(UserError, match=message):
            check_model("policy.model", str(out))


@pytest.fixture(scope="module")
def round_1(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_lora_round(base, tmp_path_factory.mktemp("round-1") / "policy")


def test_the_reference_of_round_2_is_the_adapter_of_round_1(base: Path, round_1: Path, tmp_path: Path) -> None:
    """The base with the adapter turned off is the reference only if the adapter was fresh."""
    of_base, of_round_1 = learnable_examples(base), learnable_examples(round_1)
    plain = AutoPeftModelForCausalLM.from_pretrained(round_1).eval()
    for example, other in zip(of_round_1, of_base, strict=True):
        assert example.reference_logps != pytest.approx(other.reference_logps, abs=0.1)
        for completion, logp in zip(example.completions, example.reference_logps, strict=True):
            ids = torch.tensor([[*example.prompt_ids, *completion]])
            scores = plain(ids).logits[0, len(example.prompt_ids) - 1 : -1].log_softmax(-1)
            assert float(scores[range(len(completion)), completion].sum()) == pytest.approx(logp, abs=1e-4)

    second = lora_loop(round_1, of_round_1)
    answer = second.run()
    second.save(tmp_path / "policy")
    assert answer["step0_loss"] == pytest.approx(0.693147, abs=1e-6) and answer["step0_max_abs_margin"] < 1e-5
    assert json.loads((tmp_path / "policy" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert loading.weights_digest(tmp_path / "policy") != loading.weights_digest(round_1)
    with pytest.raises(ValueError, match="at step 0, before any update"):
        lora_loop(round_1, of_base).run()


def test_a_merged_policy_is_a_complete_model_that_gets_a_fresh_adapter_in_the_next_round(
    base: Path, round_1: Path, tmp_path: Path
) -> None:
    """`merge` does not change the training, only what is written."""
    merging = LORA | {"merge": True}
    first = lora_loop(base, learnable_examples(base), lora=merging)
    first.run()
    first.save(tmp_path / "policy")
    model = loading.load_model(tmp_path / "policy", "float32")

    assert not (tmp_path / "policy" / "adapter_config.json").exists()
    torch.testing.assert_close(logits(model), logits(loading.load_model(round_1, "float32")), rtol=1e-4, atol=1e-4)
    second = lora_loop(tmp_path / "policy", learnable_examples(tmp_path / "policy"), lora=merging, num_train_epochs=1)
    assert second.run()["step0_loss"] == pytest.approx(0.693147, abs=1e-6)
    second.save(tmp_path / "policy-2")
    assert loading.weights_digest(tmp_path / "policy-2") != loading.weights_digest(tmp_path / "policy")


def test_a_checkpoint_holds_only_the_adapter_and_can_be_resumed(base: Path, round_1: Path, tmp_path: Path) -> None:
    rows = learnable_examples(base)
    lora_loop(base, rows, checkpoints=FolderCheckpointStore(tmp_path)).run()
    names = load_file(tmp_path / "last-000003" / "rank-00000-of-00001.safetensors").keys()
    assert len(names) == 3 * 28 and all(".lora_" in name for name in names)

    again = lora_loop(base, rows)
    again.resume(tmp_path / "last-000003")
    again.run()
    again.save(tmp_path / "policy")
    assert loading.weights_digest(tmp_path / "policy") == loading.weights_digest(round_1)  # bit for bit


def test_bf16_adapters_learn_and_pass_the_step_0_check(base: Path) -> None:
    answer = lora_loop(base, learnable_examples(base, "bfloat16"), dtype="bfloat16").run()
    assert answer["final_loss"] < 0.6
