"""Trains TRL's side of the comparison: its DPOTrainer on the same model, pairs, token ids and order as Rondo's.

TRL accepts only text, so it gets text through a tokenizer with one word per token id. A check on every training batch
makes sure that the token ids survive. `sides.py` makes the data and trains Rondo's side.
"""

import os
import tempfile
import time
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.training.sides import EOS, PAD, TrainResult, Work


def make_trainer(
    work: Work,
    batch_size: int,
    model: PreTrainedModel | None = None,
    peft: Any = None,
    *,
    on_trees: bool = False,
    **settings: Any,
) -> Any:
    """TRL's DPOTrainer, ready to train on the same pairs in the same order.

    References are precomputed, activations are kept, and nothing is logged, saved or evaluated on the way. AdamW is
    TRL's default, torch's fused one. (Liger's kernels are for GPUs; `torch_compile` gained nothing on the CPU.)

    Args:
        work: the training job.
        batch_size: pairs of one forward; the gradient of a step is accumulated over several.
        model: the model to train; read from the work's folder if None.
        peft: PEFT's config of the adapter to train, if any.
        on_trees: use Rondo's drop-in, `pipeline.trl.TreeDPOTrainer`.
        settings: of DPOConfig; they override the ones here.
    """
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    import datasets
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback, TrainerControl
    from trl import DPOConfig, DPOTrainer

    from pipeline.trl import TreeDPOTrainer

    datasets.disable_progress_bars()
    ours = work.settings
    pairs = [(e, pair) for step in work.plan for e in step.examples for pair in e.pairs]
    expected_ids = [[[*e.prompt_ids, *e.completions[side]] for side in pair] for e, pair in pairs]

    class RecordingTrainer(TreeDPOTrainer if on_trees else DPOTrainer):  # type: ignore[misc] # chosen when called
        """DPOTrainer that records the inputs and the loss of every batch."""

        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Tensor:
            loss = super().training_step(model, inputs, *rest, **more)
            self.batches.append((inputs["input_ids"], inputs["attention_mask"], loss))
            return loss

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: TrainerControl, **more: Any) -> None:
            trainer.step_ends.append(time.perf_counter())

    if model is None:
        model = AutoModelForCausalLM.from_pretrained(work.model, dtype=ours["dtype"], attn_implementation="sdpa")
    vocabulary = {"<pad>": PAD, "</s>": EOS} | {f"w{number}": number for number in range(2, model.config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    word_of = {number: word for word, number in vocabulary.items()}

    def text(ids: Iterable[int]) -> str:
        return "".join(f" {word_of[number]}" for number in ids)

    rows = [
        {"prompt": text(e.prompt_ids), "chosen": text(e.completions[c]), "rejected": text(e.completions[r])}
        for e, (c, r) in pairs
    ]
    assert ours["pairs_per_step"] % batch_size == 0, "TRL's batches must fill a step"
    same = ("beta", "learning_rate", "lr_scheduler_type", "max_grad_norm", "weight_decay", "seed")
    common = {
        "output_dir": tempfile.mkdtemp(),
        "precompute_ref_log_probs": True,
        "gradient_checkpointing": False,
        "max_length": None,  # by default TRL cuts sequences to 1024 tokens
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": ours["pairs_per_step"] // batch_size,
        "num_train_epochs": 1,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": ours["dtype"] == "bfloat16",
        "use_cpu": True,
        "loss_type": ours["loss_type"],
        "warmup_steps": ours["warmup_ratio"],  # a value below 1 is a fraction of all steps
        **{name: ours[name] for name in same},
    }
    trainer = RecordingTrainer(
        model=model,
        args=DPOConfig(**(common | settings)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>"),
        callbacks=[Clock()],
        peft_config=peft,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.batches, trainer.step_ends, trainer.expected_ids = [], [], expected_ids
    return trainer


def train(trainer: Any) -> TrainResult:
    """Train all steps.

    Raises:
        AssertionError: TRL trained on other token ids than it was given.
    """
    trainer.train()
    trained_ids = [
        [ids[row][mask[row] == 1].tolist() for row in (pair, pair + len(ids) // 2)]
        for ids, mask, _ in trainer.batches
        for pair in range(len(ids) // 2)
    ]
    assert trained_ids == trainer.expected_ids[: len(trained_ids)], "TRL trained on other token ids"
    batches_per_step = trainer.args.gradient_accumulation_steps
    losses = torch.stack([loss for _, _, loss in trainer.batches]).view(-1, batches_per_step).sum(1).tolist()
    return TrainResult([end - start for start, end in pairwise(trainer.step_ends)], losses)


def gradient(trainer: Any, step: int) -> dict[str, Tensor]:
    """The gradient of step number `step` before clipping, at the current weights of the trainer's model."""
    trainer.model.zero_grad()
    size, batches_per_step = trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps
    for batch in range(step * batches_per_step, (step + 1) * batches_per_step):
        rows = [trainer.train_dataset[row] for row in range(batch * size, (batch + 1) * size)]
        (trainer.compute_loss(trainer.model, trainer.data_collator(rows)) / batches_per_step).backward()
    return {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
