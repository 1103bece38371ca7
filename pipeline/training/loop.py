"""The training run, seen from one worker: steps, held-out evaluation, the step-0 check, checkpoints, the best weights.

It knows torch.distributed and no Ray: whoever starts it gives a device, a rank, and a shelf for what must outlive a
process. Nothing in it draws random numbers, so the step number is all the position there is.
Left out: what is measured (`metrics.py`), and how a step is cut up (`plan.py`).
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.training import checkpoint, consistency, metrics
from pipeline.training.batches.batching import MicroBatch, Step, micro_batches, plan_steps, split_held_out
from pipeline.training.batches.example import Example
from pipeline.training.losses import Objective
from pipeline.training.modeling import loading
from pipeline.training.modeling.fsdp import PolicyModule, checkpoint_activations, compile_layers, full_state_dict, shard
from pipeline.training.modeling.logprobs import check_supported, completion_logps
from pipeline.training.optimizer import Optimizer, learning_rate


class CheckpointStore(Protocol):
    """Where a run's checkpoints are kept. Every worker calls each method, with a folder that has its own part."""

    def keep(self, folder: Path) -> None:
        """Keep the last checkpoint; the folder is deleted afterwards."""

    def keep_best(self, name: str, folder: Path) -> None:
        """Keep the best weights so far, under a name."""

    def best(self, name: str) -> AbstractContextManager[Path]:
        """A folder, while the block runs, with all workers' parts of what is kept under a name."""

    def forget(self, but: Sequence[str]) -> None:
        """Remove all best weights but those of these names."""


@dataclass
class TrainState:
    """How far a run has come, but for the optimizer's tensors: what a checkpoint says of it, in JSON.

    Attributes:
        step: updates made.
        seconds: spent in training.
        lines: of metrics.
        margin: largest absolute reward margin at step 0.
        passport: see `passport.measure`.
        best: step whose weights did best on held-out pairs; None before the first evaluation.
        score: of the best, higher is better; None before the first evaluation.
        worse: evaluations since the best.
        stopped: early, because `worse` reached the patience.
        bests: `best` as of the last two checkpoints, to which a run may have to go back.
    """

    step: int = 0
    seconds: float = 0.0
    lines: list[dict[str, Any]] = field(default_factory=list)
    margin: float = 0.0
    passport: dict[str, Any] = field(default_factory=dict)
    best: int | None = None
    score: float | None = None
    worse: int = 0
    stopped: bool = False
    bests: list[int | None] = field(default_factory=list)


@dataclass
class TrainLoop:
    """One worker's share of a training run. Making one reads the model and talks to no other worker.

    Args:
        examples: all rows, the same on every worker.
        model_path: folder, URI or hub name of the model or adapter to train.
        settings: of `learning.Training`, as a mapping; and dtype, seed and references (`learning.References`).
        tokens_per_batch: of one packed row.
        device, rank, workers: of this process; with more than one worker torch.distributed is set up.
        article_tree: else each completion is a sequence of its own: slow, and right for every model.
        gradient_checkpointing, cpu_offload, torch_compile: as in `hardware.Trainer`.
        save_steps: updates between checkpoints.
        report: called on rank 0 with each line of metrics.
        shelf: None keeps nothing.
        from_reference: the model to train is the reference: at step 0 the loss is that of margins of 0, and it is
            checked; else who starts the run checks the reference (`passport.check_reference`).

    Raises:
        ValueError: nothing to train on, a loss that needs a reference where there is none, or a model that cannot be
            scored on a tree.
    """

    examples: Sequence[Example]
    model_path: str
    settings: Mapping[str, Any]
    tokens_per_batch: int
    device: torch.device
    rank: int = 0
    workers: int = 1
    article_tree: bool = True
    gradient_checkpointing: bool = False
    cpu_offload: bool = False
    torch_compile: bool = False
    save_steps: int = 50
    report: Callable[[dict[str, Any]], None] = lambda line: None
    shelf: CheckpointStore | None = None
    from_reference: bool = True
    state: TrainState = field(init=False, default_factory=TrainState)

    def __post_init__(self) -> None:
        s = self.settings
        self.train, self.held_out = split_held_out(self.examples, s["eval_fraction"])
        self.plan = plan_steps(
            self.train, epochs=s["num_train_epochs"], pairs_per_step=s["pairs_per_step"], seed=s["seed"]
        )
        self.objective = Objective(s)
        self.referenced = all(example.reference_logps for example in self.examples)
        if self.objective.needs_reference and not self.referenced:
            raise ValueError(f"loss_type={s['loss_type']} compares with a reference, and references.source is none")
        self.policy = PolicyModule(
            loading.load_policy(self.model_path, s["dtype"], s["lora"], s["seed"], article_tree=self.article_tree)
        )
        if not self.held_out and (s["load_best_model_at_end"] or s["early_stopping_patience"]):
            raise ValueError(
                f"load_best_model_at_end or early_stopping_patience is set, and eval_fraction={s['eval_fraction']} "
                f"holds out none of {len(self.examples)} articles: raise it, or add articles"
            )
        # Now, and for all articles: later it would be one worker's error while the others wait for it.
        check_supported(self.policy.model, max(example.longest for example in self.examples))

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Lines of metrics, so far."""
        return self.state.lines

    def play(self, resume_from: Path | None = None) -> dict[str, Any]:
        """Train from the beginning or from a checkpoint to the end.

        Returns:
            What to know of the run: see `metrics.summary`; and seconds, step0_max_abs_margin, passport, best_step,
            stopped_early.

        Raises:
            ValueError: the model cannot be scored on a tree, or at step 0 it is not the reference; a checkpoint that
                is not complete.
        """
        self._place()
        state = self.state
        if resume_from is None:
            state.passport = consistency.measure_consistency(
                self.policy, self.train, self.device, self._sampler, is_reference=self.from_reference
            )
            self._evaluate(0, 0.0)
        else:
            saved = checkpoint.load(resume_from, self.optimizer.state(), rank=self.rank, workers=self.workers)
            state = self.state = TrainState(**saved)
            self.optimizer.go_on(state.step)
        began = time.monotonic() - state.seconds
        for step in self.plan[state.step :]:
            if state.stopped:
                break
            self._step(state.step, step)
            state.step += 1
            state.seconds = time.monotonic() - began
            if self._evaluation_due(step):
                self._evaluate(state.step, step.epoch)
            if state.step % self.save_steps == 0 and state.step < len(self.plan):
                self._checkpoint()
        written = state.step
        if self.settings["load_best_model_at_end"] and state.best not in (None, state.step):
            assert self.shelf is not None and state.best is not None, "best weights need a shelf"
            written = state.best
            with self.shelf.best(_name(written)) as folder:
                checkpoint.load(folder, self.optimizer.parameters.items(), rank=self.rank, workers=self.workers)
        return metrics.summary(state.lines, self.settings["num_train_epochs"], written) | {
            "seconds": state.seconds,
            "step0_max_abs_margin": state.margin,
            "passport": state.passport,
            "best_step": state.best,
            "stopped_early": state.stopped,
        }

    def save(self, out: Path) -> None:
        """Write the model folder and metrics.jsonl, from rank 0. A collective: every worker calls it."""
        weights = full_state_dict(self.policy, keep=self.rank == 0)
        if self.rank == 0:
            loading.save_model(weights, self.model_path, out, self.settings["lora"])
            text = "".join(json.dumps(line) + "\n" for line in self.state.lines)
            (out / "metrics.jsonl").write_text(text, encoding="utf-8")

    @property
    def _sampler(self) -> Mapping[str, Any] | None:
        """Settings `references`, where the reference column is what the sampler gave."""
        references = self.settings["references"]
        return references if references["source"] == "sampler" else None

    def _place(self) -> None:
        """The model to where it is trained, and its optimizer."""
        if self.torch_compile:
            compile_layers(self.policy)
        if self.gradient_checkpointing:
            checkpoint_activations(self.policy)
        if self.workers > 1 or self.cpu_offload:
            shard(self.policy, self.device, self.workers, cpu_offload=self.cpu_offload)
        else:
            self.policy.to(self.device)
        self.optimizer = Optimizer(self.policy, self.settings)

    def _step(self, number: int, step: Step) -> None:
        """One update."""
        began = time.monotonic()
        totals, gaps = torch.zeros(metrics.COUNT, dtype=torch.float64), torch.zeros(2)
        for batch in self._batches(step.examples):
            logps = self.policy(completion_logps, batch.tree)
            losses = self._losses(batch, logps, step)
            ((losses * batch.weights).sum() / step.weight).backward()
            self.optimizer.collect()
            totals += metrics.sums(batch, logps, losses, self.settings["beta"])
            if number == 0:
                gaps = torch.maximum(gaps, self._gaps(batch, logps.detach()))
        line = metrics.means(self._sum(totals), step.weight, self.referenced)
        if number == 0 and self.referenced:
            margin, per_token = self._reduce(gaps, dist.ReduceOp.MAX).tolist()
            self.state.margin = self.settings["beta"] * margin
            if self.from_reference:
                self._check_step0(line["loss"], per_token)
        rate = learning_rate(
            number,
            total=len(self.plan),
            peak=self.settings["learning_rate"],
            warmup_ratio=self.settings["warmup_ratio"],
            kind=self.settings["lr_scheduler_type"],
        )
        norm = self.optimizer.step(rate)
        memory = float(self._reduce(torch.tensor([metrics.peak_memory(self.device)]), dist.ReduceOp.MAX))
        seconds = time.monotonic() - began
        line = {"step": number + 1, "epoch": step.epoch, **line, **step.sizes, "grad_norm": norm, "learning_rate": rate}
        line |= {"tokens_per_second": step.tokens / seconds, "naive_tokens_per_second": step.naive_tokens / seconds}
        self._log(line | {"peak_memory_gib": memory})

    @torch.no_grad()
    def _evaluate(self, number: int, epoch: float) -> None:
        if not self.held_out:
            return
        exam, totals = Step(epoch, tuple(self.held_out)), torch.zeros(metrics.COUNT, dtype=torch.float64)
        for batch in self._batches(exam.examples):
            logps = self.policy(completion_logps, batch.tree)
            totals += metrics.sums(batch, logps, self._losses(batch, logps, exam), self.settings["beta"])
        means = metrics.means(self._sum(totals), exam.weight, self.referenced)
        line = {f"eval_{name}": value for name, value in means.items()}
        self._log({"step": number, "epoch": epoch, **line, "eval_pairs": exam.pairs})
        if number:  # before any update all margins are rounding, and the best is not to be the model we began with
            self._compare(line)

    def _compare(self, line: Mapping[str, float]) -> None:
        """Keep these weights if they are the best so far; stop if there were none for too long."""
        state, name = self.state, self.settings["metric_for_best_model"]
        score = -line[name] if name == "eval_loss" else line[name]
        if state.score is None or score > state.score:
            state.best, state.score, state.worse = state.step, score, 0
            if self.settings["load_best_model_at_end"] and self.shelf is not None:
                with tempfile.TemporaryDirectory() as folder:
                    tensors = self.optimizer.parameters.items()
                    checkpoint.save(Path(folder), tensors, {}, rank=self.rank, workers=self.workers)
                    self.shelf.keep_best(_name(state.step), Path(folder))
                self._forget()
        else:
            state.worse += 1
        patience = self.settings["early_stopping_patience"]
        state.stopped = patience is not None and state.worse >= patience

    def _evaluation_due(self, step: Step) -> bool:
        every = self.settings["eval_steps"]
        if every is None or self.state.step == len(self.plan):
            return step.epoch == int(step.epoch)
        return self.state.step % every == 0

    def _batches(self, examples: Sequence[Example]) -> list[MicroBatch]:
        batches = micro_batches(examples, rank=self.rank, workers=self.workers, tokens_per_batch=self.tokens_per_batch)
        return [batch.to(self.device) for batch in batches]

    def _losses(self, batch: MicroBatch, logps: Tensor, step: Step) -> Tensor:
        """(pairs,)"""
        return self.objective(**batch.by_pair(logps), mean_chosen_length=step.mean_chosen_length)

    def _gaps(self, batch: MicroBatch, logps: Tensor) -> Tensor:
        """(2,) on the CPU, policy against reference: of a pair's margin in nats, of a completion in nats per token."""
        if not len(batch.chosen):
            return torch.zeros(2)
        change = logps - batch.reference_logps
        margin = (change[batch.chosen] - change[batch.rejected]).abs().max()
        return torch.stack([margin, (change.abs() / batch.lengths).max()]).float().cpu()

    def _check_step0(self, loss: float, per_token: float) -> None:
        limit = consistency.TOLERANCE[self.settings["dtype"]]
        if self._sampler:  # another program; its mean the passport has seen to, and the largest is a few times that
            limit += 10 * self._sampler["max_difference"]
        if not per_token <= limit:  # also if nan
            raise ValueError(
                f"at step 0, before any update, log-probabilities differ from the reference's by up to {per_token:.2g} "
                f"nats per token (loss {loss:.6f}); the model to train is the reference, so by rounding only, at most "
                f"{limit:g}. The references are of other weights, another dtype or other tokens: make them again with "
                "this model"
            )

    def _checkpoint(self) -> None:
        if self.shelf is None:
            return
        state = self.state
        state.bests = [*state.bests, state.best][-2:]
        with tempfile.TemporaryDirectory() as folder:
            tensors = self.optimizer.state()
            checkpoint.save(Path(folder), tensors, asdict(state), rank=self.rank, workers=self.workers)
            self.shelf.keep(Path(folder))
        self._forget()

    def _forget(self) -> None:
        """Remove best weights that are surpassed, and that neither of the last two checkpoints leads back to."""
        state = self.state
        if self.shelf is not None:
            self.shelf.forget([_name(step) for step in {state.best, *state.bests} if step is not None])

    def _log(self, line: dict[str, Any]) -> None:
        self.state.lines.append(line)
        if self.rank == 0:
            self.report({"steps": len(self.plan), **line})

    def _sum(self, values: Tensor) -> Tensor:
        """(n,) summed over the workers, on the CPU."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def _reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.workers > 1:
            values = values.to(self.device)
            dist.all_reduce(values, operation)
        return values.cpu()


def _name(step: int) -> str:
    return f"best-{step:06d}"
