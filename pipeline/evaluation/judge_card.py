"""Makes the judge card: a few figures that show how far a judge can be trusted, from the records of its stages.

Every report has the card of the run's judge; `rondo judge-card` makes one without a run. The card costs no requests,
except that some summaries are judged a second time with the options in another order. The requests are made in
`judging/question_generation.py` and `judging/scoring/exam.py`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from judges.base import LETTERS
from pipeline.evaluation.reliability import Reliability, reliability_lines, reliability_notes
from pipeline.evaluation.win_rate import homogeneity_p
from pipeline.inference.base import ENGINE_MS, TOKENS_CACHED, TOKENS_IN, TOKENS_OUT
from pipeline.judging import tallies

Record = Mapping[str, Any]


def measure_card(
    questions: Record,
    scoring_records: Sequence[Record],
    all_records: Sequence[Record],
    options: int,
    reliability: Reliability | None = None,
) -> dict[str, Any]:
    """Compute the card from the records of stages.

    Args:
        questions: the record of the `questions` stage.
        scoring_records: records of the stages from which the cost of a summary is computed: the `scores` of rounds, or
            the scored leads in `rondo judge-card`.
        all_records: records of all stages in which the judge scored summaries: `scoring_records`, and any evaluations.
        options: number of options of each question.
        reliability: that of scores of several summaries per article; None if there are none yet.

    Returns:
        shares from 0 to 1, which are None if nothing was counted, and the counts that they are shares of:

        - `ceiling`, `floor`: right answers from the whole article and from nothing; `floor_unsure`: "unsure" from
          nothing.
        - `agreement`: equal answers with the options in another order. Answers that are "unsure" both times do not
          count.
        - `letters`: the share of each letter among the answers of both checks. `keys`: the share of each letter among
          the right options, which were shuffled. `letters_p`: the probability of so large a difference between the two
          if the judge favours no letter.
        - `confidence_right`, `confidence_wrong`, only with `judge.logprobs`: the mean probability of right and of wrong
          answers from the whole article, each with the number of answers.
        - `reliability`: see `reliability.Reliability`; None if there are no such scores yet.
        - `telling`: questions that were answered right from some summaries of their article and not from others, of the
          `compared` questions. Only these tell which summary is better.
        - `checks`: for each check of questions that ran, how many it was `asked` about and `dropped`, and its `prompts`
          and `tokens`.
        - `…_per_summary`: the mean cost of judging a summary once. Seconds are the time in which an engine had
          summaries to judge, added up over engines, without the time that engines took to start.
    """
    asked, scored = questions["tally"], _add_tallies(all_records)
    cost = _add_tallies(scoring_records)
    times_judged = cost[tallies.JUDGED] + cost[tallies.JUDGED_AGAIN]
    letters = _count_letters(asked, tallies.ANSWER_LETTER_PREFIX, options)
    keys = _count_letters(asked, tallies.KEY_LETTER_PREFIX, options)
    answers, unread = (asked.get(name, 0) + scored[name] for name in (tallies.ANSWERS, tallies.UNREAD))
    checked = asked.get(tallies.CHECKED, 0)
    return {
        "ceiling": _share(asked.get(tallies.RIGHT_FROM_ARTICLE, 0), checked),
        "floor": _share(asked.get(tallies.RIGHT_FROM_NOTHING, 0), checked),
        "floor_unsure": _share(asked.get(tallies.UNSURE_FROM_NOTHING, 0), checked),
        "checked": checked,
        "agreement": _share(scored[tallies.SAME_AGAIN], scored[tallies.ASKED_AGAIN]),
        "asked_again": scored[tallies.ASKED_AGAIN],
        "unsure_twice": scored[tallies.UNSURE_TWICE],
        "parse_rate": _share(answers - unread, answers),
        "answers": answers,
        "unsure": _share(scored[tallies.UNSURE], scored[tallies.ANSWERS] - scored[tallies.UNREAD]),
        "letters": {letter: _share(count, sum(letters.values())) for letter, count in letters.items()},
        "keys": {letter: _share(count, sum(keys.values())) for letter, count in keys.items()},
        "letters_p": homogeneity_p(list(letters.values()), list(keys.values())),
        **_mean_confidences(asked),
        "reliability": reliability and reliability.as_dict(),
        "questions_asked": asked.get(tallies.QUESTIONS_ASKED, 0),
        "questions_used": asked.get(tallies.QUESTIONS, 0),
        "questions_dropped": {
            name.removeprefix(tallies.DROPPED_PREFIX): count
            for name, count in sorted(asked.items(), key=lambda item: -item[1])
            if name.startswith(tallies.DROPPED_PREFIX)
        },
        "checks": _measure_checks(asked),
        "telling": _share(scored[tallies.TELLING], scored[tallies.COMPARED]),
        "compared": scored[tallies.COMPARED],
        "summaries_judged": cost[tallies.JUDGED],
        "tokens_in_per_summary": _share(cost[TOKENS_IN], times_judged),
        "tokens_out_per_summary": _share(cost[TOKENS_OUT], times_judged),
        "seconds_per_summary": _share(cost[ENGINE_MS] / 1000, times_judged),
        "prefix_cache_hit_rate": _share(cost[TOKENS_CACHED], cost[TOKENS_IN]),
    }


def _add_tallies(records: Sequence[Record]) -> Counter[str]:
    total: Counter[str] = Counter()
    for record in records:
        total.update(record["tally"])
    return total


def _count_letters(tally: Mapping[str, int], prefix: str, options: int) -> dict[str, int]:
    return {letter: tally.get(f"{prefix}{letter}", 0) for letter in LETTERS[:options]}


def _mean_confidences(asked: Mapping[str, int]) -> dict[str, Any]:
    """The mean probability of right and of wrong answers; empty if no answer has a log-probability."""
    names = {"confidence_right": tallies.WEIGHED_RIGHT, "confidence_wrong": tallies.WEIGHED_WRONG}
    counts = {key: asked.get(name, 0) for key, name in names.items()}
    if not any(counts.values()):
        return {}
    sums = {key: asked.get(f"{tallies.CONFIDENCE_PREFIX}{name}", 0) / 1e6 for key, name in names.items()}
    return {key: (_share(sums[key], count), count) for key, count in counts.items()}


def _measure_checks(asked: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """What each check of questions dropped and cost; only of checks that ran."""
    prefixes = {
        "asked": tallies.CHECK_ASKED_PREFIX,
        "dropped": tallies.CHECK_DROPPED_PREFIX,
        "prompts": tallies.CHECK_PROMPTS_PREFIX,
        "tokens": tallies.CHECK_TOKENS_PREFIX,
    }
    measured = {
        check: {what: asked.get(f"{prefix}{check}", 0) for what, prefix in prefixes.items()} for check in tallies.CHECKS
    }
    return {check: counts for check, counts in measured.items() if counts["asked"]}


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def card_lines(card: Mapping[str, Any]) -> list[list[str]]:
    """The card as a table: a heading, then a line for each figure with its name, its value, and what was counted."""
    used = f"{card['questions_used']:,} of {card['questions_asked']:,}"
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in card["questions_dropped"].items())
    letters, keys = (
        " ".join(f"{letter} {_percent(share, 0)}" for letter, share in card[name].items())
        for name in ("letters", "keys")
    )
    chance = "" if card["letters_p"] is None else f"p = {card['letters_p']:.2g} if no letter is favoured"
    checked = f"{card['checked']:,} questions"
    again = f"{card['asked_again']:,} answers; {card['unsure_twice']:,} more were unsure both times"
    judged = f"{card['summaries_judged']:,} summaries"
    return [
        ["", "judge", "of"],
        ["right from the whole article", _percent(card["ceiling"]), checked],
        ["right from nothing", _percent(card["floor"]), checked],
        ["unsure from nothing", _percent(card["floor_unsure"]), checked],
        ["same with options reordered", _percent(card["agreement"]), again],
        ["answers that can be read", _percent(card["parse_rate"]), f"{card['answers']:,} answers"],
        ["unsure from a summary", _percent(card["unsure"]), "answers"],
        *_confidence_lines(card),
        *reliability_lines(card.get("reliability")),
        ["letters of its answers", letters, chance],
        ["letters of the right options", keys, checked],
        ["questions used", used, f"dropped: {dropped or 'none'}"],
        *_check_lines(card.get("checks", {})),
        *(
            [["questions that tell summaries apart", _percent(card["telling"]), f"{card['compared']:,} questions"]]
            if card.get("compared")
            else []
        ),
        ["tokens read per summary", _number(card["tokens_in_per_summary"]), judged],
        ["found in the prefix cache", _percent(card["prefix_cache_hit_rate"]), "tokens read"],
        ["tokens written per summary", _number(card["tokens_out_per_summary"]), judged],
        ["seconds per summary", _number(card["seconds_per_summary"], 4), judged],
    ]


def _check_lines(checks: Mapping[str, Mapping[str, int]]) -> list[list[str]]:
    return [
        [
            "dropped as more than needed" if check == "draft" else f"dropped by {check}",
            _percent(_share(counts["dropped"], counts["asked"])),
            f"{counts['asked']:,} questions; {counts['prompts']:,} prompts, {counts['tokens']:,} tokens",
        ]
        for check, counts in checks.items()
    ]


def _confidence_lines(card: Mapping[str, Any]) -> list[list[str]]:
    labels = {"confidence_right": "mean probability if right", "confidence_wrong": "mean probability if wrong"}
    return [
        [label, _percent(card[key][0]), f"{card[key][1]:,} answers"] for key, label in labels.items() if key in card
    ]


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{share:.{digits}%}"


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def card_notes(card: Mapping[str, Any]) -> list[str]:
    """Warnings about a judge whose scores are not reliable."""
    notes = []
    if card["agreement"] is not None and card["agreement"] < 0.9:
        notes.append(
            f"With the options in another order, the judge gives the same answer in only {card['agreement']:.1%} of "
            "cases: a large part of each score is chance."
        )
    if card["ceiling"] is not None and card["ceiling"] < 0.8:
        notes.append(f"The judge answers only {card['ceiling']:.1%} of its questions right from the whole article.")
    if card["floor"] is not None and card["floor"] > 0.2:
        notes.append(
            f"The judge answers {card['floor']:.1%} of its questions right without any text: it guesses, or it knows "
            "the articles. These questions were dropped."
        )
    if card["letters_p"] is not None and card["letters_p"] < 1e-3:
        excess, letter = max((share - card["keys"][letter], letter) for letter, share in card["letters"].items())
        if excess > 0.05:
            share, key_share = card["letters"][letter], card["keys"][letter]
            notes.append(
                f"The judge favours the letter {letter}: it is {share:.0%} of the judge's answers and {key_share:.0%} "
                "of the right options."
            )
    return notes + reliability_notes(card.get("reliability"))
