"""Decides when a run of rounds stops early: one pure function for each rule of the setting `stop`.

A rule gets the figures of the rounds so far. It returns the reason to stop as a sentence with the figures, or None.
`champion.py` measures the figures, and `pipeline/round.py` applies the rules after each round.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config.stopping import Stop

if TYPE_CHECKING:
    from pipeline.evaluation.win_rate import WinRate


@dataclass(frozen=True)
class RoundFigures:
    """The figures of one round that the rules look at. None means that there was nothing to measure.

    Attributes:
        number: the round's number.
        gained: strict win rate of the new policy over the policy that the round started from, on held-out articles.
        pair_yield: share of the judged articles that gave a pair, from 0 to 1.
        kl: KL divergence from the base of the policy that wrote the round's summaries, in nats per summary.
        words: median length of the new policy's held-out summaries, in words.
        base_words: the same of the base policy.
        invalid_chars: share of the new policy's held-out summaries with invalid characters, from 0 to 1.
    """

    number: int
    gained: "WinRate | None" = None
    pair_yield: float | None = None
    kl: float | None = None
    words: float | None = None
    base_words: float | None = None
    invalid_chars: float | None = None


def stop_reasons(stop: Stop, history: Sequence[RoundFigures]) -> list[str]:
    """The reasons to stop after the last round, one for each rule that stops the run. Empty: the run goes on.

    Args:
        stop: the rules.
        history: the figures of all rounds so far, in order.
    """
    last = history[-1]
    reasons = (_no_gain(stop, history), _few_pairs(stop, last), _far_from_base(stop, last))
    return [*(reason for reason in reasons if reason is not None), *bounds_exceeded(stop, last)]


def bounds_exceeded(stop: Stop, last: RoundFigures) -> list[str]:
    """Why the new policy's summaries are out of bounds. Such a policy never becomes champion."""
    reasons = (_too_short(stop, last), _too_long(stop, last), _longer_than_base(stop, last), _gibberish(stop, last))
    return [reason for reason in reasons if reason is not None]


def _no_gain(stop: Stop, history: Sequence[RoundFigures]) -> str | None:
    """A round that cannot be compared counts as a round without a gain."""
    if stop.patience is None or len(history) < stop.patience:
        return None
    latest = history[-stop.patience :]
    if any(figures.gained and figures.gained.better for figures in latest):
        return None
    rates = ", ".join(
        f"round {figures.number} {_format_rate(figures.gained) if figures.gained else 'not comparable'}"
        for figures in latest
    )
    return f"stop.patience={stop.patience}: no shown gain over the starting policy ({rates})"


def _few_pairs(stop: Stop, last: RoundFigures) -> str | None:
    if stop.min_yield is None or last.pair_yield is None or last.pair_yield >= stop.min_yield:
        return None
    return f"stop.min_yield={stop.min_yield}: only {last.pair_yield:.1%} of the judged articles gave a pair"


def _far_from_base(stop: Stop, last: RoundFigures) -> str | None:
    if stop.max_kl is None or last.kl is None or last.kl <= stop.max_kl:
        return None
    return f"stop.max_kl={stop.max_kl}: the KL of the round's writer to the base is {last.kl:.2f} nats per summary"


def _too_short(stop: Stop, last: RoundFigures) -> str | None:
    if stop.min_words is None or last.words is None or last.words >= stop.min_words:
        return None
    return f"stop.min_words={stop.min_words}: the median summary has {last.words:.0f} words"


def _too_long(stop: Stop, last: RoundFigures) -> str | None:
    if stop.max_words is None or last.words is None or last.words <= stop.max_words:
        return None
    return f"stop.max_words={stop.max_words}: the median summary has {last.words:.0f} words"


def _longer_than_base(stop: Stop, last: RoundFigures) -> str | None:
    if stop.max_words_ratio is None or last.words is None or not last.base_words:
        return None
    if last.words <= stop.max_words_ratio * last.base_words:
        return None
    return (
        f"stop.max_words_ratio={stop.max_words_ratio}: the median summary has {last.words:.0f} words, and the base's "
        f"median summary has {last.base_words:.0f}"
    )


def _gibberish(stop: Stop, last: RoundFigures) -> str | None:
    if stop.max_invalid_chars is None or last.invalid_chars is None or last.invalid_chars <= stop.max_invalid_chars:
        return None
    return (
        f"stop.max_invalid_chars={stop.max_invalid_chars}: {last.invalid_chars:.1%} of the summaries have "
        "characters that are gibberish"
    )


def _format_rate(rate: "WinRate") -> str:
    return f"{rate.win_rate:.1%} [{rate.low:.1%}, {rate.high:.1%}]"
