"""Losses that compare all pairs of a step, in steps of several rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.training.batches.example_table import ExampleTable
from pipeline.training.loop import TrainLoop
from pipeline.training.losses.objective import Objective
from pipeline.training.losses.whole_step import step_slopes
from tests.helpers.tiny_models import save_tiny_model
from tests.helpers.training import LORA_VOCABULARY, learnable_examples, settings

COMPARED = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "eval_loss", "eval_logps/rejected")
NAMES = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(0, 99))
def test_slopes_of_rows_add_up_to_the_gradient_of_the_step(sizes: list[int], seed: int) -> None:
    """The policy is one matrix product, so its gradient is easy to compare."""
    generator = torch.Generator().manual_seed(seed)
    pairs, policy = sum(sizes), torch.randn(6, generator=generator).double().requires_grad_()
    features = torch.randn(2, pairs, 6, generator=generator).double()
    given_values = dict(zip(NAMES[2:], torch.randn(2, pairs, generator=generator).double(), strict=True))
    given_values["pair_weights"] = torch.rand(pairs, generator=generator).double() + 0.1
    objective = Objective({"loss_type": ("aot", "aot_unpaired", "sft", "hinge"), "beta": 0.7, "label_smoothing": 0.1})

    def values(rows: slice) -> dict[str, Tensor]:
        chosen, rejected = features[:, rows] @ policy
        own = {name: value[rows] for name, value in given_values.items()}
        return own | {"chosen_logps": chosen, "rejected_logps": rejected, "chosen_nll": -chosen}

    weight = float(given_values["pair_weights"].sum()) or 1.0
    whole = objective(**values(slice(None)), mean_chosen_length=3.0)
    expected = torch.autograd.grad((whole * given_values["pair_weights"]).sum() / weight, policy)[0]
    ends = torch.tensor(sizes).cumsum(0).tolist()
    rows = [values(slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    found = step_slopes(objective, rows, weight=weight, mean_chosen_length=3.0, rank=0, workers=1)
    torch.testing.assert_close(torch.cat([row.losses for row in found]), whole.detach())
    total = torch.stack([row.surrogate(own) for row, own in zip(found, rows, strict=True)]).sum()
    torch.testing.assert_close(torch.autograd.grad(total, policy)[0], expected)


@pytest.mark.parametrize("loss_type", ["aot", ("aot_unpaired", "sft")])
def test_training_does_not_depend_on_how_a_step_is_packed(loss_type: Any, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", vocab_size=LORA_VOCABULARY)
    examples = ExampleTable.of(learnable_examples(model))
    options = settings(loss_type=loss_type, eval_fraction=0.3, pairs_per_step=6, num_train_epochs=3, learning_rate=1e-3)
    runs = []
    for tokens_per_batch in (1, 60, 10**6):
        run = TrainLoop(examples, str(model), options, tokens_per_batch, torch.device("cpu"))
        run.run()
        runs.append([{name: line[name] for name in COMPARED if name in line} for line in run.lines])
    for line, *others in zip(*runs, strict=True):
        for other in others:
            assert other == pytest.approx(line, rel=1e-2, abs=1e-3)
    assert [line["rewards/margins"] for line in runs[0] if "loss" in line][-1] > 0
