"""The judge card: how far a judge can be trusted, told in a few figures from the records of what it did.

Every run has one, in its report; `rondo judge-card` makes one alone. Nothing is asked for it but a few summaries a
second time, with the options in another order. Left out: asking (`questions.py`, `judging.py`), and what the figures
mean for a run (`report.py`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from judges.base import LETTERS
from pipeline.evaluation.win_rate import homogeneity_p
from pipeline.judging.tallies import (
    ANSWER_LETTER_PREFIX,
    CONFIDENCE_PREFIX,
    DROPPED_PREFIX,
    KEY_LETTER_PREFIX,
    WEIGHED_RIGHT,
    WEIGHED_WRONG,
)

Record = Mapping[str, Any]


def measure_card(
    questions: Record, judged: Sequence[Record], examined: Sequence[Record], options: int
) -> dict[str, Any]:
    """A card from the records of stages.

    Args:
        questions: of the `questions` stage.
        judged: of stages in which the judge did nothing but score summaries: what that costs.
        examined: of all stages in which it scored summaries.
        options: how many options each question has.

    Returns:
        shares from 0 to 1, None where nothing was counted, each with the number that it is of. `letters`: the share
        of each letter among the answers of both checks, `keys`: among the right ones, which we shuffle;
        `letters_p`: how likely the two differ so much if no letter is favoured. With `judge.logprobs`
        `confidence_right` and `confidence_wrong`: the mean probability of such answers from the whole article, and
        how many there are. What a summary costs is of each time that one was judged; seconds are those in
        which an engine had some of them to judge, added up over engines, without their start.
    """
    asked, scored = questions["tally"], _sum(examined)
    cost = _sum(judged)
    times = cost["judged"] + cost["judged again"]
    letters, keys = (
        {x: asked.get(f"{begin}{x}", 0) for x in LETTERS[:options]}
        for begin in (ANSWER_LETTER_PREFIX, KEY_LETTER_PREFIX)
    )
    answers, unread = (asked.get(name, 0) + scored.get(name, 0) for name in ("answers", "unread"))
    return {
        "ceiling": _share(asked.get("right from the whole article", 0), asked.get("checked", 0)),
        "floor": _share(asked.get("right from nothing", 0), asked.get("checked", 0)),
        "floor_unsure": _share(asked.get("unsure from nothing", 0), asked.get("checked", 0)),
        "checked": asked.get("checked", 0),
        "agreement": _share(scored["same again"], scored["asked again"]),
        "asked_again": scored["asked again"],
        "unsure_twice": scored["unsure twice"],
        "parse_rate": _share(answers - unread, answers),
        "answers": answers,
        "unsure": _share(scored["unsure"], scored["answers"] - scored["unread"]),
        "letters": {letter: _share(count, sum(letters.values())) for letter, count in letters.items()},
        "keys": {letter: _share(count, sum(keys.values())) for letter, count in keys.items()},
        "letters_p": homogeneity_p(list(letters.values()), list(keys.values())),
        **_sure(asked),
        "questions_asked": asked.get("questions asked", 0),
        "questions_used": asked.get("questions", 0),
        "questions_dropped": {
            what.removeprefix(DROPPED_PREFIX): count
            for what, count in sorted(asked.items(), key=lambda item: -item[1])
            if what.startswith(DROPPED_PREFIX)
        },
        "summaries_judged": cost["judged"],
        "tokens_in_per_summary": _share(cost["tokens_in"], times),
        "tokens_out_per_summary": _share(cost["tokens_out"], times),
        "seconds_per_summary": _share(cost["engine ms"] / 1000, times),
        "prefix_cache_hit_rate": _share(cost["tokens_cached"], cost["tokens_in"]),
    }


def _sure(asked: Mapping[str, int]) -> dict[str, Any]:
    """The mean probability of right answers and of others, from the whole article; nothing without any."""
    if not asked.get(WEIGHED_RIGHT, 0) + asked.get(WEIGHED_WRONG, 0):
        return {}
    return {
        f"confidence_{name}": (
            _share(asked.get(f"{CONFIDENCE_PREFIX}{which}", 0) / 1e6, asked.get(which, 0)),
            asked.get(which, 0),
        )
        for name, which in (("right", WEIGHED_RIGHT), ("wrong", WEIGHED_WRONG))
    }


def _sum(records: Sequence[Record]) -> Counter[str]:
    total: Counter[str] = Counter()
    for record in records:
        total.update(record["tally"])
    return total


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def card_lines(card: Mapping[str, Any]) -> list[list[str]]:
    """A heading, then a line a figure: what it is, its value, what it is of."""
    used = f"{card['questions_used']:,} of {card['questions_asked']:,}"
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in card["questions_dropped"].items())
    letters, keys = (" ".join(f"{x} {_percent(share, 0)}" for x, share in card[n].items()) for n in ("letters", "keys"))
    chance = "" if card["letters_p"] is None else f"p = {card['letters_p']:.2g} if it favours none"
    checked = f"{card['checked']:,} questions"
    again = f"{card['asked_again']:,} answers, without {card['unsure_twice']:,} unsure twice"
    judged = f"{card['summaries_judged']:,} summaries"
    return [
        ["", "judge", "of"],
        ["right from the whole article", _percent(card["ceiling"]), checked],
        ["right from nothing", _percent(card["floor"]), checked],
        ["unsure from nothing", _percent(card["floor_unsure"]), checked],
        ["same with options reordered", _percent(card["agreement"]), again],
        ["answers that can be read", _percent(card["parse_rate"]), f"{card['answers']:,} answers"],
        ["unsure from a summary", _percent(card["unsure"]), "answers"],
        *_confidence(card),
        ["letters of its answers", letters, chance],
        ["letters of the keys", keys, checked],
        ["questions used", used, f"dropped: {dropped or 'none'}"],
        ["tokens read per summary", _number(card["tokens_in_per_summary"]), judged],
        ["… in the prefix cache", _percent(card["prefix_cache_hit_rate"]), "those tokens"],
        ["tokens written per summary", _number(card["tokens_out_per_summary"]), judged],
        ["seconds per summary", _number(card["seconds_per_summary"], 4), judged],
    ]


def _confidence(card: Mapping[str, Any]) -> list[list[str]]:
    named = {"confidence_right": "sure of answers that are right", "confidence_wrong": "… that are not"}
    return [[named[n], _percent(card[n][0]), f"{card[n][1]:,} answers"] for n in named if n in card]


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{share:.{digits}%}"


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def card_notes(card: Mapping[str, Any]) -> list[str]:
    """What a person should know of a judge before believing its scores."""
    said = []
    if card["agreement"] is not None and card["agreement"] < 0.9:
        said.append(
            f"With the options in another order the judge gives the same answer in {card['agreement']:.1%} of cases "
            "only: much of a score is chance."
        )
    if card["ceiling"] is not None and card["ceiling"] < 0.8:
        said.append(f"The judge answers only {card['ceiling']:.1%} of its questions right from the whole article.")
    if card["floor"] is not None and card["floor"] > 0.2:
        said.append(
            f"The judge answers {card['floor']:.1%} of its questions right from nothing: it guesses, or it knows the "
            "articles. Those questions were dropped."
        )
    if card["letters_p"] is not None and card["letters_p"] < 1e-3:
        extra, letter = max((share - card["keys"][x], x) for x, share in card["letters"].items())
        if extra > 0.05:
            share, key = card["letters"][letter], card["keys"][letter]
            said.append(f"The judge favours the letter {letter}: {share:.0%} of answers, {key:.0%} of the keys.")
    return said
