"""TRL's side of the comparison: its DPOTrainer on the same model, pairs, token ids and order as ours.

It gets text, because it takes nothing else, through a tokenizer of one word per id; that the ids come out as they went
in is checked on every batch that it trains on. Left out: what is trained on, and our side (`sides.py`).
"""

import os
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.training.sides import EOS, PAD, Trained, Work


def make(work: Work, batch_size: int, model: PreTrainedModel | None = None, peft: Any = None, **settings: Any) -> Any:
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


def train(trainer: Any) -> Trained:
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


def gradient(trainer: Any, step: int) -> dict[str, Tensor]:
    """Of step number `step` at the weights that the trainer's model has now, before clipping."""
    trainer.model.zero_grad()
    size, each = trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps
    for batch in range(step * each, (step + 1) * each):
        rows = [trainer.train_dataset[row] for row in range(batch * size, (batch + 1) * size)]
        (trainer.compute_loss(trainer.model, trainer.data_collator(rows)) / each).backward()
    return {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
