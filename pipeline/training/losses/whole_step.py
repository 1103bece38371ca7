"""Computes losses that compare all pairs of a step, when the step is computed row by row on several workers.

A first pass without gradients gives the log-probabilities of all pairs. On these numbers the loss of the whole step is
cheap, and so is its slope with respect to each of them. A second pass then computes each row again with gradients, and
multiplies its log-probabilities by their slopes: the sum over all rows and workers has the gradient of the whole
step's loss, except for rounding. This is gradient caching: Gao et al. (2021), arXiv 2101.06983. It costs one more
forward pass, and no memory for more than one row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.training.losses.objective import Objective

# The values of a pair through which the gradient flows into the policy.
_TRAINED = ("chosen_logps", "rejected_logps", "chosen_nll")


@dataclass(frozen=True)
class RowSlopes:
    """What the first pass gives for a row of P pairs.

    Attributes:
        losses: (P,).
        slopes: for each value through which the gradient flows, (P,): the derivative of the step's loss.
    """

    losses: Tensor
    slopes: Mapping[str, Tensor]

    def surrogate(self, values: Mapping[str, Tensor]) -> Tensor:
        """A sum whose gradient is this row's part of the gradient of the step's loss.

        Args:
            values: the row's values, with gradients.

        Returns:
            ()
        """
        return torch.stack([(values[name] * slope).sum() for name, slope in self.slopes.items()]).sum()


def step_slopes(
    objective: Objective,
    rows: Sequence[Mapping[str, Tensor]],
    *,
    weight: float,
    mean_chosen_length: float,
    rank: int,
    workers: int,
) -> list[RowSlopes]:
    """Compute the losses of all pairs of a step, and their slopes. A collective: every worker must call it.

    Args:
        objective: the losses.
        rows: for each row of this worker, the values of its P pairs by name (`MicroBatch.by_pair`), (P,) each.
        weight: sum of the weights of all pairs of the step.
        mean_chosen_length: see `formulas.py`.
        rank, workers: of this process.

    Returns:
        One for each row of this worker, on the row's device.
    """
    own = {name: torch.cat([row[name].detach().cpu() for row in rows]) for name in rows[0]}
    shares = [own]
    if workers > 1:
        shares = [{} for _ in range(workers)]
        dist.all_gather_object(shares, own)
    step = {name: torch.cat([share[name] for share in shares]) for name in own}
    trained = {name: step[name].requires_grad_() for name in _TRAINED}
    with torch.enable_grad():
        losses = objective(**step, mean_chosen_length=mean_chosen_length)
        total = (losses * step["pair_weights"]).sum() / weight
        gradients = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    slopes = {name: gradient for name, gradient in zip(trained, gradients, strict=True) if gradient is not None}
    begin = sum(len(share["pair_weights"]) for share in shares[:rank])
    found = []
    for row in rows:
        end, device = begin + len(row["pair_weights"]), row["pair_weights"].device
        of_row = {name: slope[begin:end].to(device) for name, slope in slopes.items()}
        found.append(RowSlopes(losses[begin:end].detach().to(device), of_row))
        begin = end
    return found
