"""A policy at an engine: asking it for summaries, and keeping what it sampled.

Kept are the prompt's token ids, and of each sample the token ids with the stop token, the text and the finish reason.
Training uses these very ids: text tokenized again is another sequence, and off-policy.
"""

from dataclasses import dataclass, replace

from ray.data import Dataset

from judges.base import Prompt, Skip, fill, user
from pipeline.inference.base import Engine, count_tokens
from pipeline.inference.pool import EnginePool
from pipeline.storage.schema import Outcome, Row

SAMPLED = ("writer", "prompt_ids", "summaries")


def sample_dataset(rows: Dataset, prompt: Prompt, writer: str, pool: EnginePool) -> Dataset:
    """Add `writer`, `prompt_ids` and `summaries`; `prompt` says `{article}` where each row's article goes.

    The first samples of each engine come with log-probabilities even if the prompt does not ask: the trainer's are
    compared with them.
    """
    return pool.map(rows, _Sampler(prompt, writer), SAMPLED)


@dataclass
class _Sampler:
    """`sample_rows`, one engine's: an actor has a copy of its own, and so has the one that takes a dead one's place."""

    prompt: Prompt
    writer: str
    compared: bool = False

    def __call__(self, engine: Engine, rows: list[Row]) -> list[Outcome]:
        # Only the first batch: vLLM takes log-probabilities of all that runs beside one that asks, and is slower.
        prompt = self.prompt if self.compared else replace(self.prompt, logprobs=True)
        self.compared = True
        return sample_rows(prompt, self.writer, engine, rows)


def sample_rows(prompt: Prompt, writer: str, engine: Engine, rows: list[Row]) -> list[Outcome]:
    """What each row gets: the step of a pool of policies."""
    replies = engine.generate([fill_article(prompt, row["article"]) for row in rows])
    return [
        Skip(reply.error)
        if reply.error
        else {
            "writer": writer,
            "prompt_ids": reply.prompt_ids,
            "summaries": [vars(sample) for sample in reply.samples],
            "tally": count_tokens([reply]) | {"summaries": len(reply.samples)},
        }
        for reply in replies
    ]


def fill_article(prompt: Prompt, article: str) -> Prompt:
    """The prompt with the article in its place."""
    messages = user(fill(prompt.messages[0]["content"], {"article": article}))
    return replace(prompt, messages=messages, quotes=(article,))
