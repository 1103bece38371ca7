"""Hybrid models, with recurrent layers beside attention: on a tree they equal the model's own forward."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from pipeline.config import UserError
from pipeline.config.loader import load_config
from pipeline.execution.preflight import check_trained_model
from pipeline.training.batches.article_tree import Article, pack_row, pack_rows
from pipeline.training.modeling import loading
from pipeline.training.modeling.fsdp import PolicyModule, checkpoint_activations
from pipeline.training.modeling.logprobs import batch_logps, check_supported, completion_logps, plain_logps
from tests.helpers.paths import DEMO, POLICY_MODEL
from tests.helpers.tiny_models import save_tiny_model

VOCABULARY = 50
GROUPED: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
DELTA = {f"linear_{what}": size for what, size in (("num_value_heads", 4), ("num_key_heads", 2))}
DELTA |= {"linear_key_head_dim": 4, "linear_value_head_dim": 4, "head_dim": 8, **HYBRID}
MAMBA_2 = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_next": DELTA | EXPERTS,  # gated delta nets beside attention, and experts
    "qwen3_5_text": DELTA,
    "falcon_h1": {**MAMBA_2, "mamba_d_ssm": 32, "lm_head_multiplier": 0.3},  # both in each layer
    "bamba": {**MAMBA_2, "attn_layer_indices": [1]},
    "granitemoehybrid": {**MAMBA_2, **HYBRID, "num_local_experts": 0, "logits_scaling": 3.0},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "mamba_d_state": 8},  # Mamba 1
    "lfm2": {"layer_types": ["conv", "full_attention"]},  # short convolutions
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = request.param
    return save_tiny_model(
        tmp_path_factory.mktemp(family), family, **GROUPED, **FAMILIES[family], initializer_range=0.3
    )


def articles() -> list[Article]:
    draw = random.Random(1)

    def ids(length: int) -> list[int]:
        return [draw.randrange(VOCABULARY) for _ in range(length)]

    return [(ids(draw.randint(2, 20)), [ids(draw.randint(1, 9)) for _ in range(count)]) for count in (1, 3, 4)]


def gradient(model: PreTrainedModel, logps: dict[tuple[int, int], torch.Tensor]) -> torch.Tensor:
    model.zero_grad()
    # Different factors, so that mixing up two completions changes the gradient.
    sum(logp * (1 + i + 0.3 * j) for (i, j), logp in logps.items()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_log_probabilities_and_gradients_on_a_tree_are_those_of_the_models_own_forward(folder: Path) -> None:
    loading.check_article_tree(folder)
    model = loading.load_model(folder, "float32")
    plain = {(i, j): logp for i, a in enumerate(articles()) for j, logp in enumerate(plain_logps(model, *a))}
    expected = gradient(model, plain)
    for budget in (1, 10_000):  # each article alone; all in one row
        ours = {}
        for tree in pack_rows(articles(), budget):
            ours |= dict(zip(tree.completions, completion_logps(model, tree), strict=True))
        assert max(float((ours[key] - plain[key]).detach().abs()) for key in plain) < 1e-4
        assert float((gradient(model, ours) - expected).norm() / expected.norm()) < 1e-5
    padded = torch.cat([batch_logps(model, *article) for article in articles()])
    torch.testing.assert_close(padded, torch.stack([*plain.values()]), rtol=1e-4, atol=1e-4)


def test_checkpointed_activations_are_computed_again_with_the_same_row(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "qwen3_next", **GROUPED, **FAMILIES["qwen3_next"], initializer_range=0.3)
    gradients = []
    for checkpointing in (False, True):
        policy = PolicyModule(loading.load_model(folder, "float32"))
        if checkpointing:
            checkpoint_activations(policy)
        policy(completion_logps, pack_row(articles())).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients)


REFUSED = {
    "a linear attention whose state cannot be reset": ("minimax", {**HYBRID, "num_local_experts": 2}, "reset in 0 of"),
    "logits with a soft cap": ("gemma2", {}, "final_logit_softcapping=30.0"),
}


@pytest.mark.parametrize(("family", "settings", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_a_tree_cannot_score_is_refused_before_the_run(
    tmp_path: Path, family: str, settings: dict[str, Any], reason: str
) -> None:
    folder = save_tiny_model(tmp_path, family, **GROUPED, **settings, vocab_size=753)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((POLICY_MODEL / name).read_bytes())
    with pytest.raises(UserError, match=f"policy.model is .*{reason}.*hardware.trainer.article_tree=false"):
        check_trained_model(load_config(DEMO, [f"policy.model={folder}"]))
    check_trained_model(load_config(DEMO, [f"policy.model={folder}", "hardware.trainer.article_tree=false"]))
    with pytest.raises(ValueError, match=reason):
        check_supported(loading.load_model(folder, "float32"), longest=10)


def test_a_kind_of_layer_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, **GROUPED)
    config = json.loads((folder / "config.json").read_text())
    model = loading.load_model(folder, "float32")
    model.config.layer_types = ["full_attention", "window_attention"]
    assert "layer_types" not in config
    with pytest.raises(ValueError, match="layers of kind window_attention, which article trees do not know"):
        check_supported(model, longest=10)
