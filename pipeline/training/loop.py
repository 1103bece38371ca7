"""Runs one worker's share of a training: steps, held-out evaluation, the step-0 check, checkpoints, the best weights.

It uses torch.distributed and does not know Ray: the caller passes a device, a rank, and a store for checkpoints that
outlive the process. Nothing here draws random numbers, so a resumed run finds its position from the step number
alone. The metrics are computed in `metrics.py`; `batches/batching.py` cuts a step into batches.
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
from pipeline.training.batches.batching import MicroBatch, MicroBatches, Step, micro_batches, plan_steps, split_held_out
from pipeline.training.batches.example import Example
from pipeline.training.batches.example_table import ExampleTable
from pipeline.training.losses import router
from pipeline.training.losses.objective import Objective
from pipeline.training.losses.whole_step import RowSlopes, step_slopes
from pipeline.training.modeling import loading
from pipeline.training.modeling.fsdp import (
    PolicyModule,
    checkpoint_activations,
    compile_layers,
    full_state_dict,
    place_policy,
)
from pipeline.training.modeling.logprobs import RowScores, check_supported, score_row
from pipeline.training.optimizer import Optimizer, learning_rate


class CheckpointStore(Protocol):
    """Keeps a run's checkpoints. Every worker calls each method, and passes a folder with its own part."""

    def save(self, name: str, folder: Path) -> None:
        """Save the last checkpoint under a name; the caller deletes the folder afterwards."""

    def save_best(self, name: str, folder: Path) -> None:
        """Save the best weights so far, under a name."""

    def load_best(self, name: str) -> AbstractContextManager[Path]:
        """While the block runs, give a folder with what this worker reads of the weights saved under a name."""

    def prune(self, keep: Sequence[str]) -> None:
        """Remove all best weights except those with these names."""


@dataclass
class TrainState:
    """The state of a training, without the optimizer's tensors. A checkpoint holds it as JSON.

    Attributes:
        step: number of updates made.
        seconds: time spent in training.
        lines: the lines of metrics.
        margin: largest absolute reward margin at step 0.
        passport: what `consistency.measure_consistency` returned.
        best: step whose weights did best on held-out pairs; None before the first evaluation.
        score: score of the best weights, higher is better; None before the first evaluation.
        worse: number of evaluations since the best.
        stopped: training stopped early, because `worse` reached the patience.
        bests: `best` at each of the last two checkpoints, because a run may have to resume from either.
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
    """One worker's share of a training run. The constructor reads the model and talks to no other worker.

    Args:
        examples: all rows, the same on every worker.
        model_path: folder, URI or hub name of the model or adapter to train.
        settings: `config.training.Training` as a mapping, plus dtype, seed and references
            (`config.training.References`).
        tokens_per_batch: largest number of tokens in a packed row.
        device: this worker's device.
        rank, workers: this process's rank, and how many workers there are. With more than one, the caller has set up
            torch.distributed.
        article_tree: if False, each completion is a separate sequence: slow, but exact for every model.
        gradient_checkpointing, cpu_offload, torch_compile: see `config.hardware.TrainerHardware`.
        save_steps: number of updates between checkpoints.
        report: called on rank 0 with each line of metrics.
        checkpoints: where to save checkpoints; None saves none.
        from_reference: True if the model to train is the reference. All margins must then be 0 at step 0, except for
            rounding, and this is checked. If False, the caller checks the reference (`consistency.check_reference`).

    Raises:
        ValueError: there is nothing to train on, the loss needs a reference and there is none, or the model cannot be
            scored on a tree.
    """

    examples: ExampleTable
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
    checkpoints: CheckpointStore | None = None
    from_reference: bool = True
    state: TrainState = field(init=False, default_factory=TrainState)

    def __post_init__(self) -> None:
        s = self.settings
        self.train, self.held_out = split_held_out(self.examples, s["eval_fraction"])
        self.plan = plan_steps(
            self.train, epochs=s["num_train_epochs"], pairs_per_step=s["pairs_per_step"], seed=s["seed"]
        )
        self.objective = Objective(s)
        self.has_reference = self.examples.has_reference
        if self.objective.needs_reference and not self.has_reference:
            raise ValueError(f"loss_type={s['loss_type']} compares with a reference, and references.source is none")
        self.policy = PolicyModule(
            loading.load_policy(
                self.model_path,
                s["dtype"],
                s["lora"],
                s["seed"],
                article_tree=self.article_tree,
                load_in_4bit=s["load_in_4bit"],
                device=self.device,
            )
        )
        if s["router_aux_loss_coef"]:
            router.check_router(self.policy.model)
        if not self.held_out and (s["load_best_model_at_end"] or s["early_stopping_patience"]):
            raise ValueError(
                f"load_best_model_at_end or early_stopping_patience is set, and eval_fraction={s['eval_fraction']} "
                f"holds out none of {len(self.examples)} articles: raise it, or add articles"
            )
        # Check all articles now: during training, only one worker would fail, and the others would wait for it.
        check_supported(self.policy.model, self.examples.longest)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics so far."""
        return self.state.lines

    def resume(self, folder: Path) -> None:
        """Load a checkpoint, from which `run` then goes on. Raises ValueError if it is incomplete."""
        self._prepare_policy()
        saved = checkpoint.load(folder, self.optimizer.state(), rank=self.rank, workers=self.workers)
        self.state = TrainState(**saved)
        self.optimizer.resume(self.state.step)

    def run(self) -> dict[str, Any]:
        """Train to the end, from the beginning or from the step that `resume` has loaded.

        Returns:
            What `metrics.summary` returns, plus seconds, step0_max_abs_margin, passport, best_step and stopped_early.

        Raises:
            ValueError: the model cannot be scored on a tree, or it is not the reference at step 0.
        """
        if not self.state.step:
            self._prepare_policy()
            self.state.passport = consistency.measure_consistency(
                self.policy, self.train, self.device, self._sampler, is_reference=self.from_reference
            )
            self._evaluate(0, 0.0)
        state = self.state
        began = time.monotonic() - state.seconds
        while state.step < len(self.plan) and not state.stopped:
            step = self.plan[state.step]
            self._update(state.step, step)
            state.step += 1
            state.seconds = time.monotonic() - began
            if self._is_evaluation_due(step):
                self._evaluate(state.step, step.epoch)
            if state.step % self.save_steps == 0 and state.step < len(self.plan):
                self._save_checkpoint()
        final_step = state.step
        if self.settings["load_best_model_at_end"] and state.best not in (None, state.step):
            assert state.best is not None
            final_step = state.best
            self._load_best_weights(final_step)
        return metrics.summary(state.lines, self.settings["num_train_epochs"], final_step) | {
            "seconds": state.seconds,
            "step0_max_abs_margin": state.margin,
            "passport": state.passport,
            "best_step": state.best,
            "stopped_early": state.stopped,
        }

    def save(self, out: Path) -> None:
        """Write the model folder, metrics.jsonl and the engine's check, from rank 0.

        A collective: every worker must call it.
        """
        is_exact = self.settings["load_in_4bit"] is None
        check = consistency.make_engine_check(
            self.policy, self.train, self.device, self.state.passport, is_exact=is_exact
        )
        weights = full_state_dict(self.policy, keep=self.rank == 0)
        if self.rank == 0:
            loading.save_model(weights, self.model_path, out, self.settings["lora"])
            text = "".join(json.dumps(line) + "\n" for line in self.state.lines)
            (out / "metrics.jsonl").write_text(text, encoding="utf-8")
            if check is not None:
                check.write(out)

    @property
    def _sampler(self) -> Mapping[str, Any] | None:
        """The settings `references`, if the sampler gave the reference log-probabilities; else None."""
        references = self.settings["references"]
        return references if references["source"] == "sampler" else None

    def _prepare_policy(self) -> None:
        """Apply compilation, activation checkpointing and sharding as set, and make the optimizer."""
        if self.torch_compile:
            compile_layers(self.policy)
        if self.gradient_checkpointing:
            checkpoint_activations(self.policy)
        place_policy(self.policy, self.device, self.workers, cpu_offload=self.cpu_offload)
        self.optimizer = Optimizer(self.policy, self.settings)

    def _load_best_weights(self, step: int) -> None:
        assert self.checkpoints is not None, "load_best_model_at_end needs a checkpoint store"
        with self.checkpoints.load_best(_best_name(step)) as folder:
            checkpoint.load(folder, self.optimizer.parameters.items(), rank=self.rank, workers=self.workers)

    def _update(self, number: int, step: Step) -> None:
        """Make update `number`, counted from 0, and log its metrics."""
        began = time.monotonic()
        totals, step0_gaps = torch.zeros(metrics.NUM_SUMS, dtype=torch.float64), torch.zeros(2)
        batches = list(self._batches(step.examples))
        slopes = None
        if self._needs_slopes(len(batches)):
            with torch.no_grad():
                slopes = self._step_slopes([self._score(batch)[1] for batch in batches], step)
        for place, batch in enumerate(batches):
            scores, values = self._score(batch)
            if slopes is None:
                losses = self._losses(values, step)
                loss = (losses * batch.weights).sum() / step.weight
            else:
                losses, loss = slopes[place].losses, slopes[place].surrogate(values)
            if scores.router_losses is not None:
                router_loss = (scores.router_losses * batch.article_weights).sum() / step.weight
                loss = loss + self.settings["router_aux_loss_coef"] * router_loss
            loss.backward()
            self.optimizer.collect()
            totals += metrics.micro_batch_sums(batch, scores, values, losses, self.settings["beta"])
            if number == 0:
                step0_gaps = torch.maximum(step0_gaps, _reference_gaps(batch, scores, values))
        line = self._step_metrics(totals, step)
        if number == 0 and self.has_reference:
            self._check_step0(line["loss"], step0_gaps)
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
        """Log metrics of the held-out pairs after `number` updates."""
        if not self.held_out:
            return
        held_out, totals = Step(epoch, self.held_out), torch.zeros(metrics.NUM_SUMS, dtype=torch.float64)
        batches = self._batches(held_out.examples)  # too many to keep them in memory
        slopes = None
        if self._needs_slopes(len(batches)):
            slopes = self._step_slopes([self._score(batch)[1] for batch in batches], held_out)
        for place, batch in enumerate(batches):
            scores, values = self._score(batch)
            losses = self._losses(values, held_out) if slopes is None else slopes[place].losses
            totals += metrics.micro_batch_sums(batch, scores, values, losses, self.settings["beta"])
        line = {f"eval_{name}": value for name, value in self._step_metrics(totals, held_out).items()}
        self._log({"step": number, "epoch": epoch, **line, "eval_pairs": held_out.pairs})
        if number:  # before any update margins are only rounding, and the start model must not count as the best
            self._compare_with_best(line)

    def _compare_with_best(self, line: Mapping[str, float]) -> None:
        """Save these weights if they are the best so far; stop early if there was no better evaluation for too long."""
        state, metric = self.state, self.settings["metric_for_best_model"]
        score = -line[metric] if metric == "eval_loss" else line[metric]
        if state.score is None or score > state.score:
            state.best, state.score, state.worse = state.step, score, 0
            if self.settings["load_best_model_at_end"] and self.checkpoints is not None:
                with tempfile.TemporaryDirectory() as folder:
                    tensors = self.optimizer.parameters.items()
                    checkpoint.save(Path(folder), tensors, {}, rank=self.rank, workers=self.workers)
                    self.checkpoints.save_best(_best_name(state.step), Path(folder))
                self._prune_best()
        else:
            state.worse += 1
        patience = self.settings["early_stopping_patience"]
        state.stopped = patience is not None and state.worse >= patience

    def _is_evaluation_due(self, step: Step) -> bool:
        every = self.settings["eval_steps"]
        if every is None or self.state.step == len(self.plan):
            return step.epoch == int(step.epoch)
        return self.state.step % every == 0

    def _batches(self, examples: Sequence[Example]) -> MicroBatches:
        return micro_batches(
            examples,
            rank=self.rank,
            workers=self.workers,
            tokens_per_batch=self.tokens_per_batch,
            device=self.device,
        )

    def _score(self, batch: MicroBatch) -> tuple[RowScores, dict[str, Tensor]]:
        """What the policy gives for a row, and the values of its pairs."""
        with_router_losses = bool(self.settings["router_aux_loss_coef"])
        scores = self.policy(score_row, batch.tree, self.objective.use_weighting, with_router_losses)
        return scores, batch.by_pair(scores, self.settings["ld_alpha"])

    def _losses(self, values: Mapping[str, Tensor], step: Step) -> Tensor:
        """(pairs,)"""
        return self.objective(**values, mean_chosen_length=step.mean_chosen_length)

    def _needs_slopes(self, rows: int) -> bool:
        """Whether the loss compares pairs that are not all in one row of one worker."""
        return self.objective.compares_pairs and (self.workers > 1 or rows > 1)

    def _step_slopes(self, rows: Sequence[Mapping[str, Tensor]], step: Step) -> list[RowSlopes]:
        return step_slopes(
            self.objective,
            rows,
            weight=step.weight,
            mean_chosen_length=step.mean_chosen_length,
            rank=self.rank,
            workers=self.workers,
        )

    def _step_metrics(self, totals: Tensor, step: Step) -> dict[str, float]:
        coef = self.settings["router_aux_loss_coef"]
        return metrics.step_metrics(self._sum(totals), step.weight, self.has_reference, coef)

    def _check_step0(self, loss: float, gaps: Tensor) -> None:
        """Record the largest margin at step 0. If the model to train should be the reference, check that it is."""
        margin, per_token = self._reduce(gaps, dist.ReduceOp.MAX).tolist()
        self.state.margin = self.settings["beta"] * margin
        if not self.from_reference:
            return
        limit = consistency.TOLERANCE[self.settings["dtype"]]
        if self._sampler:
            # The sampler is another program. `measure_consistency` has checked the mean difference; the largest one is
            # a few times the mean.
            limit += 10 * self._sampler["max_difference"]
        if not per_token <= limit:  # `not <=` also catches nan
            raise ValueError(
                f"at step 0, before any update, log-probabilities differ from the reference's by up to {per_token:.2g} "
                f"nats per token (loss {loss:.6f}). The model to train is the reference, so they should differ by "
                f"rounding only, at most {limit:g}. The references are of other weights, another dtype or other "
                "tokens: make them again with this model"
            )

    def _save_checkpoint(self) -> None:
        if self.checkpoints is None:
            return
        state = self.state
        state.bests = [*state.bests, state.best][-2:]
        with tempfile.TemporaryDirectory() as folder:
            tensors = self.optimizer.state()
            checkpoint.save(Path(folder), tensors, asdict(state), rank=self.rank, workers=self.workers)
            self.checkpoints.save(f"last-{state.step:06d}", Path(folder))
        self._prune_best()

    def _prune_best(self) -> None:
        """Remove all best weights except the current ones and those that the last two checkpoints refer to."""
        state = self.state
        if self.checkpoints is not None:
            self.checkpoints.prune(keep=[_best_name(step) for step in {state.best, *state.bests} if step is not None])

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


def _best_name(step: int) -> str:
    return f"best-{step:06d}"


def _reference_gaps(batch: MicroBatch, scores: RowScores, values: Mapping[str, Tensor]) -> Tensor:
    """How far a row is from its reference values.

    Returns:
        (2,) on the CPU: the largest margin of a pair, in nats, and the largest difference of a completion, in nats
        per token.
    """
    if not len(batch.chosen):
        return torch.zeros(2)
    chosen, rejected = (values[f"{side}_logps"] - values[f"ref_{side}_logps"] for side in ("chosen", "rejected"))
    per_token = [
        (scores.logps - batch.reference_logps) / batch.lengths,
        chosen / values["chosen_lengths"],
        rejected / values["rejected_lengths"],
    ]
    return torch.stack([(chosen - rejected).abs().max(), torch.cat(per_token).abs().max()]).detach().float().cpu()
