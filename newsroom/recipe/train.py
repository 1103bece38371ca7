"""Trains a tiny model with a seed and resumes it: first copying, then tasks.

A model this small learns to look things up only if it first trains on nothing else: strings of random words, each
followed by itself. With tasks from the start it never leaves chance (see the README of the newsroom). `make_models.py`
chooses the tasks and the number of steps.
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

TokenPair = tuple[list[int], list[int]]  # token ids of a prompt, and of the reply to learn
EVALUATE_EVERY = 250  # steps


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
    """Token ids of a prompt as an engine makes them: by the chat template, with nothing added."""
    return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)


def encode(tokenizer: PreTrainedTokenizerFast, example: Example) -> TokenPair:
    """Token ids of an example. The reply ends with EOS."""
    reply = tokenizer(example.reply, add_special_tokens=False)["input_ids"]
    return prompt_ids(tokenizer, example.messages), [*reply, tokenizer.eos_token_id]


def copy_example(rng: random.Random, vocabulary: int, shortest: int, longest: int) -> TokenPair:
    """A string of random words as the prompt, and the same string as the reply."""
    words = [rng.randrange(len(SPECIAL), vocabulary) for _ in range(rng.randint(shortest, longest))]
    return words, words


def loss_of(model: LlamaForCausalLM, batch: Sequence[TokenPair], pivots: Sequence[int] = ()) -> torch.Tensor:
    """Cross-entropy summed over the tokens of the replies. Logits are computed only there.

    The token after a pivot has five times the weight, because a few tokens decide what the next twenty are about.
    """
    width = max(len(prompt) + len(reply) for prompt, reply in batch) - 1
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    targets = torch.full((len(batch), width), -1)
    for row, (prompt, reply) in enumerate(batch):
        ids[row, : len(prompt) + len(reply) - 1] = torch.tensor((prompt + reply)[:-1])
        targets[row, len(prompt) - 1 : len(prompt) + len(reply) - 1] = torch.tensor(reply)
    in_reply = targets >= 0
    logits = model.lm_head(model.model(input_ids=ids).last_hidden_state[in_reply])
    losses = F.cross_entropy(logits, targets[in_reply], reduction="none")
    return (losses * (1 + 4 * torch.isin(ids[in_reply], torch.tensor(pivots)))).sum()


def split_by_length(batch: list[TokenPair]) -> list[list[TokenPair]]:
    """The shorter and the longer half of a batch: the same gradient with less padding."""
    batch = sorted(batch, key=lambda pair: len(pair[0]) + len(pair[1]))
    return [batch[: len(batch) // 2], batch[len(batch) // 2 :]]


class Trainer:
    """A model with its optimizers and its step, which can be saved to `file` and resumed from it.

    Muon trains the matrices: it learns copying in half the steps that AdamW needs. AdamW trains the rest.

    Args:
        model: the model to train.
        file: where the state is saved.
        pivots: tokens after which the loss has five times the weight.
        rate: peak learning rate.
        warm_up: steps of linear warm-up.
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
        matrix_names = {name for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name}
        matrices = [p for name, p in model.named_parameters() if name in matrix_names]
        others = [p for name, p in model.named_parameters() if name not in matrix_names]
        self.optimizers = (
            torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.01),
        )

    def resume(self, file: Path) -> bool:
        """Load the state in `file`. Returns False if there is no such file."""
        if not file.exists():
            return False
        saved = torch.load(file, weights_only=True)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step = saved["step"]
        return True

    def save(self) -> None:
        """Write the state to `file`, whole or not at all, because training may be killed at any moment."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        temporary = self.file.with_suffix(".tmp")
        torch.save({"step": self.step, "model": self.model.state_dict(), "optimizers": states}, temporary)
        os.replace(temporary, self.file)

    def train(
        self, steps: int, make_batch: Callable[[int], list[TokenPair]], evaluate: Callable[[int], None], decay: bool
    ) -> None:
        """Train until step number `steps`. Save and evaluate every `EVALUATE_EVERY` steps.

        Args:
            steps: the last step.
            make_batch: the batch of a step. It depends on the step alone, so that a resumed training continues as if
                it had not stopped.
            evaluate: called with the step after each save.
            decay: let the learning rate fall linearly to 0 over the second half.
        """
        began, tokens = time.monotonic(), 0
        while self.step < steps:
            parts = split_by_length(make_batch(self.step))
            loss = self._train_step(parts, self._rate(steps, decay))
            self.step += 1
            tokens += sum(len(prompt) + len(reply) for part in parts for prompt, reply in part)
            if self.step % EVALUATE_EVERY == 0 or self.step == steps:
                speed = tokens / (time.monotonic() - began)
                progress = f"{self.file.stem} step {self.step} of {steps}"
                print(f"{progress}  loss {loss:.3f}  {speed:.0f} tokens/s", flush=True)
                self.save()
                evaluate(self.step)

    def _rate(self, steps: int, decay: bool) -> float:
        rate = self.rate * min(1.0, (self.step + 1) / self.warm_up)
        if decay:
            rate *= min(1.0, 2 * (steps - self.step) / steps)
        return rate

    def _train_step(self, parts: list[list[TokenPair]], rate: float) -> float:
        """One optimizer step. Returns the mean loss per reply token."""
        reply_tokens = sum(len(reply) for part in parts for _, reply in part)
        total = 0.0
        for part in parts:
            loss = loss_of(self.model, part, self.pivots) / reply_tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        return total
