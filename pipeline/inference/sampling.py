"""Samples summaries from a policy, and keeps the sampled token ids.

It keeps the prompt's token ids and, for each sample, its token ids with the stop token, its text and its finish reason.
Training uses these ids. Tokenizing the text again could give a different sequence, which would be off-policy.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ray.data import Dataset

from judges.base import Prompt, Skip
from judges.text.conversations import fill_instruction, read_instruction
from pipeline.config.run import PolicySettings
from pipeline.inference.base import SUMMARIES, Engine, Reply, count_tokens
from pipeline.inference.pool import EnginePool
from pipeline.storage.schema import Outcome, Row

SAMPLED = ("writer", "prompt_ids", "summaries")  # the columns that sampling adds


def instruction_prompt(policy: PolicySettings, max_tokens: int) -> Prompt:
    """The prompt of every summary, with `{article}` where the article goes."""
    return Prompt(read_instruction(policy.instruction, "policy.instruction", policy.merge_system), max_tokens)


def sample_dataset(
    rows: Dataset,
    prompt: Prompt,
    writer: str,
    pool: EnginePool,
    temperatures: Sequence[float] = (),
    seed: int = 0,
) -> Dataset:
    """Sample summaries for each row, and add the columns `writer`, `prompt_ids` and `summaries`.

    The first batch of each engine always comes with log-probabilities, to be compared with the trainer's.

    Args:
        rows: a dataset of articles.
        prompt: one of its messages has `{article}` where the article goes, and each may have `{language}`.
        writer: the build id of the policy.
        pool: engines of the policy.
        temperatures: the `prompt.n` summaries of each row are spread over them evenly. Empty: all have the prompt's.
        seed: with the article's id, decides which summary has which temperature.
    """
    return pool.map(rows, _Sampler(prompt, writer, tuple(temperatures), seed), SAMPLED)


@dataclass
class _Sampler:
    """`sample_rows` for one engine. Each actor has its own copy; an actor that Ray restarts gets a new one."""

    prompt: Prompt
    writer: str
    temperatures: tuple[float, ...] = ()
    seed: int = 0
    has_logprobs: bool = False  # whether a batch with log-probabilities was sampled already

    def __call__(self, engine: Engine, rows: list[Row]) -> list[Outcome]:
        # Only the first batch asks for log-probabilities: if one prompt asks, vLLM computes them for all prompts that
        # run at the same time, which is slower.
        prompt = self.prompt if self.has_logprobs else replace(self.prompt, logprobs=True)
        self.has_logprobs = True
        return sample_rows(prompt, self.writer, engine, rows, self.temperatures, self.seed)


def sample_rows(
    prompt: Prompt,
    writer: str,
    engine: Engine,
    rows: list[Row],
    temperatures: Sequence[float] = (),
    seed: int = 0,
) -> list[Outcome]:
    """Sample summaries for a batch of rows: the step of a pool of policy engines. Arguments as in `sample_dataset`."""
    temperatures = temperatures or (prompt.temperature,)
    spreads = [_spread(prompt.n, temperatures, f"{seed}\n{row.get('article_id')}") for row in rows]
    prompts = [
        replace(fill_article(prompt, row["article"]), temperature=temperature, n=n)
        for row, spread in zip(rows, spreads, strict=True)
        for temperature, n in Counter(spread).items()
    ]
    replies = iter(engine.generate(prompts))
    merged = [_merge(spread, {temperature: next(replies) for temperature in Counter(spread)}) for spread in spreads]
    return [
        Skip(reply.error)
        if reply.error
        else {
            "writer": writer,
            "prompt_ids": reply.prompt_ids,
            "summaries": [
                vars(sample) | {"temperature": temperature}
                for sample, temperature in zip(reply.samples, spread, strict=True)
            ],
            "tally": count_tokens([reply]) | {SUMMARIES: len(reply.samples)},
        }
        for spread, reply in zip(spreads, merged, strict=True)
    ]


def _spread(n: int, temperatures: Sequence[float], seed: str) -> list[float]:
    """A temperature for each of n samples: each as often as the others, or once more if n does not divide evenly.

    The order is random, so that no rule that prefers an earlier summary prefers a temperature.
    """
    if len(temperatures) == 1:
        return [temperatures[0]] * n
    rng = random.Random(seed)
    whole, rest = divmod(n, len(temperatures))
    spread = [*list(temperatures) * whole, *rng.sample(list(temperatures), rest)]
    rng.shuffle(spread)
    return spread


def _merge(spread: Sequence[float], replies: dict[float, Reply]) -> Reply:
    """One reply with a row's samples in the order of `spread`. The first prompt's prefill serves the others."""
    first = next((reply for reply in replies.values() if reply.error), replies[spread[0]])
    if first.error:
        return first
    samples = {temperature: iter(reply.samples) for temperature, reply in replies.items()}
    return replace(first, samples=[next(samples[temperature]) for temperature in spread])


def fill_article(prompt: Prompt, article: str) -> Prompt:
    """Put the article into the prompt's messages, and mark it as quoted text."""
    return replace(prompt, messages=fill_instruction(prompt.messages, article), quotes=(article,))
