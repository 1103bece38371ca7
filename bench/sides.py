"""Both sides of the comparison, Rondo's trainer and TRL's, on the same model, pairs, token ids and order.

Prompts of a shape are all of one length, so TRL pads by completions only: a corpus of uneven articles would favour
packing more than this does. TRL gets text, because its trainer takes nothing else, through a tokenizer of one word
per id; that the ids come out as they went in is checked on every batch that it trains on.
Left out: what is measured of them (`dpo.py`), and GPUs (`scale.py`)."""

import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from pipeline.dpo import weights
from pipeline.dpo.example import Example
from pipeline.dpo.logps import completion_logps
from pipeline.dpo.loop import Run
from pipeline.dpo.losses import LOSSES
from pipeline.dpo.plan import Step, steps
from pipeline.dpo.tree import forest

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
        return steps(self.examples, epochs=1, pairs_per_step=s["pairs_per_step"], seed=s["seed"])


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
    for tree in forest([example.article for example in examples], tokens_per_batch):
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
    reference = weights.load(model, SETTINGS["dtype"])
    return Work(Path(model), refer(reference, examples, tokens_per_batch), shape, tokens_per_batch, **more)


def make_run(work: Work, trained: Trained, ends: list[float]) -> Run:
    """The real trainer, which will write down its losses, and when each step ended."""

    def report(line: dict[str, Any]) -> None:
        if "loss" in line:
            ends.append(time.perf_counter())
            trained.losses.append(line["loss"])

    return Run(
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
    for tree in forest([example.article for example in examples], tokens_per_batch):
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


def make_trl(
    work: Work, batch_size: int, model: PreTrainedModel | None = None, peft: Any = None, **settings: Any
) -> Any:
    """TRL's DPOTrainer, ready to train on the same pairs in the same order.

    References are precomputed, activations are kept, nothing is logged, saved or evaluated on the way, and AdamW is
    its default, torch's fused one. (Liger's kernels are for GPUs; `torch_compile` won nothing on the CPU.)

    Args:
        batch_size: pairs of one forward; the rest of a step is accumulated.
        model: to train; read from the folder if not given.
        peft: PEFT's config of an adapter, if one is to be trained.
        settings: of DPOConfig, over the ones here.
    """
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    import datasets
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback, TrainerControl
    from trl import DPOConfig, DPOTrainer

    datasets.disable_progress_bars()
    s = work.settings
    pairs = [(e, pair) for step in work.plan for e in step.examples for pair in e.pairs]
    wanted = [[[*e.prompt_ids, *e.completions[side]] for side in pair] for e, pair in pairs]

    class Recorder(DPOTrainer):
        """DPOTrainer, and a memory of what it was given and found."""

        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Tensor:
            loss = super().training_step(model, inputs, *rest, **more)
            self.seen.append((inputs["input_ids"], inputs["attention_mask"], loss))
            return loss

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: TrainerControl, **more: Any) -> None:
            trainer.ends.append(time.perf_counter())

    if model is None:
        model = AutoModelForCausalLM.from_pretrained(work.model, dtype=s["dtype"], attn_implementation="sdpa")
    names = {"<pad>": PAD, "</s>": EOS} | {f"w{number}": number for number in range(2, model.config.vocab_size)}
    words = Tokenizer(models.WordLevel(names, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    spelled = {number: name for name, number in names.items()}

    def text(ids: Sequence[int]) -> str:
        return "".join(f" {spelled[number]}" for number in ids)

    rows = [
        {"prompt": text(e.prompt_ids), "chosen": text(e.completions[c]), "rejected": text(e.completions[r])}
        for e, (c, r) in pairs
    ]
    assert s["pairs_per_step"] % batch_size == 0, "TRL's batches must fill a step"
    common = {
        "output_dir": tempfile.mkdtemp(),
        "precompute_ref_log_probs": True,
        "gradient_checkpointing": False,
        "max_length": None,  # TRL would cut what is longer than 1024
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": s["pairs_per_step"] // batch_size,
        "num_train_epochs": 1,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": s["dtype"] == "bfloat16",
        "use_cpu": True,
        "loss_type": s["loss_type"],
        "warmup_steps": s["warmup_ratio"],  # below 1 it is a share
        **{n: s[n] for n in ("beta", "learning_rate", "lr_scheduler_type", "max_grad_norm", "weight_decay", "seed")},
    }
    trainer = Recorder(
        model=model,
        args=DPOConfig(**(common | settings)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>"),
        callbacks=[Clock()],
        peft_config=peft,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.seen, trainer.ends, trainer.wanted = [], [], wanted
    return trainer


def train_trl(trainer: Any) -> Trained:
    """From the first to the last step. Fails if TRL trained on other ids than it was to."""
    trainer.train()
    given = [
        [ids[row][mask[row] == 1].tolist() for row in (pair, pair + len(ids) // 2)]
        for ids, mask, _ in trainer.seen
        for pair in range(len(ids) // 2)
    ]
    assert given == trainer.wanted[: len(given)], "TRL trained on other token ids"
    each = trainer.args.gradient_accumulation_steps
    losses = torch.stack([loss for _, _, loss in trainer.seen]).view(-1, each).sum(1).tolist()
    return Trained([after - before for before, after in pairwise(trainer.ends)], losses)


def trl_gradient(trainer: Any, step: int) -> dict[str, Tensor]:
    """Of step number `step` at the weights that the trainer's model has now, before clipping."""
    trainer.model.zero_grad()
    size, each = trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps
    for batch in range(step * each, (step + 1) * each):
        rows = [trainer.train_dataset[row] for row in range(batch * size, (batch + 1) * size)]
        (trainer.compute_loss(trainer.model, trainer.data_collator(rows)) / each).backward()
    return {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
