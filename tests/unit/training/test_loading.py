"""Model folders: loading, digest and saving. Also the optimizer and its learning rates."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from pipeline.training.modeling.loading import load_model, save_model, weights_digest
from pipeline.training.optimizer import Optimizer, learning_rate
from tests.helpers.tiny_models import save_tiny_model

ADAMW = {"adam_beta1": 0.9, "adam_beta2": 0.99, "weight_decay": 0.1, "max_grad_norm": 0.5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_model(tmp_path / "model", vocab_size=40, attention_dropout=0.1)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "model" / name).write_text(f'"{name}"')
    (tmp_path / "model" / "record.json").write_text("{}")
    return tmp_path / "model"


def test_dropout_is_off_even_in_train_mode(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, "gpt2", vocab_size=40, num_hidden_layers=1)
    model = load_model(tmp_path, "float32").train()
    ids = torch.arange(10)[None]

    torch.testing.assert_close(model(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_a_model_is_loaded_in_the_requested_dtype(folder: Path) -> None:
    assert {p.dtype for p in load_model(folder, "bfloat16").parameters()} == {torch.bfloat16}


def test_weights_that_do_not_fill_the_model_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match="missing .*model.layers.0.mlp.up_proj.weight"):
        load_model(folder, "float32")
    with pytest.raises(ValueError, match="no config.json"):
        load_model(folder / "nowhere", "float32")


def test_the_digest_depends_on_weights_and_not_on_files(folder: Path, tmp_path: Path) -> None:
    before = weights_digest(folder)
    load_model(folder, "float32").save_pretrained(tmp_path / "cut", max_shard_size="5KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 1
    assert weights_digest(tmp_path / "cut") == before

    assert digest_after(folder, lambda t: t.add_(1e-7)) != before
    assert digest_after(folder, lambda t: t.to(torch.bfloat16)) != before
    with pytest.raises(ValueError, match="no \\*.safetensors"):
        weights_digest(tmp_path)


def digest_after(folder: Path, change: object) -> str:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    changed = {**tensors, "model.norm.weight": change(tensors["model.norm.weight"].clone())}
    save_file(changed, path, metadata={"format": "pt"})
    try:
        return weights_digest(folder)
    finally:
        save_file(tensors, path, metadata={"format": "pt"})


def test_saving_changes_only_the_weights(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder, "bfloat16")
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    save_model(model.state_dict(), folder, tmp_path / "from-state")
    save_model(model, folder, tmp_path / "from-model")

    for out in (tmp_path / "from-state", tmp_path / "from-model"):
        assert weights_digest(out) == weights_digest(tmp_path / "from-state") != weights_digest(folder)
        assert (out / "chat_template.jinja").read_text() == '"chat_template.jinja"'
        assert not (out / "record.json").exists()  # it is about the source's weights
        config = json.loads((out / "config.json").read_text())
        assert config["attention_dropout"] == 0.1 and config["dtype"] == "bfloat16"
        torch.testing.assert_close(load_model(out, "bfloat16").state_dict(), model.state_dict())
    save_model(load_model(folder, "float32"), folder, tmp_path / "unchanged")
    assert weights_digest(tmp_path / "unchanged") == weights_digest(folder)
    with pytest.raises(ValueError, match="not those of the model"):
        save_model({"nonsense": torch.zeros(1)}, folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "schedule"),
    [
        ("linear", get_linear_schedule_with_warmup),
        ("cosine", get_cosine_schedule_with_warmup),
        ("constant", lambda optimizer, warmup, total: get_constant_schedule_with_warmup(optimizer, warmup)),
    ],
)
def test_learning_rates_equal_those_of_transformers(kind: str, schedule: object) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    theirs = schedule(optimizer, 3, 25)
    for step in range(25):
        ours = learning_rate(step, total=25, peak=3e-4, warmup_ratio=0.1, kind=kind)
        assert ours == pytest.approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-18)
        optimizer.step()
        theirs.step()
    with pytest.raises(ValueError, match="'exponential'"):
        learning_rate(9, total=25, peak=1, warmup_ratio=0.1, kind="exponential")


def test_a_bf16_model_keeps_updates_smaller_than_its_spacing() -> None:
    linear = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(linear.weight)
    optimizer = Optimizer(linear, ADAMW | {"weight_decay": 0.0})
    for _ in range(100):
        linear(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        optimizer.collect()
        optimizer.step(1e-4)

    assert linear.weight.item() == pytest.approx(0.99, abs=0.004)  # one update is a 40th of the spacing


def test_micro_batches_add_up_to_a_step_of_torchs_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizer = Optimizer(ours, ADAMW)
    adamw = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.9, 0.99),
    )
    for _ in range(3):
        batch = torch.randn(6, 4)
        for part in batch.split(2):
            ours(part).square().sum().backward()
            optimizer.collect()
        adamw.zero_grad()
        theirs(batch).square().sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        assert optimizer.step(0.01) == pytest.approx(float(norm), rel=1e-5)
        adamw.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_a_gradient_that_is_not_finite_changes_no_weight() -> None:
    linear = torch.nn.Linear(2, 1)
    before = {name: tensor.clone() for name, tensor in linear.state_dict().items()}
    optimizer = Optimizer(linear, ADAMW)
    (linear(torch.ones(1, 2)).sum() * float("inf")).backward()
    with pytest.raises(ValueError, match="training has diverged"):
        optimizer.step(1e-3)
    torch.testing.assert_close(linear.state_dict(), before)
