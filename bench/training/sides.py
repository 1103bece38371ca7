"""Makes the model and the pairs for the comparison of Rondo and TRL, and trains them with Rondo.

All prompts of a shape have the same length, so TRL pads completions only. With articles of different lengths, Rondo's
packed rows would save more. `trl_side.py` trains with TRL; `dpo.py` and `scale.py` compare the two sides.
"""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from pipeline.training.batches.article_tree import pack_rows
from pipeline.training.batches.batching import StepPlan, plan_steps
from pipeline.training.batches.example import Example
from pipeline.training.batches.example_table import ExampleTable
from pipeline.training.loop import TrainLoop
from pipeline.training.losses.formulas import LOSSES
from pipeline.training.modeling import loading
from pipeline.training.modeling.logprobs import completion_logps

PAD, EOS = 0, 1  # all other token ids are words
SETTINGS: dict[str, Any] = {
    "loss_type": "sigmoid",
    "beta": 0.1,
    "label_smoothing": 0.0,
    "ld_alpha": None,
    "router_aux_loss_coef": 0.0,
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
    "load_in_4bit": None,
    "references": {"source": "trainer"},
    "dtype": "float32",
    "seed": 0,
}


@dataclass(frozen=True)
class Shape:
    """The lengths of prompts and completions, and the number of articles and pairs in a step.

    Attributes:
        prompt: tokens of each prompt.
        shortest, longest: limits of a completion's number of tokens, which is drawn uniformly.
        pairs: pairs of each article. They are disjoint, so an article has twice as many completions.
        articles: articles of each step.
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
    """A training job that both sides carry out.

    Attributes:
        model: the model folder; None if the model is made in memory.
        examples: the examples of all steps, with reference log-probabilities.
        shape: the lengths of the articles.
        tokens_per_batch: tokens of Rondo's packed rows.
        learning_rate: high enough for the losses to change within 20 steps. If both sides stayed at ln 2, equal losses
            would prove nothing.
        dtype: of the weights.
    """

    model: Path | None
    examples: tuple[Example, ...]
    shape: Shape
    tokens_per_batch: int
    learning_rate: float = SETTINGS["learning_rate"]
    dtype: str = SETTINGS["dtype"]

    @property
    def model_folder(self) -> Path:
        assert self.model is not None, "the model of this work has no folder"
        return self.model

    @property
    def settings(self) -> dict[str, Any]:
        varied = {"learning_rate": self.learning_rate, "dtype": self.dtype}
        return SETTINGS | varied | {"pairs_per_step": self.shape.pairs_per_step}

    @property
    def plan(self) -> StepPlan:
        """The steps of Rondo's trainer. TRL gets the pairs in the same order."""
        settings = self.settings
        return plan_steps(
            ExampleTable.of(self.examples), epochs=1, pairs_per_step=settings["pairs_per_step"], seed=settings["seed"]
        )


@dataclass
class TrainResult:
    """Times and losses of one side.

    Attributes:
        seconds: of each step except the first (warm-up), from the end of the step before to its own end.
        losses: of every step.
    """

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def model_config(vocabulary: int, *, tiny: bool) -> LlamaConfig:
    """A Llama of 17 million parameters at a vocabulary of 8192; if tiny, of 25 thousand at a vocabulary of 64."""
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
    """Write a model with random weights. Returns its number of parameters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(model_config(vocabulary, tiny=tiny), dtype=torch.float32)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def make_examples(shape: Shape, count: int, vocabulary: int) -> tuple[Example, ...]:
    """The articles of `count` steps, with reference log-probabilities of 0. Every completion ends with EOS."""
    rng = random.Random(0)

    def random_words(length: int) -> list[int]:
        return [rng.randrange(2, vocabulary) for _ in range(length)]

    return tuple(
        Example(
            article_id=f"article-{number:05d}",
            prompt_ids=np.array(random_words(shape.prompt)),
            completions=tuple(
                np.array([*random_words(rng.randint(shape.shortest, shape.longest) - 1), EOS])
                for _ in range(2 * shape.pairs)
            ),
            pairs=tuple((2 * pair, 2 * pair + 1) for pair in range(shape.pairs)),
            reference_logps=(0.0,) * (2 * shape.pairs),
        )
        for number in range(count * shape.articles)
    )


@torch.no_grad()
def add_references(model: PreTrainedModel, examples: Sequence[Example], tokens_per_batch: int) -> tuple[Example, ...]:
    """The examples with the model's log-probabilities as the reference, computed by the function that training uses."""
    reference_logps = [[0.0] * len(example.completions) for example in examples]
    for tree in pack_rows([example.article for example in examples], tokens_per_batch):
        logps = completion_logps(model, tree.to(model.device)).tolist()
        for (article, completion), logp in zip(tree.completions, logps, strict=True):
            reference_logps[article][completion] = logp
    return tuple(
        replace(example, reference_logps=tuple(logps)) for example, logps in zip(examples, reference_logps, strict=True)
    )


def make_work(
    model: str | Path, shape: Shape, count: int, vocabulary: int, tokens_per_batch: int, **settings: Any
) -> Work:
    """Make the work of `count` steps on a saved model. The same model is the reference."""
    work = Work(Path(model), make_examples(shape, count, vocabulary), shape, tokens_per_batch, **settings)
    reference = loading.load_model(model, work.dtype)
    return replace(work, examples=add_references(reference, work.examples, tokens_per_batch))


def make_loop(work: Work, result: TrainResult, step_ends: list[float]) -> TrainLoop:
    """Rondo's trainer. It appends losses to `result` and the time at the end of each step to `step_ends`."""

    def report(line: dict[str, Any]) -> None:
        if "loss" in line:
            step_ends.append(time.perf_counter())
            result.losses.append(line["loss"])

    return TrainLoop(
        examples=ExampleTable.of(work.examples),
        model_path=str(work.model),
        settings=work.settings,
        tokens_per_batch=work.tokens_per_batch,
        device=torch.device("cpu"),
        report=report,
    )


def train_ours(work: Work) -> TrainResult:
    """Train all steps with Rondo."""
    result = TrainResult()
    step_ends: list[float] = []
    make_loop(work, result, step_ends).run()
    result.seconds = [end - start for start, end in pairwise(step_ends)]
    return result


def row_losses(model: PreTrainedModel, examples: Sequence[Example], tokens_per_batch: int) -> Iterator[Tensor]:
    """Yield the trainer's loss for each packed row, summed over its pairs. For callers that do not run the trainer."""
    for tree in pack_rows([example.article for example in examples], tokens_per_batch):
        logps = completion_logps(model, tree.to(model.device))
        position = {completion: number for number, completion in enumerate(tree.completions)}
        articles = {article for article, _ in tree.completions}
        pairs = [(article, *pair) for article in articles for pair in examples[article].pairs]
        chosen = [(article, chosen) for article, chosen, _ in pairs]
        rejected = [(article, rejected) for article, _, rejected in pairs]

        def reference(side: list[tuple[int, int]], like: Tensor) -> Tensor:
            values = [examples[article].reference_logps[completion] for article, completion in side]
            return torch.tensor(values, device=like.device, dtype=like.dtype)

        yield LOSSES[SETTINGS["loss_type"]](
            chosen_scores=logps[[position[completion] for completion in chosen]] - reference(chosen, logps),
            rejected_scores=logps[[position[completion] for completion in rejected]] - reference(rejected, logps),
            beta=SETTINGS["beta"],
            label_smoothing=SETTINGS["label_smoothing"],
        ).sum()


def our_gradient(model: PreTrainedModel, examples: Sequence[Example], tokens_per_batch: int) -> dict[str, Tensor]:
    """The gradient of one step before clipping, by parameter name."""
    model.zero_grad()
    pairs = sum(len(example.pairs) for example in examples)
    for loss in row_losses(model, examples, tokens_per_batch):
        (loss / pairs).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
