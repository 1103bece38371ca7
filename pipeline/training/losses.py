"""Preference losses by TRL's names: pure functions of a pair's log-probabilities, and the sum of them to minimise.

A loss names in its signature what it takes of the following, all keyword-only, and gives one value a pair, (P,):
`chosen_logps`, `rejected_logps`, `ref_chosen_logps`, `ref_rejected_logps`: (P,) float, the log-probability in nats of
the whole completion, summed over its tokens, under the policy and under the reference; `chosen_lengths`,
`rejected_lengths`: (P,), tokens of the completion itself, whatever row it is packed in; `mean_chosen_length`: tokens
of a chosen completion, the mean over all pairs of the *global* step; `beta` > 0, `label_smoothing` in [0, 0.5) and
`simpo_gamma` >= 0: settings. The caller takes the mean over the pairs of the global step.

In the formulas w is the chosen (winning) completion, l the rejected one, |w| and |l| are their tokens, b is beta,
e label_smoothing, s the logistic function, r = log pi - log ref, and m = b (r_w - r_l): the margin of the implicit
rewards. TRL is version 1.16. Left out: what sorts within a micro-batch (aot), and so means another thing at another
batch size; discopop, whose exponential overflows; which mixtures make sense (`pipeline/objective.py`).
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
    (2023), "A note on DPO with noisy preferences". TRL gives e no part in its "sigmoid": equal where e is 0.
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

    The mean of it over labels that are flipped with probability e is DPO on the clean ones; unlike cDPO it is not
    bounded below. With e = 0 it is DPO. Chowdhury et al. (2024), arXiv 2403.00409, section 3.1.
    """
    margins = beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps))
    kept, flipped = (1 - label_smoothing) * F.logsigmoid(margins), label_smoothing * F.logsigmoid(-margins)
    return (flipped - kept) / (1 - 2 * label_smoothing)


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

    Azar et al. (2023), arXiv 2310.12036, equation 17, where b is called tau. The paper does not write the division by
    the lengths; its authors told TRL's that they did divide.
    """
    chosen = (chosen_logps - ref_chosen_logps) / chosen_lengths
    rejected = (rejected_logps - ref_rejected_logps) / rejected_lengths
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def hinge(
    *, chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, beta: float
) -> Tensor:
    """Hinge: `max(0, 1 - m)`.

    Zhao et al. (2023), SLiC-HF, arXiv 2305.10425, section 2, on log-probabilities; on the margin against a reference,
    as here and in TRL, Liu et al. (2023), RSO, arXiv 2309.06657.
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
    """Length-normalised DPO: `-log s(b (r_w / |w| - r_l / |l|))`, so that b is larger than DPO's (5 in the paper).

    Lambert et al. (2024), Tulu 3, arXiv 2411.15124, section 5.
    """
    chosen = (chosen_logps - ref_chosen_logps) / chosen_lengths
    rejected = (rejected_logps - ref_rejected_logps) / rejected_lengths
    return -F.logsigmoid(beta * (chosen - rejected))


def apo_zero(
    *, chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, beta: float
) -> Tensor:
    """APO-zero: `s(-b r_w) + s(b r_l)`, where the chosen are better than what the model writes: up, the rejected down.

    D'Oosterlinck et al. (2024), arXiv 2408.06266, equation 7.
    """
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(
    *, chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, beta: float
) -> Tensor:
    """APO-down: `s(b r_w) + s(-m)`, where the chosen are worse than what the model writes: down, the rejected more so.

    D'Oosterlinck et al. (2024), arXiv 2408.06266, equation 8.
    """
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def sppo_hard(
    *, chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, beta: float
) -> Tensor:
    """SPPO with certain verdicts: `(r_w - 1 / (2 b))^2 + (r_l + 1 / (2 b))^2`.

    Wu et al. (2024), arXiv 2405.00675, equation 4.7, where a win has probability 1 instead of a judge's estimate, and
    1 / b is called eta. Not divided by lengths.
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

    That is KL from (s(m), s(-m)) to the labels (1 - e, e), the reverse of cDPO's; it needs e > 0. Ji et al. (2024),
    arXiv 2402.00856, equation 16.
    """
    margins = beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps))
    e = margins.new_tensor(label_smoothing)
    kept = torch.sigmoid(margins) * (F.logsigmoid(margins) - torch.log1p(-e))
    return kept + torch.sigmoid(-margins) * (F.logsigmoid(-margins) - torch.log(e))


def nca_pair(
    *, chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, beta: float
) -> Tensor:
    """NCA of a pair: `-log s(b r_w) - log s(-b r_w) / 2 - log s(-b r_l) / 2`, which keeps the chosen from falling.

    Chen et al. (2024), arXiv 2402.05369, section 4.1, where b is called alpha.
    """
    chosen, rejected = beta * (chosen_logps - ref_chosen_logps), beta * (rejected_logps - ref_rejected_logps)
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco_pair(
    *, chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, beta: float
) -> Tensor:
    """BCO of a pair: `-log s(b r_w) - log s(-b r_l)`, a classifier of good and bad whose logit is the reward.

    Jung et al. (2024), arXiv 2404.04656, section 4. As in TRL's DPO trainer without the reward shift, a running mean.
    """
    chosen, rejected = beta * (chosen_logps - ref_chosen_logps), beta * (rejected_logps - ref_rejected_logps)
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


def sft(*, chosen_logps: Tensor, mean_chosen_length: float) -> Tensor:
    """Negative log-likelihood of the chosen: `-log pi(w) / L`, L the mean |w| over the pairs of the global step.

    Its mean over those pairs is the mean over their tokens: TRL's "sft", which takes it a micro-batch at a time, and so
    differs between ways of cutting a step up. Added to DPO: the objective of Iterative RPO, Pang et al. (2024), arXiv
    2404.19733, equation 1, which divides by each |w| instead.
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

    No reference; b is 2 and more in the paper: Meng et al. (2024), arXiv 2405.14734, equation 6. TRL has it, with e, in
    its CPOTrainer, which by default (cpo_alpha=1) also adds the likelihood of the chosen: that is `rpo_alpha` here.
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

    No reference; b weighs the odds and is called lambda by Hong et al. (2024), arXiv 2403.07691, equations 4 to 7.
    TRL's ORPOTrainer takes the likelihood of the prompt into its sft; this is of the completion alone. And TRL's
    gradient is nan within 6e-8 of p = 1; here 1 - p is never below the rounding error.
    """
    odds = _log_odds(chosen_logps / chosen_lengths) - _log_odds(rejected_logps / rejected_lengths)
    return sft(chosen_logps=chosen_logps, mean_chosen_length=mean_chosen_length) - beta * F.logsigmoid(odds)


def _smooth(margins: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * F.logsigmoid(margins) - label_smoothing * F.logsigmoid(-margins)


def _log_odds(logps: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p."""
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
_TAKES = {name: tuple(signature(loss).parameters) for name, loss in LOSSES.items()}


@dataclass(frozen=True)
class Objective:
    """What a run minimises: the weighted sum of its losses.

    Args:
        settings: of training; `loss_type`, a name or several, and what these take of beta, label_smoothing and
            simpo_gamma; `loss_weights`, one a loss, 1.0 each if None or left out; `rpo_alpha`, the weight of sft on
            top, if there is one.
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
        """Does any of the losses look at the reference?"""
        return any(value.startswith("ref_") for name in self.weights for value in _TAKES[name])

    def __call__(self, **values: Tensor | float) -> Tensor:
        """(P,) of all that a loss may take but the settings; what none of the losses takes may be left out."""
        given = {**self.settings, **values}
        terms = [
            weight * LOSSES[name](**{value: given[value] for value in _TAKES[name]})
            for name, weight in self.weights.items()
        ]
        return torch.stack(terms).sum(0)
