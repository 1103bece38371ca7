"""One seeded, resumable course of training: copying first, then tasks.

A model this small learns to look things up only if it is first shown nothing else: strings of random words, each said
twice. Tasks from the start never leave chance (newsroom/README.md). Left out: which tasks, and how many steps
(`make_models`).
"""

import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from newsroom.tasks import Example
from newsroom.tokenizer import SPECIAL

Ids = tuple[list[int], list[int]]  # a prompt, and the reply that is learned
LOOK_EVERY = 250


def tiny_llama(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """An untrained Llama of 1.15 million parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def prompt_ids(tokenizer: PreTrainedTokenizerFast, messages: Sequence[dict[str, str]]) -> list[int]:
    """The prompt as an engine makes it: the chat template and nothing else."""
    return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)


def encode(tokenizer: PreTrainedTokenizerFast, example: Example) -> Ids:
    reply = tokenizer(example.reply, add_special_tokens=False)["input_ids"]
    return prompt_ids(tokenizer, example.messages), [*reply, tokenizer.eos_token_id]


def copying(rng: random.Random, words: int, shortest: int, longest: int) -> Ids:
    """A string of random words, to be said again."""
    said = [rng.randrange(len(SPECIAL), words) for _ in range(rng.randint(shortest, longest))]
    return said, said


def loss_of(model: LlamaForCausalLM, batch: Sequence[Ids], pivots: Sequence[int] = ()) -> torch.Tensor:
    """Summed over the tokens of the replies; only there are logits made.

    What follows a pivot counts five times: few tokens decide what the next twenty are about.
    """
    width = max(len(prompt) + len(reply) for prompt, reply in batch) - 1
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    wanted = torch.full((len(batch), width), -1)
    for row, (prompt, reply) in enumerate(batch):
        ids[row, : len(prompt) + len(reply) - 1] = torch.tensor((prompt + reply)[:-1])
        wanted[row, len(prompt) - 1 : len(prompt) + len(reply) - 1] = torch.tensor(reply)
    learned = wanted >= 0
    logits = model.lm_head(model.model(input_ids=ids).last_hidden_state[learned])
    losses = F.cross_entropy(logits, wanted[learned], reduction="none")
    return (losses * (1 + 4 * torch.isin(ids[learned], torch.tensor(pivots)))).sum()


def halves(batch: list[Ids]) -> list[list[Ids]]:
    """The short and the long: one gradient, less padding."""
    batch = sorted(batch, key=lambda ids: len(ids[0]) + len(ids[1]))
    return [batch[: len(batch) // 2], batch[len(batch) // 2 :]]


class Course:
    """A model, its optimizers and how many steps it has done; saved in `file`, and gone on from there.

    Muon for the matrices: copying comes in half the steps that AdamW needs.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        file: Path,
        pivots: Sequence[int] = (),
        rate: float = 2e-3,
        warm_up: int = 200,
    ):
        self.model, self.file, self.pivots, self.rate, self.warm_up = model, file, pivots, rate, warm_up
        self.step = 0
        inner = {name for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name}
        matrices = [p for name, p in model.named_parameters() if name in inner]
        others = [p for name, p in model.named_parameters() if name not in inner]
        self.optimizers = (
            torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.01),
        )

    def resume(self, file: Path) -> bool:
        """Go on from what `file` holds, if it is there."""
        if not file.exists():
            return False
        saved = torch.load(file, weights_only=True)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step = saved["step"]
        return True

    def save(self) -> None:
        """Write `file` whole or not at all: a run may be killed at any moment."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        half_written = self.file.with_suffix(".tmp")
        torch.save({"step": self.step, "model": self.model.state_dict(), "optimizers": states}, half_written)
        os.replace(half_written, self.file)

    def run(self, steps: int, batch: Callable[[int], list[Ids]], look: Callable[[int], None], settle: bool) -> None:
        """Train until `steps`; `batch` depends on the step alone, so a resumed run goes the way it would have gone.

        settle: let the rate fall to nothing over the last half.
        """
        began, tokens = time.monotonic(), 0
        while self.step < steps:
            parts = halves(batch(self.step))
            learned = sum(len(reply) for part in parts for _, reply in part)
            rate = self.rate * min(1.0, (self.step + 1) / self.warm_up)
            if settle:
                rate *= min(1.0, 2 * (steps - self.step) / steps)
            total = 0.0
            for part in parts:
                loss = loss_of(self.model, part, self.pivots) / learned
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                optimizer.zero_grad()
            self.step += 1
            tokens += sum(len(prompt) + len(reply) for part in parts for prompt, reply in part)
            if self.step % LOOK_EVERY == 0 or self.step == steps:
                speed = tokens / (time.monotonic() - began)
                print(
                    f"{self.file.stem} step {self.step} of {steps}  loss {total:.3f}  {speed:.0f} tokens/s", flush=True
                )
                self.save()
                look(self.step)
