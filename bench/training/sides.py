"""What both sides of the comparison train on, and Rondo's side of it.

Prompts of a shape are all of one length, so TRL pads by completions only: a corpus of uneven articles would favour
packing more than this does. Left out: TRL's side (`trl_side.py`), what is measured of them (`dpo.py`), and GPUs
(`scale.py`).
"""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from pipeline.training.batches.article_tree import pack_rows
from pipeline.training.batches.batching import Step, plan_steps
from pipeline.training.batches.example import Example
from pipeline.training.loop import TrainLoop
from pipeline.training.losses import LOSSES
from pipeline.training.modeling import loading
from pipeline.training.modeling.logprobs import completion_logps

PAD, EOS = 0, 1  # all other ids are words
SETTINGS: dict[str, Any] = {
    "loss_type": "sigmoid",
    "beta": 0.1,
    "label_smoothing": 0.0,
    "learning_rate": 5e-5,
    "num_train_epochs": 1,
    "warmup_ratio": 0.1,
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 1.0,
    "weight_decay": 0.01,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "eval_fraction": 0.0,
    "eval_steps": None,
    "metric_for_best_model": "eval_loss",
    "load_best_model_at_end": False,
    "early_stopping_patience": None,
    "lora": None,
    "references": {"source": "trainer"},
    "dtype": "float32",
    "seed": 0,
}


@dataclass(frozen=True)
class Shape:
    """What articles look like, and how many make a step.

    Attributes:
        prompt: tokens of each prompt.
        shortest, longest: tokens of a completion, drawn evenly from this range.
        pairs: of an article; disjoint, so it has twice as many completions.
        articles: of a step.
    """

    name: str
    prompt: int
    shortest: int
    longest: int
    pairs: int
    articles: int

    @property
    def pairs_per_step(self) -> int:
        return self.pairs * self.articles


@dataclass(frozen=True)
class Work:
    """What is to be learnt, and from where.

    Attributes:
        model: its folder; None where the model is handed over in memory.
        examples: of all steps, with the reference's log-probabilities.
        tokens_per_batch: of our rows.
        learning_rate: such that something is learnt in 20 steps: equal losses that stay at ln 2 would prove nothing.
    """

    model: Path | None
    examples: tuple[Example, ...]
    shape: Shape
    tokens_per_batch: int
    learning_rate: float = SETTINGS["learning_rate"]

    @property
    def settings(self) -> dict[str, Any]:
        return SETTINGS | {"pairs_per_step": self.shape.pairs_per_step, "learning_rate": self.learning_rate}

    @property
    def plan(self) -> list[Step]:
        """The steps that our trainer will make, and that TRL is fed."""
        s = self.settings
        return plan_steps(self.examples, epochs=1, pairs_per_step=s["pairs_per_step"], seed=s["seed"])


@dataclass
class Trained:
    """What a side did.

    Attributes:
        seconds: of each step but the first, which warms up: from the end of one step to the end of the next.
        losses: of every step.
    """

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def config(vocabulary: int, *, tiny: bool) -> LlamaConfig:
    """17 million parameters at a vocabulary of 8192, or a few thousand."""
    hidden, layers, heads, inner = (32, 2, 2, 64) if tiny else (384, 6, 6, 1024)
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
    )


def make_model(folder: Path, vocabulary: int, *, tiny: bool) -> int:
    """Write a model of random weights. Returns its number of parameters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(vocabulary, tiny=tiny), dtype=torch.float32)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def make_examples(shape: Shape, count: int, vocabulary: int) -> tuple[Example, ...]:
    """The articles of `count` steps, without reference log-probabilities. Every completion ends with EOS."""
    draw = random.Random(0)

    def words(length: int) -> list[int]:
        return [draw.randrange(2, vocabulary) for _ in range(length)]

    return tuple(
        Example(
            article_id=f"article-{number:05d}",
            prompt_ids=words(shape.prompt),
            completions=tuple(
                [*words(draw.randint(shape.shortest, shape.longest) - 1), EOS] for _ in range(2 * shape.pairs)
            ),
            pairs=tuple((2 * pair, 2 * pair + 1) for pair in range(shape.pairs)),
            reference_logps=(0.0,) * (2 * shape.pairs),
        )
        for number in range(count * shape.articles)
    )


@torch.no_grad()
def refer(model: PreTrainedModel, examples: Sequence[Example], tokens_per_batch: int) -> tuple[Example, ...]:
    """The examples with what the model thinks of their completions, by the function that trains."""
    logps = [[0.0] * len(example.completions) for example in examples]
    for tree in pack_rows([example.article for example in examples], tokens_per_batch):
        for (article, completion), logp in zip(
            tree.completions, completion_logps(model, tree.to(model.device)).tolist(), strict=True
        ):
            logps[article][completion] = logp
    return tuple(replace(e, reference_logps=tuple(found)) for e, found in zip(examples, logps, strict=True))


def make_work(
    model: str | Path, shape: Shape, count: int, vocabulary: int, tokens_per_batch: int, **more: float
) -> Work:
    """`count` steps on the model in a folder, which is its own reference."""
    examples = make_examples(shape, count, vocabulary)
    reference = loading.load_model(model, SETTINGS["dtype"])
    return Work(Path(model), refer(reference, examples, tokens_per_batch), shape, tokens_per_batch, **more)


def make_run(work: Work, trained: Trained, ends: list[float]) -> TrainLoop:
    """The real trainer, which will write down its losses, and when each step ended."""

    def report(line: dict[str, Any]) -> None:
        if "loss" in line:
            ends.append(time.perf_counter())
            trained.losses.append(line["loss"])

    return TrainLoop(
        examples=work.examples,
        model_path=str(work.model),
        settings=work.settings,
        tokens_per_batch=work.tokens_per_batch,
        device=torch.device("cpu"),
        report=report,
    )


def train_ours(work: Work) -> Trained:
    """From the first to the last step."""
    trained, ends = Trained(), []
    make_run(work, trained, ends).play()
    trained.seconds = [after - before for before, after in pairwise(ends)]
    return trained


def row_losses(model: PreTrainedModel, examples: Sequence[Example], tokens_per_batch: int) -> Iterator[Tensor]:
    """The trainer's loss by its parts, for where a whole run is too much: the sum over pairs of each packed row."""
    for tree in pack_rows([example.article for example in examples], tokens_per_batch):
        logps = completion_logps(model, tree.to(model.device))
        place = {completion: number for number, completion in enumerate(tree.completions)}
        pairs = [
            (e, chosen, rejected) for e in {e for e, _ in tree.completions} for chosen, rejected in examples[e].pairs
        ]
        chosen, rejected = [(e, c) for e, c, _ in pairs], [(e, r) for e, _, r in pairs]
        reference = [
            torch.tensor([examples[e].reference_logps[c] for e, c in side], device=model.device, dtype=logps.dtype)
            for side in (chosen, rejected)
        ]
        yield LOSSES[SETTINGS["loss_type"]](
            chosen_logps=logps[[place[which] for which in chosen]],
            rejected_logps=logps[[place[which] for which in rejected]],
            ref_chosen_logps=reference[0],
            ref_rejected_logps=reference[1],
            beta=SETTINGS["beta"],
            label_smoothing=SETTINGS["label_smoothing"],
        ).sum()


def our_gradient(model: PreTrainedModel, examples: Sequence[Example], tokens_per_batch: int) -> dict[str, Tensor]:
    """Of one step, before clipping."""
    model.zero_grad()
    pairs = sum(len(example.pairs) for example in examples)
    for loss in row_losses(model, examples, tokens_per_batch):
        (loss / pairs).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
