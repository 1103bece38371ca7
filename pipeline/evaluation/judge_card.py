"""Makes the judge card: a few figures that show how far a judge can be trusted, from the records of its stages.

Every report has the card of the run's judge; `rondo judge-card` makes one without a run. In a run, the card costs no
requests, except that some summaries are judged a second time with options or criteria in another order. The requests
are made in `judging/question_generation.py` and `judging/scoring/`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from judges.base import LETTERS
from pipeline.config.judging import JudgeSettings
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
        - `same_winner`: pairs of summaries with the same winner when a scoring judge judged them in another order.
        - `unread_reasons`: why a scoring judge gave summaries no value.
        - `first_won`: replies of a comparing judge that prefer the summary that is shown first; `winner_changed`: pairs
          whose winner depends on the order.
        - `longer_won`: the longer summary has the higher value, among pairs of an article's summaries whose values and
          numbers of words differ. `length_correlation`: the mean rank correlation of value and words within articles.
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
        **_measure_biases(scored),
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


def _measure_biases(scored: Mapping[str, int]) -> dict[str, Any]:
    """The figures about order, places and length, each with the count that it is a share of."""
    correlations = scored.get(tallies.LENGTH_CORRELATIONS, 0)
    figures: dict[str, Any] = {
        "unread_reasons": {
            name.removeprefix(tallies.UNREAD_PREFIX): count
            for name, count in sorted(scored.items(), key=lambda item: -item[1])
            if name.startswith(tallies.UNREAD_PREFIX)
        },
        "length_correlation": _share(scored.get(tallies.LENGTH_CORRELATION_SUM, 0) / 1e6, correlations),
        "length_correlations": correlations,
    }
    for name, part, whole in (
        ("same_winner", tallies.SAME_PAIRS_AGAIN, tallies.PAIRS_AGAIN),
        ("first_won", tallies.FIRST_WON, tallies.PLACES_READ),
        ("winner_changed", tallies.WINNER_CHANGED, tallies.SHOWN_TWICE),
        ("longer_won", tallies.LONGER_WON, tallies.LENGTHS_DECIDED),
    ):
        figures[name] = _share(scored.get(part, 0), scored.get(whole, 0))
        figures[f"{name}_of"] = scored.get(whole, 0)
    return figures


def measure_members(
    questions: Record, scoring_records: Sequence[Record], all_records: Sequence[Record], judge: JudgeSettings
) -> dict[str, Any]:
    """The cards of a jury's members by their names, as `members`; empty for any other judge.

    Seconds are known for the whole jury only.

    Args:
        questions, scoring_records, all_records: as for `measure_card`.
        judge: the settings of the judge.
    """
    cards = {
        name: measure_card(
            _of_member(questions, name),
            [_of_member(record, name) for record in scoring_records],
            [_of_member(record, name) for record in all_records],
            member.options,
        )
        for name, member in judge.members.items()
    }
    return {"members": cards} if cards else {}


def _of_member(record: Record, name: str) -> Record:
    """A record with only the counts of one member of a jury, under the names that a single judge's counts have."""
    prefix = f"{tallies.MEMBER_PREFIX}{name}: "
    counts = {what.removeprefix(prefix): n for what, n in record["tally"].items() if what.startswith(prefix)}
    return {"tally": counts}


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
    judged = f"{card['summaries_judged']:,} summaries"
    lines = [
        ["", "judge", "of"],
        *(_exam_lines(card) if counts_answers(card) else _value_lines(card)),
        *_bias_lines(card),
        ["tokens read per summary", _number(card["tokens_in_per_summary"]), judged],
        ["found in the prefix cache", _percent(card["prefix_cache_hit_rate"]), "tokens read"],
        ["tokens written per summary", _number(card["tokens_out_per_summary"]), judged],
        ["seconds per summary", _number(card["seconds_per_summary"], 4), judged],
    ]
    for name, member in card.get("members", {}).items():
        lines += [[f"{name}: {label}", *cells] for label, *cells in card_lines(member)[1:]]
    return lines


def counts_answers(card: Mapping[str, Any]) -> bool:
    """Whether a card is that of a judge that asks questions: it asked some, or it did nothing at all."""
    return bool(card["questions_asked"]) or not card["answers"]


def _exam_lines(card: Mapping[str, Any]) -> list[list[str]]:
    """The lines of a judge that asks questions."""
    used = f"{card['questions_used']:,} of {card['questions_asked']:,}"
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in card["questions_dropped"].items())
    letters, keys = (
        " ".join(f"{letter} {_percent(share, 0)}" for letter, share in card[name].items())
        for name in ("letters", "keys")
    )
    chance = "" if card["letters_p"] is None else f"p = {card['letters_p']:.2g} if no letter is favoured"
    checked = f"{card['checked']:,} questions"
    again = f"{card['asked_again']:,} answers; {card['unsure_twice']:,} more were unsure both times"
    return [
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


def _value_lines(card: Mapping[str, Any]) -> list[list[str]]:
    """The lines of a judge that gives scores."""
    unread = "; ".join(f"{reason} {count:,}" for reason, count in card["unread_reasons"].items())
    return [
        [
            "summaries with a score",
            _percent(card["parse_rate"]),
            f"{card['answers']:,} summaries" + (unread and f"; {unread}"),
        ],
        *reliability_lines(card.get("reliability")),
    ]


def _bias_lines(card: Mapping[str, Any]) -> list[list[str]]:
    """What the order and the length do. A figure of nothing is left out: not every kind of judge has each."""
    lines = [
        ("same winner in another order", "same_winner", "pairs that it decided both times"),
        ("prefers the first of two", "first_won", "replies"),
        ("winner changes with the order", "winner_changed", "pairs, which count as ties"),
        ("prefers the longer of two", "longer_won", "pairs of unequal score and length"),
    ]
    shown = [
        [label, _percent(card[key]), f"{card[f'{key}_of']:,} {what}"]
        for label, key, what in lines
        if card.get(f"{key}_of")
    ]
    if card.get("length_correlations"):
        articles = f"{card['length_correlations']:,} articles, the mean of rank correlations within each"
        shown.append(["score rises with length", f"{card['length_correlation']:+.2f}", articles])
    return shown


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
    return notes + reliability_notes(card.get("reliability")) + _bias_notes(card)


_MANY = 30  # pairs from which a share is no accident of a few


def _bias_notes(card: Mapping[str, Any]) -> list[str]:
    notes = []
    if card.get("winner_changed_of", 0) >= _MANY and card["winner_changed"] > 0.3:
        notes.append(
            f"In {card['winner_changed']:.0%} of pairs the judge's winner changes with the order of the summaries. "
            "These pairs count as ties."
        )
    if card.get("same_winner_of", 0) >= _MANY and card["same_winner"] < 0.8:
        notes.append(
            f"Judged again in another order, only {card['same_winner']:.0%} of pairs have the same winner: a large "
            "part of each score is chance."
        )
    if card.get("longer_won_of", 0) >= _MANY and not 0.3 < card["longer_won"] < 0.7:
        which, share = (
            ("longer", card["longer_won"]) if card["longer_won"] > 0.5 else ("shorter", 1 - card["longer_won"])
        )
        notes.append(
            f"The {which} of two summaries has the higher score in {share:.0%} of pairs: training on this score "
            "changes the length."
        )
    return notes
