"""Compares losses with values computed by hand and with TRL's own code, and checks what holds for any of them."""

import math
from collections.abc import Callable
from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.config.losses import F_DIVERGENCE_LOSSES, LOSS_SETTINGS, SORTING_LOSSES
from pipeline.training.batches.article_tree import pack_row
from pipeline.training.batches.batching import MicroBatch
from pipeline.training.losses.formulas import ARGUMENTS, LOSSES
from pipeline.training.losses.objective import Objective, divergence_scores
from pipeline.training.modeling.logprobs import RowScores

SETTINGS = {"beta": 0.1, "label_smoothing": 0.1, "simpo_gamma": 0.5, "discopop_tau": 0.05}
MARGIN_LOSSES = (
    "sigmoid",
    "robust",
    "ipo",
    "hinge",
    "sigmoid_norm",
    "exo_pair",
    "aot",
)  # they depend only on the margin, if lengths are equal
LOGPS = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")


def single_loss(loss_type: str, values: dict[str, Any], **settings: float) -> Tensor:
    logps = values["chosen_logps"]
    defaults = {"chosen_nll": -logps, "pair_weights": torch.ones_like(logps)}
    return Objective(SETTINGS | settings | {"loss_type": loss_type})(**defaults | values)


def pair(*logps: float, lengths: tuple[int, int] = (5, 4), mean: float = 8.0) -> dict[str, Any]:
    values: dict[str, Any] = {name: torch.tensor([value]) for name, value in zip(LOGPS, logps, strict=True)}
    values["chosen_lengths"], values["rejected_lengths"] = torch.tensor(lengths[:1]), torch.tensor(lengths[1:])
    return values | {"mean_chosen_length": mean}


def swapped(values: dict[str, Any]) -> dict[str, Any]:
    """The same two completions with the opposite verdict."""
    other = {"chosen": "rejected", "rejected": "chosen"}
    return {"_".join(other.get(word, word) for word in name.split("_")): value for name, value in values.items()} | {
        "mean_chosen_length": values["mean_chosen_length"]
    }


def minus_log_sigmoid(x: float) -> float:
    return math.log(1 + math.exp(-x))


def log_odds(p: float) -> float:
    return math.log(p / (1 - p))


# The pair has log ratios +1 and -2, and 5 and 4 tokens. The chosen completions of its step have 8 tokens on average.
BY_HAND = {
    "sigmoid": 0.9 * minus_log_sigmoid(0.3) + 0.1 * minus_log_sigmoid(-0.3),
    "robust": (0.9 * minus_log_sigmoid(0.3) - 0.1 * minus_log_sigmoid(-0.3)) / 0.8,
    "ipo": (1 / 5 + 2 / 4 - 5) ** 2,
    "hinge": 1 - 0.3,
    "sigmoid_norm": minus_log_sigmoid(0.1 * (1 / 5 + 2 / 4)),
    "apo_zero": (1 - 1 / (1 + math.exp(-0.1))) + 1 / (1 + math.exp(0.2)),
    "apo_down": 1 / (1 + math.exp(-0.1)) + (1 - 1 / (1 + math.exp(-0.3))),
    "sppo_hard": (1 - 5) ** 2 + (-2 + 5) ** 2,
    "exo_pair": 1 / (1 + math.exp(-0.3)) * (-minus_log_sigmoid(0.3) - math.log(0.9))
    + 1 / (1 + math.exp(0.3)) * (-minus_log_sigmoid(-0.3) - math.log(0.1)),
    "nca_pair": minus_log_sigmoid(0.1) + minus_log_sigmoid(-0.1) / 2 + minus_log_sigmoid(0.2) / 2,
    "bco_pair": minus_log_sigmoid(0.1) + minus_log_sigmoid(0.2),
    "discopop": (1 - 1 / (1 + math.exp(-6))) * minus_log_sigmoid(0.3) + 1 / (1 + math.exp(-6)) * math.exp(-0.3),
    "aot": 0.9 * minus_log_sigmoid(0.3) + 0.1 * minus_log_sigmoid(-0.3),
    "aot_unpaired": 0.9 * minus_log_sigmoid(0.3) + 0.1 * minus_log_sigmoid(-0.3),
    "sft": 10 / 8,
    "simpo": 0.9 * minus_log_sigmoid(0.1 * (-10 / 5 + 14 / 4) - 0.5)
    + 0.1 * minus_log_sigmoid(0.5 - 0.1 * (-10 / 5 + 14 / 4)),
    "orpo": 10 / 8 + 0.1 * minus_log_sigmoid(log_odds(math.exp(-10 / 5)) - log_odds(math.exp(-14 / 4))),
}


@pytest.mark.parametrize("loss_type", LOSSES)
def test_losses_equal_values_computed_by_hand(loss_type: str) -> None:
    assert float(single_loss(loss_type, pair(-10.0, -14.0, -11.0, -12.0))) == pytest.approx(
        BY_HAND[loss_type], rel=1e-6
    )


def test_without_smoothing_sigmoid_and_robust_are_dpo() -> None:
    for loss_type in ("sigmoid", "robust"):
        value = single_loss(loss_type, pair(-10.0, -14.0, -11.0, -12.0), label_smoothing=0.0)
        assert float(value) == pytest.approx(minus_log_sigmoid(0.3), rel=1e-6)


def test_hinge_is_zero_for_a_wide_margin() -> None:
    assert float(single_loss("hinge", pair(-10.0, -40.0, -30.0, -20.0))) == 0.0


@pytest.mark.parametrize("margin", [-30.0, -1.0, 0.0, 2.0, 50.0])
def test_robust_is_dpo_on_clean_labels_where_cdpo_is_not(margin: float) -> None:
    values = pair(margin, 0.0, 0.0, 0.0)
    clean = single_loss("sigmoid", values, beta=1.0, label_smoothing=0.0)

    def flipping(loss_type: str) -> Tensor:
        """The mean over labels of which a fifth is flipped."""
        settings = {"beta": 1.0, "label_smoothing": 0.2}
        return 0.8 * single_loss(loss_type, values, **settings) + 0.2 * single_loss(
            loss_type, swapped(values), **settings
        )

    torch.testing.assert_close(flipping("robust"), clean, atol=1e-5, rtol=1e-5)
    assert margin == 0.0 or abs(float(flipping("sigmoid") - clean)) > 0.1


@pytest.mark.parametrize(
    "loss_type", sorted(LOSSES.keys() - {"sft", "apo_down", "discopop"})
)  # these do not push the chosen up and the rejected down, discopop only near the reference
def test_the_opposite_verdict_pushes_the_other_way(loss_type: str) -> None:
    values = pair(-6.0, -6.5, -6.0, -6.5, lengths=(5, 5))
    first, second = values["chosen_logps"].requires_grad_(), values["rejected_logps"].requires_grad_()
    up, down = torch.autograd.grad(single_loss(loss_type, values), (first, second))
    swapped_up, swapped_down = torch.autograd.grad(single_loss(loss_type, swapped(values)), (first, second))

    assert up < 0 < down and swapped_down < 0 < swapped_up
    if loss_type in MARGIN_LOSSES:
        torch.testing.assert_close((up, down), (swapped_down, swapped_up))
        torch.testing.assert_close(up, -down)


@pytest.mark.parametrize("loss_type", sorted(LOSSES.keys() - {"sft"}))
def test_the_opposite_verdict_changes_the_loss(loss_type: str) -> None:
    values = pair(-10.0, -14.0, -11.0, -12.0)
    assert abs(float(single_loss(loss_type, values) - single_loss(loss_type, swapped(values)))) > 1e-3


@pytest.mark.parametrize("loss_type", LOSSES)
def test_large_margins_stay_finite(loss_type: str) -> None:
    for logps in ((-1e4, -1e-3, -1e-3, -1e4), (-1e-3, -1e4, -1e4, -1e-3), (0.0, -1e4, 0.0, 0.0), (-1e4, 0.0, 0.0, 0.0)):
        values = pair(*logps)
        both = (values["chosen_logps"].requires_grad_(), values["rejected_logps"].requires_grad_())
        loss = single_loss(loss_type, values, beta=1.0)
        gradients = torch.autograd.grad(loss, both, allow_unused=True)

        assert loss.isfinite()
        assert all(gradient is None or gradient.isfinite() for gradient in gradients)


def test_the_loss_of_a_clearly_wrong_pair_equals_its_margin() -> None:
    values = pair(-1e4, 0.0, 0.0, -1e4)
    chosen = values["chosen_logps"].requires_grad_()
    loss = single_loss("sigmoid", values, beta=1.0, label_smoothing=0.0)

    assert loss.item() == 2e4 and torch.autograd.grad(loss, chosen)[0].item() == -1.0


@pytest.mark.parametrize("loss_type", LOSSES)
def test_gradients_are_correct(loss_type: str) -> None:
    # No margin is near 1, where hinge has a corner.
    logps = torch.tensor([[-3.0, -9.0, -0.2], [-4.0, -7.0, -5.0], [-2.5, -9.5, -1.0], [-5.0, -6.0, -5.5]]).double()
    lengths = {"chosen_lengths": torch.tensor([3, 7, 1]), "rejected_lengths": torch.tensor([4, 4, 9])}

    def loss(*columns: Tensor) -> Tensor:
        return single_loss(loss_type, dict(zip(LOGPS, columns, strict=True)) | lengths | {"mean_chosen_length": 11 / 3})

    assert torch.autograd.gradcheck(loss, tuple(column.clone().requires_grad_() for column in logps))


# --- TRL


class Batch:
    """Random log-probabilities of completions of 1 to 9 tokens after prompts of 1 to 4, laid out as TRL does."""

    def __init__(self, seed: int, pairs: int = 6) -> None:
        generator = torch.Generator().manual_seed(seed)
        prompts = torch.randint(1, 5, (pairs,), generator=generator).repeat(2)
        lengths = torch.randint(1, 10, (2 * pairs,), generator=generator)
        position = torch.arange(14)
        self.mask = ((prompts[:, None] <= position) & (position < (prompts + lengths)[:, None])).long()
        self.tokens = torch.randint(0, 7, self.mask.shape, generator=generator)
        self.logits = torch.randn(*self.mask.shape, 7, generator=generator).requires_grad_()
        logps = self.logits[:, :-1].log_softmax(-1).gather(-1, self.tokens[:, 1:, None])[..., 0]
        self.token_logps = logps * self.mask[:, 1:]
        noise = 3 * torch.randn(2 * pairs, generator=generator)
        self.reference = self.token_logps.detach().sum(1) + noise
        self.lengths = lengths
        sums, reference, chosen_lengths = self.token_logps.sum(1), self.reference, lengths[:pairs]
        self.values = {
            **dict(zip(LOGPS, (*sums.chunk(2), *reference.chunk(2)), strict=True)),
            "chosen_lengths": chosen_lengths,
            "rejected_lengths": lengths[pairs:],
            "mean_chosen_length": float(chosen_lengths.float().mean()),
            "chosen_nll": -sums.chunk(2)[0],
            "pair_weights": torch.ones(pairs),
        }

    def gradient(self, loss: Tensor) -> Tensor:
        """The gradient of a loss with respect to all logits."""
        return torch.autograd.grad(loss, self.logits, retain_graph=True)[0]


def trl_dpo(batch: Batch, settings: dict[str, Any]) -> Tensor:
    """Call the method of TRL's trainer that has the loss, on an object with only the attributes that it reads."""
    dpo_trainer = pytest.importorskip("trl.trainer.dpo_trainer")
    zeros = torch.zeros_like(batch.token_logps)
    outputs = SimpleNamespace(
        log_probs=batch.token_logps,
        entropy=zeros,
        mean_logits=zeros,
        is_top1=zeros.bool(),
        log_sum_sq_probs=(2 * batch.logits[:, :-1].log_softmax(-1)).logsumexp(-1),
    )
    names = [settings["loss_type"]] if isinstance(settings["loss_type"], str) else list(settings["loss_type"])
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        aux_loss_enabled=False,
        ld_alpha=settings.get("ld_alpha"),
        precompute_ref_logps=True,
        f_divergence_type=settings.get("f_divergence_type", "reverse_kl"),
        f_alpha_divergence_coef=settings.get("f_alpha_divergence_coef", 0.5),
        loss_types=names,
        loss_weights=settings.get("loss_weights") or [1.0] * len(names),
        beta=settings["beta"],
        label_smoothing=settings["label_smoothing"],
        use_weighting=settings.get("use_weighting", False),
        args=SimpleNamespace(discopop_tau=settings["discopop_tau"]),
        _total_train_tokens=0,
        _tp_size=1,
        _metrics={"eval": {name: [] for name in METRICS}},
    )
    chosen, rejected = batch.reference.chunk(2)
    inputs = {"input_ids": batch.tokens, "completion_mask": batch.mask}
    inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    return dpo_trainer.DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)


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
MIXTURES: dict[str, dict[str, Any]] = {
    "rpo": {"loss_type": ("sigmoid", "sft"), "label_smoothing": 0.0},
    "mpo": {"loss_type": ("ipo", "bco_pair", "sft"), "loss_weights": (0.8, 0.2, 1.5)},
}


def assert_equal_trl(batch: Batch, settings: dict[str, Any], values: dict[str, Any] | None = None) -> None:
    """Compare the mean loss, and its gradient with respect to the model's logits."""
    ours, theirs = Objective(settings)(**(values or batch.values)).mean(), trl_dpo(batch, settings)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(batch.gradient(ours), batch.gradient(theirs), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("loss_type", [*sorted(LOSSES.keys() - {"simpo", "orpo"}), *MIXTURES])
def test_losses_equal_trls_dpo_trainer(loss_type: str, beta: float) -> None:
    # TRL's "sigmoid" ignores label smoothing.
    settings = SETTINGS | {"beta": beta, "loss_type": loss_type, "label_smoothing": 0.1 * (loss_type != "sigmoid")}
    settings |= MIXTURES.get(loss_type, {})
    for seed in range(3):
        assert_equal_trl(Batch(seed), settings)


def test_rpo_alpha_equals_trls_mixture_with_sft() -> None:
    batch = Batch(0)
    ours = Objective({"loss_type": "ipo", "rpo_alpha": 0.7, "beta": 0.1})(**batch.values).mean()
    theirs = trl_dpo(batch, SETTINGS | {"loss_type": ("ipo", "sft"), "loss_weights": (1.0, 0.7)})
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "divergence",
    [
        {"f_divergence_type": "forward_kl"},
        {"f_divergence_type": "js_divergence"},
        *({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": a} for a in (-0.5, 0.5, 1.0, 1.5)),
    ],
    ids=str,
)
@pytest.mark.parametrize("loss_type", [*sorted(F_DIVERGENCE_LOSSES), ("sigmoid", "sft")], ids=str)
def test_f_divergences_equal_trls(loss_type: Any, divergence: dict[str, Any]) -> None:
    smoothing = 0.1 * ("sigmoid" not in loss_type)
    settings = SETTINGS | divergence | {"loss_type": loss_type, "label_smoothing": smoothing}
    assert_equal_trl(Batch(3), settings)


def test_f_divergences_equal_values_computed_by_hand() -> None:
    ratios = torch.tensor([-2.0, 0.0, 1.0], dtype=torch.float64)
    u = ratios.exp()
    for kind, expected in {
        "reverse_kl": ratios,
        "forward_kl": 1 - 1 / u,
        "js_divergence": (2 * u / (u + 1)).log(),
        "alpha_divergence": (u**-0.7 - 1) / -0.7,
    }.items():
        settings = {"f_divergence_type": kind, "f_alpha_divergence_coef": 0.3}
        torch.testing.assert_close(divergence_scores(ratios, settings), expected)


@pytest.mark.parametrize("kind", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_a_rejected_completion_that_fell_far_leaves_a_finite_gradient(kind: str) -> None:
    """TRL's forward_kl gives nan here."""
    values = pair(-10.0, -500.0, -10.0, -300.0)
    rejected = values["rejected_logps"].requires_grad_()
    settings: dict[str, Any] = {"f_divergence_type": kind, "f_alpha_divergence_coef": 0.5}
    loss = single_loss("sigmoid", values, label_smoothing=0.0, **settings)
    assert loss.isfinite() and torch.autograd.grad(loss, rejected)[0].isfinite()


def row_of(batch: Batch, reference_token_logps: Tensor) -> tuple[MicroBatch, RowScores]:
    """The batch as a packed row: first all chosen completions, then all rejected ones."""
    mask, lengths = batch.mask[:, 1:].bool(), batch.lengths.tolist()
    pairs = len(lengths) // 2
    chosen, rejected = torch.arange(pairs), torch.arange(pairs, 2 * pairs)
    shared = torch.minimum(batch.lengths[:pairs], batch.lengths[pairs:]).repeat(2)
    first = mask & ((mask.cumsum(1)) <= shared[:, None])
    row = MicroBatch(
        tree=pack_row([([0], [[0] * length for length in lengths])]),
        chosen=chosen,
        rejected=rejected,
        reference_logps=(reference_token_logps * mask).sum(1),
        lengths=batch.lengths.float(),
        reference_shared_logps=torch.stack((reference_token_logps * first).sum(1).chunk(2), 1),
        weights=torch.ones(pairs),
        article_weights=torch.ones(1),
    )
    concentrations = (2 * batch.logits[:, :-1].log_softmax(-1)).logsumexp(-1).detach()
    return row, RowScores(batch.token_logps.sum(1), batch.token_logps[mask], concentrations[mask], None)


@pytest.mark.parametrize("ld_alpha", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("loss_type", "use_weighting"),
    [*((name, False) for name in ("sigmoid", "ipo", "aot", "apo_zero", ("hinge", "sft"))), ("robust", True)],
    ids=str,
)
def test_ld_alpha_and_weighting_equal_trls(loss_type: Any, use_weighting: bool, ld_alpha: float | None) -> None:
    settings = SETTINGS | {"loss_type": loss_type, "ld_alpha": ld_alpha, "use_weighting": use_weighting}
    settings["label_smoothing"] = 0.1 * (loss_type != "sigmoid")
    batch = Batch(4)
    noise = torch.randn(batch.token_logps.shape, generator=torch.Generator().manual_seed(0))
    row, scores = row_of(batch, batch.token_logps.detach() + noise)
    values = row.by_pair(scores, ld_alpha) | {"mean_chosen_length": batch.values["mean_chosen_length"]}
    # TRL is given the reference's values, which it computes by the same code as the policy's.
    batch.reference = torch.cat([values["ref_chosen_logps"], values["ref_rejected_logps"]])
    assert_equal_trl(batch, settings, values)


def test_wpo_weighs_each_pair_by_both_of_its_completions() -> None:
    batch = Batch(5)
    row, scores = row_of(batch, batch.token_logps.detach())
    weights = []
    for number, length in enumerate(batch.lengths.tolist()):
        first = int(batch.mask[number].nonzero()[0])
        probabilities = batch.logits[number, first - 1 : first - 1 + length].softmax(-1)
        sampled = probabilities[torch.arange(length), batch.tokens[number, first : first + length]]
        weights.append(float((sampled / (probabilities**2).sum(-1)).log().mean().exp()))
    expected = torch.tensor(weights[:6]) * torch.tensor(weights[6:])
    values = row.by_pair(scores)
    torch.testing.assert_close(values["wpo_weights"], expected)
    settings = SETTINGS | {"loss_type": "sigmoid"}
    plain, weighted = (Objective(settings | {"use_weighting": use})(**values) for use in (False, True))
    torch.testing.assert_close(weighted, plain * expected)


@given(
    st.sampled_from(sorted(SORTING_LOSSES)),
    st.lists(st.tuples(*[st.floats(-9, 0, width=32)] * 4, st.integers(1, 3)), min_size=1, max_size=6),
)
def test_sorting_losses_take_a_weight_as_the_pair_given_so_often(loss_type: str, rows: list[tuple[Any, ...]]) -> None:
    *logps, weights = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    values = dict(zip(LOGPS, logps, strict=True))
    repeated = {name: value.repeat_interleave(weights.long()) for name, value in values.items()}
    weighted = (single_loss(loss_type, values | {"pair_weights": weights}) * weights).sum()
    torch.testing.assert_close(weighted, single_loss(loss_type, repeated).sum())


def test_aot_compares_quantiles() -> None:
    """Two pairs, whose log ratios are (2, 1) under the policy and (0, 3) under the reference."""
    values = dict(zip(LOGPS, map(torch.tensor, ([-1.0, -1], [-3.0, -2], [-2.0, -1], [-2.0, -4])), strict=True))
    low, high = (minus_log_sigmoid(0.1 * margin) for margin in (1 - 0, 2 - 3))
    losses = single_loss("aot", values, label_smoothing=0.0)
    assert losses.tolist() == pytest.approx([high, low])


def test_discopop_stays_finite_where_its_exponential_overflows() -> None:
    values = pair(-1000.0, 0.0, 0.0, 0.0)
    assert float(single_loss("discopop", values, beta=1.0)) == pytest.approx(1000.0)


def averages(trainer: Callable[..., Any], batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean log-probability of a completion's tokens, by TRL's code."""
    labels = batch.tokens.masked_fill(batch.mask == 0, -100)
    return trainer.get_batch_logps(batch.logits, labels, average_log_prob=True).chunk(2)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_simpo_and_cdpo_equal_trls_cpo_trainer(smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    cpo = pytest.importorskip("trl.experimental.cpo.cpo_trainer").CPOTrainer
    settings = {"beta": 2.0, "label_smoothing": smoothing, "simpo_gamma": 1.2}
    trainer = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), alpha=0.0, **settings)
    batch = Batch(1)

    trainer.loss_type = "simpo"
    torch.testing.assert_close(
        single_loss("simpo", batch.values, **settings), cpo.cpo_loss(trainer, *averages(cpo, batch))[0]
    )
    trainer.loss_type = "sigmoid"  # the CPO trainer smooths it; given log ratios it is cDPO
    ratios = (batch.token_logps.sum(1) - batch.reference).chunk(2)
    torch.testing.assert_close(single_loss("sigmoid", batch.values, **settings), cpo.cpo_loss(trainer, *ratios)[0])


def test_orpo_equals_trls_orpo_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    orpo = pytest.importorskip("trl.experimental.orpo.orpo_trainer").ORPOTrainer
    trainer = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), beta=0.3)
    batch = Batch(2)
    odds = orpo.odds_ratio_loss(trainer, *averages(orpo, batch))[0]
    torch.testing.assert_close(
        single_loss("orpo", batch.values, beta=0.3), single_loss("sft", batch.values) - odds, rtol=1e-5, atol=1e-6
    )


# --- Mixtures


def test_the_settings_in_config_losses_are_those_that_each_loss_takes() -> None:
    assert list(LOSS_SETTINGS) == list(LOSSES)
    assert {name for name, taken in ARGUMENTS.items() if "chosen_scores" in taken} == F_DIVERGENCE_LOSSES
    assert {name for name, taken in ARGUMENTS.items() if "pair_weights" in taken} == SORTING_LOSSES
    for name, settings in LOSS_SETTINGS.items():
        assert tuple(value for value in signature(LOSSES[name]).parameters if value in SETTINGS) == settings


def test_only_losses_that_take_reference_log_probabilities_need_a_reference() -> None:
    free = {"sft", "simpo", "orpo"}
    batch = Batch(0).values
    for name in LOSSES:
        objective = Objective(SETTINGS | {"loss_type": name})
        assert objective.needs_reference == (name not in free)
        if name in free:
            objective(**{key: value for key, value in batch.items() if not key.startswith("ref_")})
    assert Objective({"loss_type": ("simpo", "hinge")}).needs_reference
    assert not Objective({"loss_type": "simpo", "rpo_alpha": 1.0}).needs_reference


@pytest.mark.parametrize("loss_type", LOSSES)
def test_a_batch_without_pairs_has_no_losses(loss_type: str) -> None:
    values = {name: value[:0] if isinstance(value, Tensor) else value for name, value in Batch(0).values.items()}
    assert single_loss(loss_type, values).shape == (0,)


weights = st.floats(0.01, 10)
mixtures = st.dictionaries(st.sampled_from(sorted(LOSSES)), weights, min_size=1, max_size=4)


@given(mixtures, st.none() | weights, st.integers(0, 9))
def test_a_mixture_is_the_weighted_sum(mixture: dict[str, float], alpha: float | None, seed: int) -> None:
    values = Batch(seed).values
    alpha = None if mixture.keys() & {"sft", "orpo"} else alpha
    mixed = SETTINGS | {"loss_type": tuple(mixture), "loss_weights": tuple(mixture.values()), "rpo_alpha": alpha}
    parts = [(weight, name) for name, weight in mixture.items()] + ([(alpha, "sft")] if alpha is not None else [])
    expected = sum(weight * single_loss(name, values) for weight, name in parts)
    torch.testing.assert_close(Objective(mixed)(**values), expected)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.floats(-200, 0, width=32), st.integers(0, 3)), min_size=1, max_size=12)
)
def test_sft_is_the_token_mean_of_the_step_for_any_micro_batches(pairs: list[tuple[int, float, int]]) -> None:
    """Pairs are (tokens, log-probability, micro-batch); a micro-batch may be empty."""
    tokens = sum(length for length, _, _ in pairs)
    total = torch.zeros(())
    for number in range(4):
        logps = torch.tensor([logp for _, logp, batch in pairs if batch == number])
        losses = single_loss("sft", {"chosen_logps": logps, "mean_chosen_length": tokens / len(pairs)})
        assert losses.shape == logps.shape
        total += losses.sum() / len(pairs)
    assert float(total) == pytest.approx(-sum(logp for _, logp, _ in pairs) / tokens, rel=1e-5, abs=1e-6)
