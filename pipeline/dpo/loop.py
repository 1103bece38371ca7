"""The training run, seen from one worker: steps, held-out evaluation, the step-0 check, metrics, checkpoints.

It knows torch.distributed and no Ray: whoever starts it gives a device, a rank and two places to report to. Nothing
in it draws random numbers, so the step number is all the position there is. Metric names are TRL's.
Left out: early stopping, keeping the best checkpoint.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.dpo import checkpoint, weights
from pipeline.dpo.example import Example
from pipeline.dpo.logps import check_model, completion_logps, refuse
from pipeline.dpo.losses import LOSSES
from pipeline.dpo.optimizer import Optimizer, learning_rate
from pipeline.dpo.plan import MicroBatch, Step, micro_batches, split, steps
from pipeline.dpo.sharding import Policy, shard, whole
from pipeline.dpo.tree import grow

# How far the loss may be from that of zero margins at step 0, and a tenth of how far a single reward margin may be
# from 0. The reference has the same weights and other row companions, so what is left is rounding: of sums near 100
# nats in float32, and in bf16 of every layer.
STEP0_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
_METRICS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "logps/chosen_fell",  # share of pairs whose chosen is now less likely than under the reference; not in TRL
)


@dataclass
class Run:
    """One worker's share of a training run. Making one reads the model and talks to no other worker.

    Args:
        examples: all rows, the same on every worker.
        model_path: folder, URI or hub name of the model or adapter to train, which is also the reference.
        settings: loss_type, beta, label_smoothing, learning_rate, num_train_epochs, pairs_per_step, warmup_ratio,
            lr_scheduler_type, max_grad_norm, weight_decay, adam_beta1, adam_beta2, eval_fraction, dtype, seed, and
            checkpoint_steps (50 if left out), lora (`config.Lora` as a dict; None or left out: all weights learn).
        tokens_per_batch: of one packed row.
        device, rank, workers: of this process; with more than one worker torch.distributed is set up.
        report: called on rank 0 with each line of metrics.
        keep: called on every worker with a checkpoint folder, which is deleted afterwards.

    Raises:
        ValueError: nothing to train on, or a model that cannot be scored on a tree.
    """

    examples: Sequence[Example]
    model_path: str
    settings: Mapping[str, Any]
    tokens_per_batch: int
    device: torch.device
    rank: int = 0
    workers: int = 1
    report: Callable[[dict[str, Any]], None] = lambda line: None
    keep: Callable[[Path], None] = lambda folder: None
    lines: list[dict[str, Any]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        s = self.settings
        self.train, self.held_out = split(self.examples, s["eval_fraction"])
        self.plan = steps(self.train, epochs=s["num_train_epochs"], pairs_per_step=s["pairs_per_step"], seed=s["seed"])
        self.policy = Policy(weights.start(self.model_path, s["dtype"], s.get("lora"), s["seed"]))
        # Now, and for all articles: later it would be one worker's error while the others wait for it.
        refuse(self.policy.model, max(example.longest for example in self.examples))

    def play(self, resume_from: Path | None = None) -> dict[str, Any]:
        """Train from the beginning or from a checkpoint to the end.

        Returns:
            What to know of the run: see `_summary`.

        Raises:
            ValueError: the model cannot be scored on a tree, or at step 0 it is not the reference.
        """
        if self.workers > 1:
            shard(self.policy, self.device, self.workers)
        else:
            self.policy.to(self.device)
        self.optimizer = Optimizer(self.policy, self.settings)
        done, margin, before = 0, 0.0, 0.0
        if resume_from is None:
            smallest = min(self.train, key=lambda example: (example.tokens, example.article_id))
            self.policy(check_model, grow([smallest.article]).to(self.device))
            self._evaluate(0, 0.0)
        else:
            state = checkpoint.load(resume_from, self.optimizer, rank=self.rank, workers=self.workers)
            done, self.lines = state["step"], state["lines"]
            margin, before = state["step0_max_abs_margin"], state["seconds"]
        began = time.monotonic() - before
        every = self.settings.get("checkpoint_steps", 50)
        for number, step in enumerate(self.plan[done:], start=done):
            largest = self._step(number, step)
            margin = largest if number == 0 else margin
            if step.epoch == int(step.epoch):
                self._evaluate(number + 1, step.epoch)
            if (number + 1) % every == 0 and number + 1 < len(self.plan):
                state = {"step": number + 1, "lines": self.lines, "step0_max_abs_margin": margin}
                self._checkpoint(state | {"seconds": time.monotonic() - began})
        return self._summary(margin, time.monotonic() - began)

    def save(self, out: Path) -> None:
        """Write the model folder and metrics.jsonl, from rank 0. A collective: every worker calls it."""
        state = whole(self.policy, keep=self.rank == 0)
        if self.rank == 0:
            weights.save(state, self.model_path, out, self.settings.get("lora"))
            text = "".join(json.dumps(line) + "\n" for line in self.lines)
            (out / "metrics.jsonl").write_text(text, encoding="utf-8")

    def _step(self, number: int, step: Step) -> float:
        """One update. Returns the largest absolute reward margin before it."""
        began = time.monotonic()
        totals, largest = torch.zeros(len(_METRICS), dtype=torch.float64), 0.0
        for batch in self._batches(step.examples):
            losses, metrics = self._score(batch)
            (losses.sum() / step.pairs).backward()
            self.optimizer.collect()
            totals += metrics.sum(0)
            largest = max([largest, *metrics[:, _METRICS.index("rewards/margins")].abs().tolist()])
        means = self._sum(totals) / step.pairs
        if number == 0:
            largest = self._largest(largest)
            self._check_step0(float(means[0]), largest)
        rate = learning_rate(
            number,
            total=len(self.plan),
            peak=self.settings["learning_rate"],
            warmup_ratio=self.settings["warmup_ratio"],
            kind=self.settings["lr_scheduler_type"],
        )
        norm = self.optimizer.step(rate)
        seconds = time.monotonic() - began
        line = {"step": number + 1, "epoch": step.epoch, **dict(zip(_METRICS, means.tolist(), strict=True))}
        line |= {"grad_norm": norm, "learning_rate": rate, "pairs": step.pairs, "tokens": step.tokens}
        self._log(line | {"tokens_per_second": step.tokens / seconds})
        return largest

    @torch.no_grad()
    def _evaluate(self, number: int, epoch: float) -> None:
        if not self.held_out:
            return
        totals = torch.zeros(len(_METRICS), dtype=torch.float64)
        for batch in self._batches(self.held_out):
            totals += self._score(batch)[1].sum(0)
        pairs = sum(len(example.pairs) for example in self.held_out)
        means = dict(zip(_METRICS, (self._sum(totals) / pairs).tolist(), strict=True))
        line = {f"eval_{name}": value for name, value in means.items()}
        self._log({"step": number, "epoch": epoch, **line, "eval_pairs": pairs})

    def _batches(self, examples: Sequence[Example]) -> list[MicroBatch]:
        return micro_batches(examples, rank=self.rank, workers=self.workers, tokens_per_batch=self.tokens_per_batch)

    def _score(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """(pairs,) losses with their graph, and (pairs, metrics) float64 on the CPU without."""
        batch = batch.to(self.device)
        logps = self.policy(completion_logps, batch.tree)
        chosen, rejected = logps[batch.chosen], logps[batch.rejected]
        losses = self._loss(chosen, rejected, batch.ref_chosen_logps, batch.ref_rejected_logps)
        chosen_change, rejected_change = chosen - batch.ref_chosen_logps, rejected - batch.ref_rejected_logps
        beta = self.settings["beta"]
        columns = (
            losses,
            beta * chosen_change,
            beta * rejected_change,
            beta * (chosen_change - rejected_change),
            beta * chosen_change > beta * rejected_change,
            chosen,
            rejected,
            chosen_change < 0,
        )
        return losses, torch.stack([column.detach().to("cpu", torch.float64) for column in columns], dim=1)

    def _loss(self, chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
        return LOSSES[self.settings["loss_type"]](
            chosen_logps=chosen,
            rejected_logps=rejected,
            ref_chosen_logps=ref_chosen,
            ref_rejected_logps=ref_rejected,
            beta=self.settings["beta"],
            label_smoothing=self.settings["label_smoothing"],
        )

    def _check_step0(self, loss: float, largest: float) -> None:
        zero = torch.zeros(1)
        expected = float(self._loss(zero, zero, zero, zero))
        limit = STEP0_TOLERANCE[self.settings["dtype"]]
        if not (abs(loss - expected) <= limit and largest <= 10 * limit):  # also where one is nan
            raise ValueError(
                f"at step 0, before any update, the loss is {loss:.6f} and the largest reward margin {largest:.2g}; "
                f"the model to train is the reference, so they must be {expected:.6f} and 0, within {limit} and "
                f"{10 * limit:g}. The reference log-probabilities are of other weights, another dtype or other "
                "tokens: make the references again with this model"
            )

    def _checkpoint(self, state: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(Path(folder), self.optimizer, state, rank=self.rank, workers=self.workers)
            self.keep(Path(folder))

    def _log(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if self.rank == 0:
            self.report({"steps": len(self.plan), **line})

    def _sum(self, values: Tensor) -> Tensor:
        """(n,) summed over the workers, on the CPU."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def _largest(self, value: float) -> float:
        return float(self._reduce(torch.tensor([value], dtype=torch.float64), dist.ReduceOp.MAX))

    def _reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.workers > 1:
            values = values.to(self.device)
            dist.all_reduce(values, operation)
        return values.cpu()

    def _summary(self, margin: float, seconds: float) -> dict[str, Any]:
        """Counts are over all steps; `final_loss` and `chosen_fell` are means over the pairs of the last epoch."""
        train = [line for line in self.lines if "loss" in line]
        held_out = [line for line in self.lines if "eval_loss" in line]
        last = [line for line in train if line["epoch"] > self.settings["num_train_epochs"] - 1]
        pairs = sum(line["pairs"] for line in last)

        def mean(name: str) -> float:
            return sum(line[name] * line["pairs"] for line in last) / pairs

        return {
            "steps": len(train),
            "pairs": sum(line["pairs"] for line in train),
            "epochs": self.settings["num_train_epochs"],
            "tokens": sum(line["tokens"] for line in train),
            "seconds": seconds,
            "step0_loss": train[0]["loss"],
            "step0_max_abs_margin": margin,
            "final_loss": mean("loss"),
            "chosen_fell": mean("logps/chosen_fell"),
            "eval_accuracy_first": held_out[0]["eval_rewards/accuracies"] if held_out else None,
            "eval_accuracy_last": held_out[-1]["eval_rewards/accuracies"] if held_out else None,
            "eval_chosen_fell": held_out[-1]["eval_logps/chosen_fell"] if held_out else None,
            "eval_pairs": held_out[-1]["eval_pairs"] if held_out else 0,
        }
