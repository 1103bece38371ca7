"""Samples summaries from a policy, and keeps the sampled token ids.

It keeps the prompt's token ids and, for each sample, its token ids with the stop token, its text and its finish reason.
Training uses these ids. Tokenizing the text again could give a different sequence, which would be off-policy.
"""

from dataclasses import dataclass, replace

from ray.data import Dataset

from judges.base import Prompt, Skip
from judges.text.conversations import fill_instruction, read_instruction
from pipeline.config.run import PolicySettings
from pipeline.inference.base import SUMMARIES, Engine, count_tokens
from pipeline.inference.pool import EnginePool
from pipeline.storage.schema import Outcome, Row

SAMPLED = ("writer", "prompt_ids", "summaries")  # the columns that sampling adds


def instruction_prompt(policy: PolicySettings, max_tokens: int) -> Prompt:
    """The prompt of every summary, with `{article}` where the article goes."""
    return Prompt(read_instruction(policy.instruction, "policy.instruction", policy.merge_system), max_tokens)


def sample_dataset(rows: Dataset, prompt: Prompt, writer: str, pool: EnginePool) -> Dataset:
    """Sample summaries for each row, and add the columns `writer`, `prompt_ids` and `summaries`.

    The first batch of each engine always comes with log-probabilities, to be compared with the trainer's.

    Args:
        rows: a dataset of articles.
        prompt: one of its messages has `{article}` where the article goes, and each may have `{language}`.
        writer: the build id of the policy.
        pool: engines of the policy.
    """
    return pool.map(rows, _Sampler(prompt, writer), SAMPLED)


@dataclass
class _Sampler:
    """`sample_rows` for one engine. Each actor has its own copy; an actor that Ray restarts gets a new one."""

    prompt: Prompt
    writer: str
    has_logprobs: bool = False  # whether a batch with log-probabilities was sampled already

    def __call__(self, engine: Engine, rows: list[Row]) -> list[Outcome]:
        # Only the first batch asks for log-probabilities: if one prompt asks, vLLM computes them for all prompts that
        # run at the same time, which is slower.
        prompt = self.prompt if self.has_logprobs else replace(self.prompt, logprobs=True)
        self.has_logprobs = True
        return sample_rows(prompt, self.writer, engine, rows)


def sample_rows(prompt: Prompt, writer: str, engine: Engine, rows: list[Row]) -> list[Outcome]:
    """Sample summaries for a batch of rows: the step of a pool of policy engines."""
    replies = engine.generate([fill_article(prompt, row["article"]) for row in rows])
    return [
        Skip(reply.error)
        if reply.error
        else {
            "writer": writer,
            "prompt_ids": reply.prompt_ids,
            "summaries": [vars(sample) for sample in reply.samples],
            "tally": count_tokens([reply]) | {SUMMARIES: len(reply.samples)},
        }
        for reply in replies
    ]


def fill_article(prompt: Prompt, article: str) -> Prompt:
    """Put the article into the prompt's messages, and mark it as quoted text."""
    return replace(prompt, messages=fill_instruction(prompt.messages, article), quotes=(article,))
