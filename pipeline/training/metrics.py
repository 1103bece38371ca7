"""What is measured of a step, by TRL's names: sums over pairs and completions, so that workers can add them up.

Left out: where the numbers go (`loop.py` hands them on, `metrics.jsonl` has them all).
"""

import resource
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.training.batches.batching import MicroBatch

_OF_PAIRS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)
# Not in TRL. `logps/chosen_fell`: share of pairs whose chosen is now less likely than under the reference.
# `kl`: E[log ref - log policy] over completions, in nats each. Those of a first epoch on its own samples were drawn
# from the reference, so it estimates KL(reference || policy) (of the completions that made a pair).
_WITH_REFERENCE = ("logps/chosen_fell", "kl")
COUNT = len(_OF_PAIRS) + len(_WITH_REFERENCE) + 1


def sums(batch: MicroBatch, logps: Tensor, losses: Tensor, beta: float) -> Tensor:
    """What a micro-batch adds to a step's metrics.

    Args:
        batch: P pairs of C completions.
        logps: (C,) of the policy.
        losses: (P,).
        beta: what rewards are in units of, as in TRL.

    Returns:
        (COUNT,) float64 on the CPU: sums over pairs, each as often as it counts; then over completions, and the number
        of these.
    """
    if not len(batch.chosen):
        return torch.zeros(COUNT, dtype=torch.float64)
    change = logps - batch.reference_logps
    chosen, rejected = beta * change[batch.chosen], beta * change[batch.rejected]
    columns = (
        losses,
        chosen,
        rejected,
        chosen - rejected,
        chosen > rejected,
        logps[batch.chosen],
        logps[batch.rejected],
        chosen < 0,
    )
    of_pairs = torch.stack([(column.detach().double() * batch.weights).sum() for column in columns])
    return torch.cat([of_pairs, -change.detach().double().sum()[None], of_pairs.new_tensor([len(change)])]).cpu()


def means(totals: Tensor, weight: float, referenced: bool) -> dict[str, float]:
    """Metrics of a step by name, from the sums over all workers.

    Args:
        weight: of all pairs; where they have none of their own, how many there are.
        referenced: there is a reference. Without one rewards are beta log pi, as TRL's CPO has them, and what
            compares with a reference is left out.
    """
    values = dict(zip((*_OF_PAIRS, "logps/chosen_fell"), (totals[:-2] / weight).tolist(), strict=True))
    if not referenced:
        del values["logps/chosen_fell"]
        return values
    return values | {"kl": float(totals[-2] / totals[-1])}


def peak_memory(device: torch.device) -> float:
    """GiB that this process needed at most: of the GPU, or of the machine if it trains on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def summary(lines: Sequence[dict[str, Any]], epochs: int, step: int) -> dict[str, Any]:
    """A run in a few numbers: counts over all its steps, and means over the pairs of an epoch's worth of the last.

    Args:
        step: whose weights are the policy: the last, or that of the best evaluation.
    """
    train = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "eval_loss" in line and line["step"] <= step]
    done = [line for line in train if line["step"] <= step]
    last = [line for line in done if line["epoch"] > done[-1]["epoch"] - 1]
    weight = sum(line["weight"] for line in last)

    def mean(name: str) -> float | None:
        return sum(line[name] * line["weight"] for line in last) / weight if name in train[0] else None

    fell = mean("logps/chosen_fell")
    return {
        "steps": len(train),
        "pairs": sum(line["pairs"] for line in train),
        "epochs": min(epochs, train[-1]["epoch"]),
        "tokens": sum(line["num_tokens"] for line in train),
        "tokens_naive": sum(line["num_tokens_naive"] for line in train),
        "step0_loss": train[0]["loss"],
        "final_loss": mean("loss"),
        "final_kl": mean("kl"),
        "chosen_fell": fell,
        "eval_accuracy_first": held_out[0]["eval_rewards/accuracies"] if held_out else None,
        "eval_accuracy_last": held_out[-1]["eval_rewards/accuracies"] if held_out else None,
        "eval_chosen_fell": held_out[-1].get("eval_logps/chosen_fell") if held_out else None,
        "eval_pairs": held_out[-1]["eval_pairs"] if held_out else 0,
        "peak_memory_gib": max(line["peak_memory_gib"] for line in train),
        "warnings": _warnings(train, fell),
    }


def _warnings(train: Sequence[dict[str, Any]], fell: float | None) -> list[str]:
    """What a run that went through may still have done wrong."""
    said = []
    if fell is not None and fell > 0.5:
        said.append(
            f"the chosen became less likely in {fell:.0%} of pairs (displacement); training.rpo_alpha would anchor it"
        )
    # Of the reward accuracy alone one could not tell: a step of few pairs may have them all right.
    if any(line["epoch"] <= 1 and line["rewards/accuracies"] == 1 and line["loss"] < 0.01 for line in train):
        said.append("pairs were learned by heart within an epoch (loss near 0): lower learning_rate, or raise beta")
    return said
