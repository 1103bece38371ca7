"""Defines the interface of an engine, which turns prompts into samples and knows nothing about articles or judges.

Each engine lives in its own Ray actor, which stays from stage to stage. Actors are in `actors/`, and `pool.py` streams
rows through them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from judges.base import Prompt, Sample
from pipeline.storage.schema import Outcome, Row

# Names of the counts that engines add to the tally of a stage's record. Records lie on users' disks, so the strings
# never change. The judge's counts have their names in `judging/tallies.py`.
TOKENS_IN = "tokens_in"  # prompt tokens
TOKENS_CACHED = "tokens_cached"  # prompt tokens that were found in the prefix cache
TOKENS_OUT = "tokens_out"  # sampled tokens
TOKENS_THOUGHT = "tokens_thought"  # those of them that are thoughts
REPLIES = "replies"  # samples of a model
REPLIES_CUT_OFF = "replies cut off"  # those of them that a token limit cut off
RETRIES = "retries"  # requests that were sent to a server again
MICRO_USD = "micro_usd"  # what a server charges, in millionths of a US dollar
ENGINE_STARTS = "engine starts"
ENGINE_LOADS = "engine loads"  # times that an engine of an earlier stage got other weights or woke up, in place
ENGINE_START_MS = "engine start ms"  # milliseconds, added up over all starts and loads
ENGINE_MS = "engine ms"  # milliseconds in which an engine had work, without its start
SUMMARIES = "summaries"  # summaries that a row got


@dataclass(frozen=True)
class Reply:
    """The result of one prompt: either `n` samples, or an error and no samples.

    Attributes:
        prompt_ids: exactly the token ids that the model was given. Empty for a server.
        samples: the completions.
        cached_tokens: how many prompt tokens were found in the prefix cache.
        error: why there are no samples.
        usage: token counts that a server reports, with the keys of `count_tokens`. None if the ids can be counted.
    """

    prompt_ids: list[int]
    samples: list[Sample] = field(default_factory=list)
    cached_tokens: int = 0
    error: str | None = None
    usage: dict[str, int] | None = None


def count_tokens(replies: Iterable[Reply]) -> dict[str, int]:
    """Count the tokens of replies, their cost, and how many samples a token limit cut off.

    Returns:
        replies: samples; replies cut off: those of them that a token limit cut off.
        tokens_in: prompt tokens; tokens_cached: those of them found in the prefix cache; tokens_out: sampled tokens.
        Of a model that thinks also tokens_thought: those of tokens_out that are thoughts. For a server also `retries`,
        and `micro_usd` (millionths of a dollar) if the model's price is known.
    """
    total = Counter({TOKENS_IN: 0, TOKENS_CACHED: 0, TOKENS_OUT: 0, REPLIES: 0, REPLIES_CUT_OFF: 0})
    for reply in replies:
        total[REPLIES] += len(reply.samples)
        total[REPLIES_CUT_OFF] += sum(sample.finish_reason == "length" for sample in reply.samples)
        if reply.usage is not None:  # even if the reply is an error: the server charged for it
            total.update(reply.usage)
        elif reply.error is None:
            total[TOKENS_IN] += len(reply.prompt_ids)
            total[TOKENS_CACHED] += reply.cached_tokens
            total[TOKENS_OUT] += sum(len(sample.token_ids) - sample.forced_tokens for sample in reply.samples)
            thoughts = [s.thought_tokens - s.forced_tokens for s in reply.samples if s.thought_tokens is not None]
            if thoughts:
                total[TOKENS_THOUGHT] += sum(thoughts)
    return dict(total)


class EngineDied(RuntimeError):
    """An engine can serve no more prompts. Its process must end, and a new engine must be made."""


class Engine(Protocol):
    """Generates samples for many prompts at once.

    A prompt that cannot be served gets a Reply with an error; the other prompts are served. Several threads may call
    `generate`.
    """

    def generate(self, prompts: Sequence[Prompt]) -> list[Reply]: ...


EngineFactory = Callable[[], Engine]
EngineStep = Callable[[Engine, list[Row]], Sequence[Outcome]]  # one outcome per row
