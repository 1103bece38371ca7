"""The load-balancing loss of a mixture of experts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import UserError
from pipeline.storage.model_files.hub import check_router_loss
from pipeline.training.batches.article_tree import pack_row
from pipeline.training.batches.batching import micro_batches
from pipeline.training.batches.example_table import ExampleTable
from pipeline.training.loop import TrainLoop
from pipeline.training.modeling import loading
from pipeline.training.modeling.fsdp import PolicyModule, checkpoint_activations
from pipeline.training.modeling.logprobs import score_row
from tests.helpers.tiny_models import save_tiny_model
from tests.helpers.training import VOCABULARY, random_examples, settings

EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.3}
EXAMPLES = [replace(example, reference_logps=()) for example in random_examples(6)]
TABLE = ExampleTable.of(EXAMPLES)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixtral")
    return save_tiny_model(folder, "mixtral", vocab_size=VOCABULARY, num_key_value_heads=2, **EXPERTS)


@pytest.mark.parametrize("article_tree", [True, False])
def test_an_article_with_one_completion_has_transformers_own_loss(model: Path, article_tree: bool) -> None:
    policy = loading.load_model(model, "float32", article_tree=article_tree)
    articles = [(example.prompt_ids, example.completions[:1]) for example in EXAMPLES]
    found = score_row(policy, pack_row(articles), with_router_losses=True).router_losses
    for loss, (prompt, completions) in zip(found, articles, strict=True):
        own = policy(torch.tensor([[*prompt, *completions[0]]]), output_router_logits=True).aux_loss
        torch.testing.assert_close(loss, own)


def test_the_gradient_depends_neither_on_packing_nor_on_checkpointing(model: Path) -> None:
    gradients = []
    for tokens_per_batch, checkpointing in ((10**6, False), (1, False), (60, True)):
        policy = PolicyModule(loading.load_model(model, "float32"))
        if checkpointing:
            checkpoint_activations(policy)
        for batch in micro_batches(EXAMPLES, rank=0, workers=1, tokens_per_batch=tokens_per_batch):
            losses = policy(score_row, batch.tree, False, True).router_losses
            (losses * batch.article_weights).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    for gradient in gradients[1:]:
        assert float((gradient - gradients[0]).norm() / gradients[0].norm()) < 1e-4


def test_training_balances_the_experts(model: Path) -> None:
    def losses(coef: float) -> list[dict[str, float]]:
        options = settings(
            loss_type="simpo", router_aux_loss_coef=coef, eval_fraction=0.0, num_train_epochs=8, learning_rate=3e-2
        )
        loop = TrainLoop(TABLE, str(model), options | {"references": {"source": "none"}}, 60, torch.device("cpu"))
        loop.run()
        return [line for line in loop.lines if "loss" in line]

    without, with_loss = losses(0.0), losses(10.0)
    assert "aux_loss" not in without[0]
    assert with_loss[0]["loss"] == pytest.approx(without[0]["loss"] + 10 * with_loss[0]["aux_loss"], rel=1e-4)
    assert 1.9 < with_loss[-1]["aux_loss"] < with_loss[0]["aux_loss"] - 0.05


def test_a_model_without_a_router_is_refused(model: Path, tmp_path: Path) -> None:
    llama = save_tiny_model(tmp_path / "llama")
    check_router_loss(str(model), 0.01)
    check_router_loss(str(llama), 0.0)
    with pytest.raises(UserError, match="is not a mixture of experts: leave router_aux_loss_coef out"):
        check_router_loss(str(llama), 0.01)
    options = settings(loss_type="simpo", router_aux_loss_coef=0.1, eval_fraction=0.0)
    with pytest.raises(ValueError, match="LlamaForCausalLM is not a mixture of experts"):
        TrainLoop(TABLE, str(llama), options | {"references": {"source": "none"}}, 60, torch.device("cpu"))
