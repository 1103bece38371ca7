"""When a run of rounds stops by itself: the settings `stop`, and a pure rule for each of them.

A rule is given what rounds came to and says why to stop, with the figures, or nothing. Left out: how the figures are
measured (`standing.py`), and what a run does when it stops (`round.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config.stopping import Stop

if TYPE_CHECKING:
    from pipeline.evaluation.win_rate import WinRate


@dataclass(frozen=True)
class RoundFigures:
    """What one round came to. None where there was nothing to measure.

    Attributes:
        number: of the round.
        gained: strict win rate, on held-out articles, against the policy that the round started from.
        pair_yield: share of the judged articles that gave a pair, 0 to 1.
        kl: of the policy that wrote for the round to the base, in nats a summary.
        words, base_words: median of held-out summaries, by the new policy and by the base.
        invalid_chars: share of the new policy's held-out summaries with characters that none should have, 0 to 1.
    """

    number: int
    gained: "WinRate | None" = None
    pair_yield: float | None = None
    kl: float | None = None
    words: float | None = None
    base_words: float | None = None
    invalid_chars: float | None = None


def stop_reasons(stop: Stop, history: Sequence[RoundFigures]) -> list[str]:
    """Why to stop after the last of these rounds, a line for each rule that says so; none: go on.

    Args:
        history: every round so far, in order.
    """
    last = history[-1]
    return [*_said(_no_gain(stop, history), _few_pairs(stop, last), _far(stop, last)), *bounds_exceeded(stop, last)]


def bounds_exceeded(stop: Stop, last: RoundFigures) -> list[str]:
    """Why a policy's summaries are out of bounds, whatever a judge thinks of them: no such policy is champion."""
    return _said(_short(stop, last), _long(stop, last), _longer(stop, last), _gibberish(stop, last))


def _said(*found: str | None) -> list[str]:
    return [reason for reason in found if reason is not None]


def _no_gain(stop: Stop, history: Sequence[RoundFigures]) -> str | None:
    """A round that could not be compared has not been shown to gain."""
    since = history[-stop.patience :] if stop.patience else ()
    if not since or len(since) < (stop.patience or 0) or any(f.gained and f.gained.better for f in since):
        return None
    rates = ", ".join(
        f"round {f.number} {_interval(f.gained)}" if f.gained else f"round {f.number} not comparable" for f in since
    )
    return f"stop.patience={stop.patience}: no gain over what the round started from ({rates})"


def _few_pairs(stop: Stop, last: RoundFigures) -> str | None:
    if stop.min_yield is None or last.pair_yield is None or last.pair_yield >= stop.min_yield:
        return None
    return f"stop.min_yield={stop.min_yield}: {last.pair_yield:.1%} of the judged articles gave a pair"


def _far(stop: Stop, last: RoundFigures) -> str | None:
    if stop.max_kl is None or last.kl is None or last.kl <= stop.max_kl:
        return None
    return f"stop.max_kl={stop.max_kl}: the writer is {last.kl:.2f} nats a summary from the base"


def _short(stop: Stop, last: RoundFigures) -> str | None:
    if stop.min_words is None or last.words is None or last.words >= stop.min_words:
        return None
    return f"stop.min_words={stop.min_words}: half the summaries have at most {last.words:.0f} words"


def _long(stop: Stop, last: RoundFigures) -> str | None:
    if stop.max_words is None or last.words is None or last.words <= stop.max_words:
        return None
    return f"stop.max_words={stop.max_words}: half the summaries have at least {last.words:.0f} words"


def _longer(stop: Stop, last: RoundFigures) -> str | None:
    if stop.max_words_ratio is None or last.words is None or not last.base_words:
        return None
    if last.words <= stop.max_words_ratio * last.base_words:
        return None
    return (
        f"stop.max_words_ratio={stop.max_words_ratio}: the median summary has {last.words:.0f} words, and the base's "
        f"{last.base_words:.0f}"
    )


def _gibberish(stop: Stop, last: RoundFigures) -> str | None:
    if stop.max_invalid_chars is None or last.invalid_chars is None or last.invalid_chars <= stop.max_invalid_chars:
        return None
    return (
        f"stop.max_invalid_chars={stop.max_invalid_chars}: {last.invalid_chars:.1%} of the summaries have characters "
        "that neither their article nor plain text has"
    )


def _interval(rate: "WinRate") -> str:
    return f"{rate.win_rate:.1%} [{rate.low:.1%}, {rate.high:.1%}]"
