"""Preference losses: pure functions of four tensors, named as in TRL. One value a pair; the caller reduces.

Each takes, keyword-only, `chosen_logps`, `rejected_logps`, `ref_chosen_logps`, `ref_rejected_logps`: (pairs,) float,
the log-probability in nats of the whole completion under the policy and under the reference; and its own settings.
Left out: anything that sorts or averages within a micro-batch, whose meaning would change with the batch size.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def sigmoid(
    *,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """DPO, and cDPO where `label_smoothing` is above 0.

    With `m = beta ((log pi(w) - log ref(w)) - (log pi(l) - log ref(l)))`, the margin of the implicit rewards:

        loss = -(1 - e) log sigmoid(m) - e log sigmoid(-m)

    Rafailov et al. (2023), arXiv 2305.18290, equation 7; `e`, the probability that a label is flipped, from Mitchell
    (2023), "A note on DPO with noisy preferences". TRL 1.16 gives `e` no part in its "sigmoid", so the two agree
    where it is 0. (TRL's "robust" is another formula.)

    Args:
        beta: weight of the reference, above 0.
        label_smoothing: `e`, in [0, 0.5).

    Returns:
        (pairs,), ln 2 where policy and reference are equal.
    """
    margins = beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps))
    return -(1 - label_smoothing) * F.logsigmoid(margins) - label_smoothing * F.logsigmoid(-margins)


LOSSES: dict[str, Callable[..., Tensor]] = {"sigmoid": sigmoid}
