"""Sums up an arm over its seeds, and says in a sentence what its setting was worth."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.ablation.pooling import pool_verdicts

_LONGER, _COPIED, _DEARER = 0.2, 0.05, 0.2  # smaller changes of words, of the share copied, and of hours go unsaid

Rate = Mapping[str, Any] | None  # see `pooling.pool_verdicts`


@dataclass(frozen=True)
class Summary:
    """An arm over its finished seeds. A rate or a mean is None if no seed has it.

    Attributes:
        name: of the arm.
        title: what it is.
        choice: its setting, as NAME=VALUE; empty for the base and the baselines.
        group: the choice that it belongs to.
        against: the name of the arm that it is compared with; None: the base.
        vs_base, second_vs_base, test_vs_base: win rates against the base on held-out articles by both judges, and on
            test articles.
        vs_other, second_vs_other, test_vs_other: the same against the arm that it is compared with.
        same: in every seed its last policy is that of the arm it is compared with.
        figures: means over seeds by name.
        hours: means over seeds by step, with what was copied from other arms.
        own_hours: mean over seeds of what the arm itself took.
        tokens: means over seeds by kind.
        errors: why it failed, by seed.
        stopped: why its run ended early, by seed.
    """

    name: str
    title: str
    choice: str
    group: str
    against: str | None = None
    vs_base: Rate = None
    second_vs_base: Rate = None
    test_vs_base: Rate = None
    vs_other: Rate = None
    second_vs_other: Rate = None
    test_vs_other: Rate = None
    same: bool = False
    figures: Mapping[str, float | None] = field(default_factory=dict)
    hours: Mapping[str, float] = field(default_factory=dict)
    own_hours: float | None = None
    tokens: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    stopped: Mapping[str, str] = field(default_factory=dict)


def summarize(results: Mapping[str, Any]) -> list[Summary]:
    """Sum up results.json: the base and the baselines, then the arms in their order."""
    confidence = results["settings"]["report"]["confidence"]
    return [_summarize(name, arm, confidence) for name, arm in {**results["baselines"], **results["arms"]}.items()]


def _summarize(name: str, arm: Mapping[str, Any], confidence: float) -> Summary:
    finished = [entry for entry in arm["seeds"].values() if entry["status"] == "finished"]
    rates = {
        f"{prefix}vs_{opponent}": pool_verdicts(
            [entry.get(f"{prefix}verdicts", {}).get(opponent) or {} for entry in finished], confidence
        )
        for prefix in ("", "second_", "test_")
        for opponent in ("base", "other")
    }
    if arm["against"] is None:  # compared with the base
        rates |= {f"{prefix}vs_other": rates[f"{prefix}vs_base"] for prefix in ("", "second_", "test_")}
    with_costs = [entry for entry in finished if "costs" in entry]
    return Summary(
        name,
        arm["title"],
        arm["choice"],
        arm["group"],
        arm["against"],
        **rates,
        same=bool(finished) and all(entry.get("same", False) for entry in finished),
        figures=_means({**entry, **entry.get("training", {})} for entry in finished),
        hours={name: value / 3600 for name, value in _means(e["costs"]["seconds"] for e in with_costs).items()},
        own_hours=_mean(sum(entry["costs"]["own_seconds"].values()) / 3600 for entry in with_costs),
        tokens=_means(entry["costs"]["tokens"] for entry in with_costs),
        errors={seed: entry["error"] for seed, entry in arm["seeds"].items() if entry["status"] == "failed"},
        stopped={seed: entry["stopped"] for seed, entry in arm["seeds"].items() if entry.get("stopped")},
    )


def _means(mappings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of each number that any of these has."""
    found: dict[str, list[float]] = {}
    for mapping in mappings:
        for name, value in mapping.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None


def format_rate(rate: Rate) -> str:
    """A win rate with its interval: `62.5 % [55.0, 70.0]`."""
    if rate is None:
        return "–"
    return f"{rate['win_rate']:.1%} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]".replace("%", " %")


def worth(arm: Summary, others: Mapping[str, Summary]) -> str:
    """What the arm's setting was worth, in a few sentences that follow from the figures by rule.

    Args:
        arm: an arm of the study.
        others: all arms by name.
    """
    opponent = f"`{arm.against}`" if arm.against else "the base"
    subject = f"{arm.title[0].upper()}{arm.title[1:]} (`{arm.choice}`)"
    rate = arm.vs_other
    if rate is None:
        why = "; ".join(f"seed {seed}: {error}" for seed, error in arm.errors.items())
        return f"**Not known.** {subject} {f'failed ({why})' if why else f'has no figures against {opponent}'}."
    if arm.same:
        return f"**It changed nothing.** {subject} gave the same last policy as {opponent} in every seed."
    counts = f"{rate['n']:,} articles, {rate['seeds']} seed{'s' * (rate['seeds'] > 1)}"
    if rate["shown"]:
        verdict = "Better" if rate["shown"] > 0 else "Worse"
        sentences = [f"**{verdict}.** {subject} wins {format_rate(rate)} against {opponent} ({counts})."]
    else:
        sentences = [
            f"**No difference is shown.** {subject} wins {format_rate(rate)} against {opponent} ({counts}). The "
            f"interval excludes win rates above {_percent(rate['high'])} and below {_percent(rate['low'])}."
        ]
    sentences += [_second_opinion(rate, arm.second_vs_other), _on_test(arm.test_vs_other)]
    sentences += _side_effects(arm, others.get(arm.against or "base"), opponent)
    return " ".join(filter(None, sentences))


def _second_opinion(rate: Mapping[str, Any], second: Rate) -> str:
    if second is None:
        return ""
    if second["shown"] == rate["shown"]:
        opinion = "The second judge agrees" if rate["shown"] else "The second judge shows none either"
    elif second["shown"] and rate["shown"]:
        opinion = "The second judge says the opposite"
    elif rate["shown"]:
        opinion = "The second judge does not confirm it"
    else:
        opinion = f"By the second judge it is {'better' if second['shown'] > 0 else 'worse'}"
    return f"{opinion}: {format_rate(second)}."


def _on_test(rate: Rate) -> str:
    return f"On the {rate['n']:,} test articles it wins {format_rate(rate)}." if rate else ""


def _side_effects(arm: Summary, other: Summary | None, opponent: str) -> list[str]:
    """Sentences about length, copying and hours, where they differ clearly."""
    if other is None:
        return []
    found = []
    words, other_words = arm.figures.get("words_median"), other.figures.get("words_median")
    if words and other_words and abs(words / other_words - 1) > _LONGER:
        found.append(f"Its summaries have {words:.0f} words, those of {opponent} {other_words:.0f}.")
    copied, other_copied = arm.figures.get("copied"), other.figures.get("copied")
    if copied is not None and other_copied is not None and abs(copied - other_copied) > _COPIED:
        found.append(
            f"It copies {_percent(copied)} of its 8-grams from the article, {opponent} {_percent(other_copied)}."
        )
    hours, other_hours = sum(arm.hours.values()), sum(other.hours.values())
    if arm.against and other_hours and abs(hours / other_hours - 1) > _DEARER:
        found.append(f"It takes {hours / other_hours:.1f} times the hours of {opponent}.")
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
