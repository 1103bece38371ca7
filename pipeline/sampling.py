"""A policy at an engine: asking it for summaries, and keeping what it sampled.

Kept are the prompt's token ids, and of each sample the token ids with the stop token, the text and the finish reason.
Training uses these very ids: text tokenized again is another sequence, and off-policy.
"""

import zlib
from dataclasses import replace
from functools import partial

from ray.data import Dataset

from judges.base import Prompt, Skip, fill, user
from pipeline.engines.base import Engine, tokens
from pipeline.engines.pool import Pool
from pipeline.rows import Outcome, Row

COMPARED = 1 / 16  # of the articles that are sampled for training: their samples have log-probabilities
SAMPLED = ("writer", "prompt_ids", "summaries")


def sample(rows: Dataset, prompt: Prompt, writer: str, pool: Pool) -> Dataset:
    """Add `writer`, `prompt_ids` and `summaries`; `prompt` says `{article}` where each row's article goes."""
    return pool.map(rows, partial(sample_rows, prompt, writer), SAMPLED)


def sample_rows(prompt: Prompt, writer: str, engine: Engine, rows: list[Row]) -> list[Outcome]:
    """What each row gets: the step of a pool of policies."""
    replies = engine.generate([_ask(prompt, row) for row in rows])
    return [
        Skip(reply.error)
        if reply.error
        else {
            "writer": writer,
            "prompt_ids": reply.prompt_ids,
            "summaries": [vars(sample) for sample in reply.samples],
            "tally": tokens([reply]) | {"summaries": len(reply.samples)},
        }
        for reply in replies
    ]


def _ask(prompt: Prompt, row: Row) -> Prompt:
    # Sampled for training, a few articles' samples come with log-probabilities: the trainer's are compared with them.
    compared = prompt.n > 1 and is_compared(row["article_id"])
    return replace(about(prompt, row["article"]), logprobs=prompt.logprobs or compared)


def is_compared(article_id: str) -> bool:
    """Whether an article is one of those, one in 16, whose samples have log-probabilities whatever the settings are."""
    return zlib.crc32(article_id.encode()) < COMPARED * 2**32


def about(prompt: Prompt, article: str) -> Prompt:
    """The prompt with the article in its place."""
    messages = user(fill(prompt.messages[0]["content"], {"article": article}))
    return replace(prompt, messages=messages, quotes=(article,))
