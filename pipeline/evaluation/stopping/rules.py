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
        repeated, copied, lead_copied, off_topic_end, other_language: faults of the new policy's held-out summaries,
            from 0 to 1 (`fault_figures.mean_faults`).
        base_copied: `copied` of the base policy.
    """

    number: int
    gained: "WinRate | None" = None
    pair_yield: float | None = None
    kl: float | None = None
    words: float | None = None
    base_words: float | None = None
    invalid_chars: float | None = None
    repeated: float | None = None
    copied: float | None = None
    base_copied: float | None = None
    lead_copied: float | None = None
    off_topic_end: float | None = None
    other_language: float | None = None


# Setting of `stop`, field of RoundFigures, and what is said of a value above the setting.
_FAULT_BOUNDS = (
    ("max_repeated", "repeated", "on average, a summary said {:.1%} of its words before"),
    ("max_copied", "copied", "on average, {:.1%} of a summary's 8-grams are copied from its article"),
    ("max_lead_copied", "lead_copied", "on average, {:.1%} of a summary's 8-grams are copied from its article's lead"),
    ("max_off_topic", "off_topic_end", "{:.1%} of the summaries end off topic"),
    ("max_other_language", "other_language", "{:.1%} of the summaries are in another language than their article"),
)


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
    rules = (_too_short, _too_long, _longer_than_base, _gibberish, _copies_more_than_base)
    reasons = [*(rule(stop, last) for rule in rules), *_too_many_faults(stop, last)]
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


def _copies_more_than_base(stop: Stop, last: RoundFigures) -> str | None:
    if stop.max_copied_rise is None or last.copied is None or last.base_copied is None:
        return None
    if last.copied - last.base_copied <= stop.max_copied_rise:
        return None
    return (
        f"stop.max_copied_rise={stop.max_copied_rise}: on average, {last.copied:.1%} of a summary's 8-grams are copied "
        f"from its article, and {last.base_copied:.1%} of the base's"
    )


def _too_many_faults(stop: Stop, last: RoundFigures) -> list[str]:
    reasons = []
    for setting, name, said in _FAULT_BOUNDS:
        bound, value = getattr(stop, setting), getattr(last, name)
        if bound is not None and value is not None and value > bound:
            reasons.append(f"stop.{setting}={bound}: {said.format(value)}")
    return reasons


def _format_rate(rate: "WinRate") -> str:
    return f"{rate.win_rate:.1%} [{rate.low:.1%}, {rate.high:.1%}]"
