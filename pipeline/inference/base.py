"""What an engine is: it turns prompts into samples and knows nothing of news.

An engine lives in an actor of its own and is gone when its stage ends, so that it never holds a GPU's memory while
training runs. Left out: what is asked (stages and judges) and where it runs (`pool.py`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from judges.base import Prompt


@dataclass(frozen=True)
class Sample:
    """One completion. `token_ids` are the sampled ones, the stop token included if one was emitted; none of a server's.

    finish_reason: as vLLM's: "stop" (a stop token), "length" (the token limit).
    logp: of all the tokens together, in nats, under the model itself (before temperature and top_p), but among those
        tokens only that the prompt's regex allows; None if the prompt did not ask for it.
    token_logps: the same of each token, beside its text; None where it was not asked for, or a server's tokens are
        not those of the text.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    logp: float | None = None
    token_logps: list[tuple[str, float]] | None = None


@dataclass(frozen=True)
class Reply:
    """What came of one prompt: `n` samples, or `error` and none.

    prompt_ids: the token ids that the model was given, exactly.
    cached_tokens: how many of them were found in the prefix cache.
    usage: what a server counted, by the names of `tokens`, where no ids say it.
    """

    prompt_ids: list[int]
    samples: list[Sample] = field(default_factory=list)
    cached_tokens: int = 0
    error: str | None = None
    usage: dict[str, int] | None = None


def count_tokens(replies: Iterable[Reply]) -> dict[str, int]:
    """What some replies cost: prompt tokens, those of them found in the prefix cache, and sampled tokens.

    Of a server also `retries`, and with its prices `micro_usd`, millionths of a dollar.
    """
    total = Counter(tokens_in=0, tokens_cached=0, tokens_out=0)
    for reply in replies:
        if reply.usage is not None:  # also of a reply that came to nothing: it was paid for
            total.update(reply.usage)
        elif reply.error is None:
            total["tokens_in"] += len(reply.prompt_ids)
            total["tokens_cached"] += reply.cached_tokens
            total["tokens_out"] += sum(len(sample.token_ids) for sample in reply.samples)
    return dict(total)


class EngineDied(RuntimeError):
    """An engine can serve nobody any more. Its process is to end, and another is to be made."""


class Engine(Protocol):
    """Generates for many prompts at once. A prompt that cannot be served gets a Reply with an error; the others
    are served. Several threads may call it."""

    def generate(self, prompts: Sequence[Prompt]) -> list[Reply]: ...


EngineFactory = Callable[[], Engine]
