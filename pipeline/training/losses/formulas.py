"""Defines preference losses, under TRL's names, as pure functions of the log-probabilities of P pairs.

A loss returns (P,), one value per pair; the caller takes the mean over the pairs of the global step. Each loss takes
some of these arguments, all keyword-only:

- `chosen_logps`, `rejected_logps`, `ref_chosen_logps`, `ref_rejected_logps`: (P,) float, the log-probability in nats of
  the whole completion, summed over its tokens, under the policy and under the reference. With `ld_alpha` the tokens
  beyond the shorter completion's length count less.
- `chosen_scores`, `rejected_scores`: (P,) float, log pi - log ref, or another function of it if `f_divergence_type` is
  not reverse_kl (`objective.divergence_scores`).
- `chosen_nll`: (P,) float, -log pi of the chosen completion in nats, in which all tokens count.
- `chosen_lengths`, `rejected_lengths`: (P,), number of tokens of the completion itself, whatever row it is packed in.
- `mean_chosen_length`: number of tokens of a chosen completion, the mean over all pairs of the *global* step.
- `pair_weights`: (P,) float, as how many pairs each pair counts. A loss that takes it compares pairs with each other:
  its P pairs must be those of the whole global step (`whole_step.py`).
- `beta` > 0, `label_smoothing` in [0, 0.5), `simpo_gamma` >= 0 and `discopop_tau` in (0, 1]: settings.

In the formulas w is the chosen (winning) completion, l the rejected one, |w| and |l| are their numbers of tokens, b is
beta, e label_smoothing, s the logistic function, r = log pi - log ref (the score, with another f-divergence), and
m = b (r_w - r_l): the margin of the implicit rewards. "TRL" means version 1.16.

Which mixtures of losses make sense is in `config/losses.py`.
"""

from collections.abc import Callable
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid(
    *,
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """DPO, and cDPO where e > 0: `-(1 - e) log s(m) - e log s(-m)`; ln 2 where policy and reference are equal.

    Rafailov et al. (2023), arXiv 2305.18290, equation 7; e is the probability that a label is flipped, from Mitchell
    (2023), "A note on DPO with noisy preferences". TRL's "sigmoid" ignores e: the two are equal where e is 0.
    """
    margins = beta * (chosen_scores - rejected_scores)
    return _smooth(margins, label_smoothing)


def robust(
    *,
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """Robust DPO: `(-(1 - e) log s(m) + e log s(-m)) / (1 - 2 e)`.

    If labels are flipped with probability e, its mean over them is DPO on the clean labels. Unlike cDPO it is not
    bounded below. With e = 0 it is DPO. Chowdhury et al. (2024), arXiv 2403.00409, section 3.1.
    """
    margins = beta * (chosen_scores - rejected_scores)
    right, flipped = (1 - label_smoothing) * F.logsigmoid(margins), label_smoothing * F.logsigmoid(-margins)
    return (flipped - right) / (1 - 2 * label_smoothing)


def ipo(
    *,
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
) -> Tensor:
    """IPO: `(r_w / |w| - r_l / |l| - 1 / (2 b))^2`.

    Azar et al. (2023), arXiv 2310.12036, equation 17, where b is called tau. The division by the lengths is not in the
    paper; its authors told the authors of TRL that they do divide.
    """
    chosen = chosen_scores / chosen_lengths
    rejected = rejected_scores / rejected_lengths
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def hinge(*, chosen_scores: Tensor, rejected_scores: Tensor, beta: float) -> Tensor:
    """Hinge: `max(0, 1 - m)`.

    Zhao et al. (2023), SLiC-HF, arXiv 2305.10425, section 2, apply it to log-probabilities. Liu et al. (2023), RSO,
    arXiv 2309.06657, apply it to the margin against a reference, as here and in TRL.
    """
    margins = beta * (chosen_scores - rejected_scores)
    return F.relu(1 - margins)


def sigmoid_norm(
    *,
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
) -> Tensor:
    """Length-normalised DPO: `-log s(b (r_w / |w| - r_l / |l|))`. Its b is larger than DPO's (5 in the paper).

    Lambert et al. (2024), Tulu 3, arXiv 2411.15124, section 5.
    """
    chosen = chosen_scores / chosen_lengths
    rejected = rejected_scores / rejected_lengths
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
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """EXO of a pair: `s(m) (log s(m) - log(1 - e)) + s(-m) (log s(-m) - log e)`.

    This is the KL from (s(m), s(-m)) to the labels (1 - e, e), the reverse of cDPO's. It needs e > 0. Ji et al. (2024),
    arXiv 2402.00856, equation 16.
    """
    margins = beta * (chosen_scores - rejected_scores)
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


def discopop(*, chosen_scores: Tensor, rejected_scores: Tensor, beta: float, discopop_tau: float) -> Tensor:
    """DiscoPOP, the log-ratio modulated loss: `-(1 - s(m / t)) log s(m) + s(m / t) exp(-m)`, t = discopop_tau.

    A language model found this formula. With t = 0.05 it falls from m = 0.07 upwards, and has a local minimum at
    m = -0.12. So at m = 0, where training starts, its gradient first narrows the margins. Lu et al. (2024), arXiv
    2406.08414, equation 5. TRL multiplies exp(-m) by the sigmoid; where exp(-m) overflows (m < -88) it gets nan. Here
    the exponents are added first.
    """
    margins = beta * (chosen_scores - rejected_scores)
    modulated = margins / discopop_tau
    return torch.exp(F.logsigmoid(modulated) - margins) - torch.sigmoid(-modulated) * F.logsigmoid(margins)


def aot(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    pair_weights: Tensor,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """AOT for paired data: DPO on sorted margins, `-(1 - e) log s(b (u - v)) - e log s(b (v - u))`.

    u is log pi(w) - log pi(l), v the same under the reference; the i-th smallest u of the step meets the i-th smallest
    v. It pushes the distribution of u above that of v (first-order stochastic dominance) instead of each u above its
    own v. With weights, quantiles meet: a pair of weight 2 is sorted as two pairs. Melnyk et al. (2024), arXiv
    2406.05882, "paired AOT", with the logistic loss. TRL sorts the micro-batch of a device; here the pairs of the whole
    step are sorted.
    """
    policy, reference = chosen_logps - rejected_logps, ref_chosen_logps - ref_rejected_logps
    return _sorted_margins(policy, reference, pair_weights, beta, label_smoothing)


def aot_unpaired(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    pair_weights: Tensor,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """AOT for unpaired data: like `aot`, where the i-th smallest r_w of the step meets the i-th smallest r_l.

    So it does not matter which chosen and which rejected completion belong together. Melnyk et al. (2024), arXiv
    2406.05882, "unpaired AOT", with the logistic loss.
    """
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    return _sorted_margins(chosen, rejected, pair_weights, beta, label_smoothing)


def sft(*, chosen_nll: Tensor, mean_chosen_length: float) -> Tensor:
    """Negative log-likelihood of the chosen: `-log pi(w) / L`, L the mean |w| over the pairs of the global step.

    Its mean over those pairs is the mean over their tokens. TRL's "sft" takes this mean for each micro-batch, so its
    result depends on how a step is cut into micro-batches. DPO plus sft is the objective of Iterative RPO, Pang et al.
    (2024), arXiv 2404.19733, equation 1, which divides by each |w| instead.
    """
    return chosen_nll / mean_chosen_length


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
    return sft(chosen_nll=-chosen_logps, mean_chosen_length=mean_chosen_length) - beta * F.logsigmoid(odds)


def _smooth(margins: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * F.logsigmoid(margins) - label_smoothing * F.logsigmoid(-margins)


def _sorted_margins(upper: Tensor, lower: Tensor, weights: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """The smoothed DPO loss of `upper` against `lower`, quantile by quantile: (P,), in the order of `upper`.

    This is the optimal transport of two weighted samples on a line. Each sorted sample is a staircase of P steps, as
    wide as the weights. Both staircases are cut where either has a step, into at most 2 P pieces.
    """
    upper_order, lower_order = upper.argsort(stable=True), lower.argsort(stable=True)
    upper_ends, lower_ends = (weights[order].double().cumsum(0) for order in (upper_order, lower_order))
    ends = torch.cat([upper_ends, lower_ends]).sort().values
    widths = ends.diff(prepend=ends.new_zeros(1))
    middles, last = ends - widths / 2, max(0, len(weights) - 1)
    # The two sums of weights may differ by rounding, so the last middle may lie beyond one of them.
    above = upper_order[torch.searchsorted(upper_ends, middles).clamp(max=last)]
    below = lower_order[torch.searchsorted(lower_ends, middles).clamp(max=last)]
    losses = widths.to(upper) * _smooth(beta * (upper[above] - lower[below]), label_smoothing)
    return torch.zeros_like(upper).index_add(0, above, losses) / weights


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
        discopop,
        aot,
        aot_unpaired,
        sft,
        simpo,
        orpo,
    )
}
ARGUMENTS = {name: tuple(signature(loss).parameters) for name, loss in LOSSES.items()}  # what each loss takes
