"""Chooses the figures of a policy's evaluation that its card shows, and puts them into the lines of tables."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PROPERTIES = (
    ("words, median", "words_median", "{:.0f}"),
    ("cut off by the token limit", "cut_off", "{:.1%}"),
    ("words that it said before", "repeated", "{:.1%}"),
    ("runs of 8 words copied from the article", "copied", "{:.1%}"),
    ("last sentence on another subject", "off_topic_end", "{:.1%}"),
    ("in another language than the article", "other_language", "{:.1%}"),
)
# Figures of metrics.json's `judge`, with what they are shares of.
_JUDGE = (
    ("right answers of the judge when it reads the whole article", "ceiling", "checked", "questions"),
    (
        "right answers of the judge when it reads nothing (it may say that it is unsure)",
        "floor",
        "checked",
        "questions",
    ),
    ("same answer with the options in another order", "agreement", "asked_again", "answers"),
    ("same winner again, in another order", "same_winner", "same_winner_of", "pairs"),
    ("the longer of two wins", "longer_won", "longer_won_of", "pairs"),
    ("replies of the judge that could be read", "parse_rate", "answers", "replies"),
)
_STRICT = "By the strict rule, "  # the rule of the card's win rates


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a policy after it was trained.

    Attributes:
        metrics: all of metrics.json.
        number: the round that trained the policy.
    """

    metrics: Mapping[str, Any]
    number: int

    @property
    def figures(self) -> Mapping[str, Any]:
        """The policy's entry in `rounds`."""
        return next(entry for entry in self.metrics["rounds"] if entry["round"] == self.number)

    @property
    def test(self) -> Mapping[str, Any] | None:
        """The figures of the test articles, if they tested this policy."""
        test = self.metrics.get("test")
        return test if test and test["round"] == self.number else None

    def rates(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The win rates over the base by the rule of training: first of the test articles, then of the held-out ones.

        Returns:
            which articles, and the rate.
        """
        both = [("test", self.test["policy"])] if self.test else []
        both.append(("held-out", self.figures))
        return [(articles, rate) for articles, own in both if (rate := own["vs_base"].get("strict"))]

    def rate_lines(self, baselines: Mapping[str, str]) -> list[list[str]]:
        """The table of win rates: who wrote, which articles, by which judge, the rate, its interval, n.

        Args:
            baselines: what to call the baselines, by their names in metrics.json.
        """
        sources = [("test", self.test["policy"], self.test["baselines"])] if self.test else []
        sources.append(("held-out", self.figures, self.metrics["baselines"]))
        lines = []
        for articles, own, by_baseline in sources:
            others = [(baselines.get(name, name), figures) for name, figures in by_baseline.items()]
            for name, figures in (("**this model**", own), *others):
                second = figures.get("second", {}).get("vs_base", {}).get("strict", {}).get("rate")
                for judge, rate in (("judge", figures["vs_base"].get("strict")), ("second judge", second)):
                    if rate:
                        interval = f"{rate['low']:.1%} to {rate['high']:.1%}"
                        lines.append([name, articles, judge, f"{rate['win_rate']:.1%}", interval, str(rate["n"])])
        return lines

    def property_lines(self) -> list[list[str]]:
        """The table of what the text is like: of this model and of its base."""
        own, base = self.figures, self.metrics["base"]
        return [
            [label, form.format(own[key]), form.format(base[key])]
            for label, key, form in _PROPERTIES
            if own.get(key) is not None and base.get(key) is not None
        ]

    def judge_lines(self) -> list[list[str]]:
        """The table of how far the judge can be trusted: what was measured, a share, and of how many."""
        card = self.metrics["judge"]
        lines = [
            [label, f"{card[key]:.1%}", f"{card[count]:,} {what}"]
            for label, key, count, what in _JUDGE
            if card.get(key) is not None and card.get(count)
        ]
        reliability = card.get("reliability") or {}
        if share := reliability.get("same_winner"):
            value = f"{share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%})"
            lines.append(
                [
                    f"same winner by other {reliability['unit']} of the same kind",
                    value,
                    f"{reliability['pairs']:,} pairs",
                ]
            )
        second = self.figures.get("second", {}).get("vs_base", {}).get("strict", {}).get("agreement", {})
        if second.get("same_winner") is not None:
            counted = f"{second['decided']:,} articles that both decide"
            lines.append(["same winner by the second judge", f"{second['same_winner']:.1%}", counted])
        return lines

    def notes(self) -> list[str]:
        """The report's notes for readers of the card.

        Left out are notes about another round, about settings of the training, and about rules of counting wins that
        the table does not show.
        """
        warnings = self.figures["training"].get("warnings", ())
        notes = []
        for note in self.metrics.get("notes", ()):
            is_of_round = re.search(rf"\bround {self.number}\b", note, re.IGNORECASE) or not re.search(
                r"(?i)\bround \d", note
            )
            is_of_other_rule = note.startswith("By the ") and not note.startswith(_STRICT)
            if is_of_round and not is_of_other_rule and not any(warning in note for warning in warnings):
                plain = note.removeprefix(_STRICT)
                notes.append(plain[:1].upper() + plain[1:])
        return notes
