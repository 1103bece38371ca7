"""Losses against values computed by hand, and against TRL's own code."""

import math
from types import SimpleNamespace

import pytest
import torch

from pipeline.dpo.losses import LOSSES, sigmoid


def four(*values: float) -> dict[str, torch.Tensor]:
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    return {name: torch.tensor([value]) for name, value in zip(names, values, strict=True)}


def test_by_hand() -> None:
    logps = four(-10.0, -14.0, -11.0, -12.0)  # log ratios +1 and -2: margin 0.1 x 3

    assert float(sigmoid(**logps, beta=0.1)) == pytest.approx(math.log(1 + math.exp(-0.3)), rel=1e-6)
    smooth = 0.8 * math.log(1 + math.exp(-0.3)) + 0.2 * math.log(1 + math.exp(0.3))
    assert float(sigmoid(**logps, beta=0.1, label_smoothing=0.2)) == pytest.approx(smooth, rel=1e-6)


def test_swapping_the_sides_flips_the_sign_of_the_margin() -> None:
    assert float(sigmoid(**four(-14.0, -10.0, -12.0, -11.0), beta=0.1)) == pytest.approx(math.log(1 + math.exp(0.3)))


def test_equal_policy_and_reference_give_ln_2() -> None:
    for name, loss in LOSSES.items():
        value = float(loss(**four(-3.0, -5.0, -3.0, -5.0), beta=0.1, label_smoothing=0.1))
        assert value == pytest.approx(math.log(2)), name


def test_a_large_margin_stays_finite() -> None:
    logps = four(-1e4, 0.0, 0.0, -1e4)
    chosen = logps["chosen_logps"].requires_grad_()
    loss = sigmoid(**logps, beta=1.0)
    loss.backward()

    assert loss.item() == 2e4 and float(chosen.grad) == -1.0


@pytest.mark.parametrize("loss_type", LOSSES)
def test_as_trl(loss_type: str) -> None:
    """TRL's loss is inside a method of its trainer: call that, on an object with no more than it looks at."""
    dpo_trainer = pytest.importorskip("trl.trainer.dpo_trainer")
    generator = torch.Generator().manual_seed(0)
    for beta in (0.01, 0.1, 1.0):
        chosen, rejected, ref_chosen, ref_rejected = -60 * torch.rand(4, 1, generator=generator)
        # One token per completion; its log-probability is the sequence's. Rows are [chosen, rejected].
        log_probs = torch.stack([chosen, rejected])
        outputs = SimpleNamespace(
            log_probs=log_probs,
            entropy=torch.zeros(2, 1),
            mean_logits=torch.zeros(2, 1),
            is_top1=torch.zeros(2, 1).bool(),
        )
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=False),
            accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
            aux_loss_enabled=False,
            ld_alpha=None,
            precompute_ref_logps=True,
            f_divergence_type="reverse_kl",
            loss_types=[loss_type],
            loss_weights=[1.0],
            beta=beta,
            label_smoothing=0.0,
            use_weighting=False,
            _total_train_tokens=0,
            _tp_size=1,
            _metrics={"eval": {name: [] for name in METRICS}},
        )
        inputs = {
            "input_ids": torch.ones(2, 2, dtype=torch.int64),
            "completion_mask": torch.tensor([[0, 1], [0, 1]]),
            "ref_chosen_logps": ref_chosen,
            "ref_rejected_logps": ref_rejected,
        }
        trl = dpo_trainer.DPOTrainer._compute_loss(
            trainer, lambda outputs=outputs, **_: outputs, inputs, return_outputs=False
        )
        ours = LOSSES[loss_type](
            chosen_logps=chosen,
            rejected_logps=rejected,
            ref_chosen_logps=ref_chosen,
            ref_rejected_logps=ref_rejected,
            beta=beta,
        )
        torch.testing.assert_close(ours.mean(), trl)


METRICS = (
    "entropy",
    "logits/chosen",
    "logits/rejected",
    "mean_token_accuracy",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)
