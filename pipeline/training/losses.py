"""Computes preference losses, under TRL's names, and the weighted sum of losses that a run minimises.

A loss is a pure function of the log-probabilities of P pairs. It returns (P,), one value per pair; the caller takes the
mean over the pairs of the global step. Each loss takes some of these arguments, all keyword-only:

- `chosen_logps`, `rejected_logps`, `ref_chosen_logps`, `ref_rejected_logps`: (P,) float, the log-probability in nats of
  the whole completion, summed over its tokens, under the policy and under the reference.
- `chosen_lengths`, `rejected_lengths`: (P,), number of tokens of the completion itself, whatever row it is packed in.
- `mean_chosen_length`: number of tokens of a chosen completion, the mean over all pairs of the *global* step.
- `beta` > 0, `label_smoothing` in [0, 0.5) and `simpo_gamma` >= 0: settings.

In the formulas w is the chosen (winning) completion, l the rejected one, |w| and |l| are their numbers of tokens, b is
beta, e label_smoothing, s the logistic function, r = log pi - log ref, and m = b (r_w - r_l): the margin of the
implicit rewards. "TRL" means version 1.16.

Two of TRL's losses are missing: aot, which sorts within a micro-batch and so depends on the batch size, and discopop,
whose exponential overflows. Which mixtures of losses make sense is in `config/losses.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """DPO, and cDPO where e > 0: `-(1 - e) log s(m) - e log s(-m)`; ln 2 where policy and reference are equal.

    Rafailov et al. (2023), arXiv 2305.18290, equation 7; e is the probability that a label is flipped, from Mitchell
    (2023), "A note on DPO with noisy preferences". TRL's "sigmoid" ignores e: the two are equal where e is 0.
    """
    margins = beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps))
    return _smooth(margins, label_smoothing)


def robust(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """Robust DPO: `(-(1 - e) log s(m) + e log s(-m)) / (1 - 2 e)`.

    If labels are flipped with probability e, its mean over them is DPO on the clean labels. Unlike cDPO it is not
    bounded below. With e = 0 it is DPO. Chowdhury et al. (2024), arXiv 2403.00409, section 3.1.
    """
    margins = beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps))
    right, flipped = (1 - label_smoothing) * F.logsigmoid(margins), label_smoothing * F.logsigmoid(-margins)
    return (flipped - right) / (1 - 2 * label_smoothing)


def ipo(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
) -> Tensor:
    """IPO: `(r_w / |w| - r_l / |l| - 1 / (2 b))^2`.

    Azar et al. (2023), arXiv 2310.12036, equation 17, where b is called tau. The division by the lengths is not in the
    paper; its authors told the authors of TRL that they do divide.
    """
    chosen = (chosen_logps - ref_chosen_logps) / chosen_lengths
    rejected = (rejected_logps - ref_rejected_logps) / rejected_lengths
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def hinge(
    *, chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, beta: float
) -> Tensor:
    """Hinge: `max(0, 1 - m)`.

    Zhao et al. (2023), SLiC-HF, arXiv 2305.10425, section 2, apply it to log-probabilities. Liu et al. (2023), RSO,
    arXiv 2309.06657, apply it to the margin against a reference, as here and in TRL.
    """
    margins = beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps))
    return F.relu(1 - margins)


def sigmoid_norm(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
) -> Tensor:
    """Length-normalised DPO: `-log s(b (r_w / |w| - r_l / |l|))`. Its b is larger than DPO's (5 in the paper).

    Lambert et al. (2024), Tulu 3, arXiv 2411.15124, section 5.
    """
    chosen = (chosen_logps - ref_chosen_logps) / chosen_lengths
    rejected = (rejected_logps - ref_rejected_logps) / rejected_lengths
    return -F.logsigmoid(beta * (chosen - rejected))


def apo_zero(
    *, chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, beta: float
) -> Tensor:
    """APO-zero: `s(-b r_w) + s(b r_l)`. It pushes the chosen up and the rejected down.

    For chosen completions that are better than what the model writes. D'Oosterlinck et al. (2024), arXiv 2408.06266,
    equation 7.
    """
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(
    *, chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, beta: float
) -> Tensor:
    """APO-down: `s(b r_w) + s(-m)`. It pushes the chosen down, and the rejected further down.

    For chosen completions that are worse than what the model writes. D'Oosterlinck et al. (2024), arXiv 2408.06266,
    equation 8.
    """
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def sppo_hard(
    *, chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, beta: float
) -> Tensor:
    """SPPO with certain verdicts: `(r_w - 1 / (2 b))^2 + (r_l + 1 / (2 b))^2`.

    Wu et al. (2024), arXiv 2405.00675, equation 4.7, with a win probability of 1 instead of a judge's estimate; 1 / b
    is called eta there. Not divided by lengths.
    """
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def exo_pair(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """EXO of a pair: `s(m) (log s(m) - log(1 - e)) + s(-m) (log s(-m) - log e)`.

    This is the KL from (s(m), s(-m)) to the labels (1 - e, e), the reverse of cDPO's. It needs e > 0. Ji et al. (2024),
    arXiv 2402.00856, equation 16.
    """
    margins = beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps))
    e = margins.new_tensor(label_smoothing)
    right = torch.sigmoid(margins) * (F.logsigmoid(margins) - torch.log1p(-e))
    return right + torch.sigmoid(-margins) * (F.logsigmoid(-margins) - torch.log(e))


def nca_pair(
    *, chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, beta: float
) -> Tensor:
    """NCA of a pair: `-log s(b r_w) - log s(-b r_w) / 2 - log s(-b r_l) / 2`. It keeps the chosen from falling.

    Chen et al. (2024), arXiv 2402.05369, section 4.1, where b is called alpha.
    """
    chosen, rejected = beta * (chosen_logps - ref_chosen_logps), beta * (rejected_logps - ref_rejected_logps)
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco_pair(
    *, chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, beta: float
) -> Tensor:
    """BCO of a pair: `-log s(b r_w) - log s(-b r_l)`. A classifier of good and bad, with the reward as its logit.

    Jung et al. (2024), arXiv 2404.04656, section 4. As in TRL's DPO trainer, without the paper's reward shift, which is
    a running mean.
    """
    chosen, rejected = beta * (chosen_logps - ref_chosen_logps), beta * (rejected_logps - ref_rejected_logps)
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


def sft(*, chosen_logps: Tensor, mean_chosen_length: float) -> Tensor:
    """Negative log-likelihood of the chosen: `-log pi(w) / L`, L the mean |w| over the pairs of the global step.

    Its mean over those pairs is the mean over their tokens. TRL's "sft" takes this mean for each micro-batch, so its
    result depends on how a step is cut into micro-batches. DPO plus sft is the objective of Iterative RPO, Pang et al.
    (2024), arXiv 2404.19733, equation 1, which divides by each |w| instead.
    """
    return -chosen_logps / mean_chosen_length


def simpo(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
    label_smoothing: float,
    simpo_gamma: float,
) -> Tensor:
    """SimPO: `-(1 - e) log s(n) - e log s(-n)`, where n = b (log pi(w) / |w| - log pi(l) / |l|) - simpo_gamma.

    It needs no reference; b is 2 or more in the paper. Meng et al. (2024), arXiv 2405.14734, equation 6. TRL has it,
    with e, in its CPOTrainer, which by default (cpo_alpha=1) also adds the likelihood of the chosen. Here that is
    `rpo_alpha`.
    """
    margins = beta * (chosen_logps / chosen_lengths - rejected_logps / rejected_lengths) - simpo_gamma
    return _smooth(margins, label_smoothing)


def orpo(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    mean_chosen_length: float,
    beta: float,
) -> Tensor:
    """ORPO: `sft - b log s(log(odds_w / odds_l))`, odds = p / (1 - p) of p = exp(log pi / tokens).

    It needs no reference; b weighs the odds. Hong et al. (2024), arXiv 2403.07691, equations 4 to 7, where b is called
    lambda. The sft of TRL's ORPOTrainer includes the likelihood of the prompt; here it is of the completion alone.
    TRL's gradient is nan within 6e-8 of p = 1; here 1 - p is never below the rounding error.
    """
    odds = _log_odds(chosen_logps / chosen_lengths) - _log_odds(rejected_logps / rejected_lengths)
    return sft(chosen_logps=chosen_logps, mean_chosen_length=mean_chosen_length) - beta * F.logsigmoid(odds)


def _smooth(margins: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * F.logsigmoid(margins) - label_smoothing * F.logsigmoid(-margins)


def _log_odds(logps: Tensor) -> Tensor:
    """Turn log p into log(p / (1 - p))."""
    return logps - torch.log(-torch.expm1(logps.clamp(max=-torch.finfo(logps.dtype).eps)))


LOSSES: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss
    for loss in (
        sigmoid,
        robust,
        ipo,
        hinge,
        sigmoid_norm,
        apo_zero,
        apo_down,
        sppo_hard,
        exo_pair,
        nca_pair,
        bco_pair,
        sft,
        simpo,
        orpo,
    )
}
_ARGUMENTS = {name: tuple(signature(loss).parameters) for name, loss in LOSSES.items()}


@dataclass(frozen=True)
class Objective:
    """The weighted sum of losses that a run minimises.

    Args:
        settings: settings of training. `loss_type` has one name or several. beta, label_smoothing and simpo_gamma are
            needed if one of the losses takes them. `loss_weights` has one weight per loss; None or missing means 1.0
            each. `rpo_alpha`, if present and not None, adds sft with this weight.
    """

    settings: Mapping[str, Any]

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each loss, by name."""
        names = self.settings["loss_type"]
        names = [names] if isinstance(names, str) else names
        weights = dict(zip(names, self.settings.get("loss_weights") or [1.0] * len(names), strict=True))
        alpha = self.settings.get("rpo_alpha")
        return weights if alpha is None else weights | {"sft": alpha}

    @property
    def needs_reference(self) -> bool:
        """Whether any of the losses takes reference log-probabilities."""
        return any(argument.startswith("ref_") for name in self.weights for argument in _ARGUMENTS[name])

    def __call__(self, **values: Tensor | float) -> Tensor:
        """Compute the weighted sum of the losses of P pairs.

        Args:
            values: the arguments of the losses, except the settings. Those that no loss takes may be left out.

        Returns:
            (P,)
        """
        available = {**self.settings, **values}
        terms = [
            weight * LOSSES[name](**{argument: available[argument] for argument in _ARGUMENTS[name]})
            for name, weight in self.weights.items()
        ]
        return torch.stack(terms).sum(0)
