"""Computes the metrics of a step and of a run, under TRL's names.

A step's metrics start as sums over pairs and completions, so that workers can add them up. `loop.py` writes the results
to `metrics.jsonl` and sends them on.
"""

import resource
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.training.batches.batching import MicroBatch
from pipeline.training.modeling.logprobs import RowScores

_PAIR_METRICS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)
# These two are not in TRL. `logps/chosen_fell`: share of pairs whose chosen completion is less likely now than under
# the reference. `kl`: E[log ref - log policy] over completions, in nats per completion. In the first epoch on the
# model's own samples, the completions were drawn from the reference, so `kl` estimates KL(reference || policy), over
# the completions that are in a pair.
_REFERENCE_METRICS = ("logps/chosen_fell", "kl")
# The last two are the number of completions, and the router losses of articles.
NUM_SUMS = len(_PAIR_METRICS) + len(_REFERENCE_METRICS) + 2


def micro_batch_sums(
    batch: MicroBatch, scores: RowScores, values: Mapping[str, Tensor], losses: Tensor, beta: float
) -> Tensor:
    """Sum the values of a micro-batch. The caller adds up these sums over all micro-batches of the step.

    Args:
        batch: P pairs of C completions.
        scores: what the policy gives for the row.
        values: `batch.by_pair(scores)`.
        losses: (P,).
        beta: scale of the rewards, as in TRL.

    Returns:
        (NUM_SUMS,) float64 on the CPU: first sums over pairs, where each value is multiplied by the pair's weight; then
        the sum of log ref - log policy over completions, the number of completions, and the sum of the articles' router
        losses, each multiplied by the weight of its pairs.
    """
    if not len(batch.chosen):
        return torch.zeros(NUM_SUMS, dtype=torch.float64)
    chosen, rejected = (beta * (values[f"{s}_logps"] - values[f"ref_{s}_logps"]) for s in ("chosen", "rejected"))
    columns = (
        losses,
        chosen,
        rejected,
        chosen - rejected,
        chosen > rejected,
        values["chosen_logps"],
        values["rejected_logps"],
        chosen < 0,
    )
    pair_sums = torch.stack([(column.detach().double() * batch.weights).sum() for column in columns])
    fall = (batch.reference_logps - scores.logps).detach().double()
    router = 0.0 if scores.router_losses is None else float((scores.router_losses * batch.article_weights).sum())
    return torch.cat([pair_sums, fall.sum()[None], pair_sums.new_tensor([len(fall), router])]).cpu()


def step_metrics(totals: Tensor, weight: float, has_reference: bool, router_coef: float = 0.0) -> dict[str, float]:
    """Turn the sums over all workers into a step's metrics by name.

    Args:
        totals: (NUM_SUMS,), the sum of the results of `micro_batch_sums` over micro-batches and workers.
        weight: sum of the weights of all pairs; without weights it is the number of pairs.
        has_reference: if False, the metrics that compare with a reference are left out. Rewards are then beta log pi,
            as in TRL's CPO.
        router_coef: the setting `router_aux_loss_coef`. If it is not 0, there is `aux_loss`, and the loss includes it.
    """
    values = dict(zip((*_PAIR_METRICS, "logps/chosen_fell"), (totals[:-3] / weight).tolist(), strict=True))
    if router_coef:
        values["aux_loss"] = float(totals[-1] / weight)
        values["loss"] += router_coef * values["aux_loss"]
    if not has_reference:
        del values["logps/chosen_fell"]
        return values
    return values | {"kl": float(totals[-3] / totals[-2])}


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from now on. On a CPU that is possible on Linux only."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory(device: torch.device) -> float:
    """Peak memory of this process in GiB: of the GPU, or of the machine if it trains on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def summary(lines: Sequence[dict[str, Any]], epochs: int, step: int) -> dict[str, Any]:
    """Summarize a training: counts over all its steps, and means over the pairs of the last epoch.

    The last epoch are the steps of one epoch's length that end at `step`.

    Args:
        lines: the lines of `metrics.jsonl`.
        epochs: the setting `num_train_epochs`.
        step: the step whose weights became the policy: the last step, or the step of the best evaluation.
    """
    train = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "eval_loss" in line and line["step"] <= step]
    until_step = [line for line in train if line["step"] <= step]
    last_epoch = [line for line in until_step if line["epoch"] > until_step[-1]["epoch"] - 1]
    weight = sum(line["weight"] for line in last_epoch)

    def mean(name: str) -> float | None:
        return sum(line[name] * line["weight"] for line in last_epoch) / weight if name in train[0] else None

    chosen_fell = mean("logps/chosen_fell")
    return {
        "steps": len(train),
        "pairs": sum(line["pairs"] for line in train),
        "epochs": min(epochs, train[-1]["epoch"]),
        "tokens": sum(line["num_tokens"] for line in train),
        "tokens_naive": sum(line["num_tokens_naive"] for line in train),
        "step0_loss": train[0]["loss"],
        "final_loss": mean("loss"),
        "final_kl": mean("kl"),
        "chosen_fell": chosen_fell,
        "eval_accuracy_first": held_out[0]["eval_rewards/accuracies"] if held_out else None,
        "eval_accuracy_last": held_out[-1]["eval_rewards/accuracies"] if held_out else None,
        "eval_chosen_fell": held_out[-1].get("eval_logps/chosen_fell") if held_out else None,
        "eval_pairs": held_out[-1]["eval_pairs"] if held_out else 0,
        "peak_memory_gib": max(line["peak_memory_gib"] for line in train),
        "warnings": _warnings(train, chosen_fell),
    }


def _warnings(train: Sequence[dict[str, Any]], chosen_fell: float | None) -> list[str]:
    """Warnings about a training that finished, but may have gone wrong."""
    warnings = []
    if chosen_fell is not None and chosen_fell > 0.5:
        warnings.append(
            f"the chosen completion became less likely in {chosen_fell:.0%} of pairs (likelihood displacement): "
            "setting training.rpo_alpha would hold it up"
        )
    # The reward accuracy alone is not enough: a step with few pairs may get them all right.
    if any(line["epoch"] <= 1 and line["rewards/accuracies"] == 1 and line["loss"] < 0.01 for line in train):
        warnings.append("the model memorized pairs within one epoch (loss near 0): lower learning_rate, or raise beta")
    return warnings
