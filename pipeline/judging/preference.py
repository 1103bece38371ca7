"""Decides which of two scored summaries is better, by rules that have names. Training and evaluation both use them.

Every rule is called as `rule(a, b, settings)`. `a` and `b` are rows of the column `scores` (`correct`, `words`,
`answers`, `unread`, `invalid_chars`, `answer_logps`, `soft`, `value`, `items`, `weights`, `faults`) with the texts
`text` and `article` and with `finish_reason` (`scores_to_compare`). `settings` is the section `pairs`. A rule is a pure
function. It returns 1 if `a` is better, -1 if `b` is better and 0 for a tie.

The callers decide which summaries can be compared: they leave out or correct for summaries that were cut off, unread
answers, and faults beyond the limits of `pairs`. Which pairs are trained on is in `pair_selection.py`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice, product
from typing import Any, Literal

from judges.base import LETTERS
from pipeline.config import UserError
from pipeline.config.judging import Pairs
from pipeline.judging.scoring.text_faults import exceeded_limits, measure_faults
from pipeline.judging.user_code.loading import load_user_code

Score = Mapping[str, Any]  # a row of the column `scores`, with the texts where a rule is called
Rule = Callable[[Score, Score, Pairs], int]

_ROUNDING = 1e-6  # of all weights: tables hold weights in float32

# The article of the examples on which a user's rule is tried.
_EXAMPLE_ARTICLE = (
    "The Nordholm council has voted to close the old swimming hall in March. Mayor Ida Lund said that repairs would "
    "cost 4.2 million crowns, which is more than a new hall. Swimmers have collected 1,800 signatures against the plan."
)


def scores_to_compare(row: Mapping[str, Any], settings: Pairs) -> list[Score]:
    """The scores of a row's summaries as rules get them: with the texts, which are stored elsewhere in the row.

    Returns:
        the row's `scores`, each with `text` (the summary as it was judged, without white space at its ends), `article`
        and `finish_reason` ("stop", or "length" if the token limit cut it off). If the settings may use `faults`, those
        that an older version did not measure are measured now.
    """
    scores: list[Score] = []
    for score, summary in zip(row["scores"], row["summaries"], strict=True):
        text, faults = summary["text"].strip(), score.get("faults")
        if faults is None and needs_texts(settings):
            faults = measure_faults(text, row["article"])
        texts = {"text": text, "article": row["article"], "finish_reason": summary["finish_reason"]}
        scores.append({**score, **texts, "faults": faults})
    return scores


def needs_texts(settings: Pairs) -> bool:
    """Whether a comparison may look at the texts: for their faults, or because the rule is a function of the user's."""
    return settings.limits_faults or settings.max_copied_gap is not None or settings.preference not in RULES


def faults_beyond_limits(score: Score, settings: Pairs) -> list[str]:
    """The faults of a summary that are beyond the limits of `pairs`, by the names in `judging/scoring/text_faults.py`.

    Args:
        score: one of `scores_to_compare`.
    """
    return exceeded_limits(score["faults"], settings) if settings.limits_faults else []


def accuracy_then_length(a: Score, b: Score, settings: Pairs) -> int:
    """If both reach `threshold` right answers, the summary that is at least `min_word_gap` words shorter wins.

    Closer lengths are a tie. If they do not both reach the threshold, the summary with more right answers wins, and
    equally many are a tie. This is the reference setting's rule.
    """
    if min(a["correct"], b["correct"]) >= settings.threshold:
        gap = b["words"] - a["words"]
        return _sign(gap) if abs(gap) >= settings.min_word_gap else 0
    return accuracy_only(a, b, settings)


def accuracy_only(a: Score, b: Score, settings: Pairs) -> int:
    """The summary with more right answers wins, at any length. Equally many are a tie."""
    return _sign(a["correct"] - b["correct"])


def length_matched(a: Score, b: Score, settings: Pairs) -> int:
    """The summary with more right answers wins, if the longer one has at most `max_length_ratio` times the words.

    Summaries with other lengths tie, even if the shorter one has more right answers: such a pair would teach length
    together with accuracy. Equally many right answers are a tie, too.
    """
    shorter, longer = sorted((max(1, a["words"]), max(1, b["words"])))
    return accuracy_only(a, b, settings) if longer <= settings.max_length_ratio * shorter else 0


def accuracy_then_any_length(a: Score, b: Score, settings: Pairs) -> int:
    """The *reference* rule of the evaluation, by which the published 74 % were counted.

    The summary with more right answers wins, but all summaries with `threshold` or more count as equally accurate. If
    the accuracy is equal, the summary with fewer words wins, even by one word, and even with no right answer at all.
    The *shorten-only* baseline is there to show this weakness.
    """
    if min(a["correct"], b["correct"]) < settings.threshold and a["correct"] != b["correct"]:
        return accuracy_only(a, b, settings)
    return _sign(b["words"] - a["words"])


def higher_score(a: Score, b: Score, settings: Pairs) -> int:
    """The summary with the higher value wins, if the difference is larger than `min_margin`. Length decides nothing.

    This is the preference of judges that give scores and ask no questions. For a judge that asks questions, the value
    is the number of right answers.
    """
    difference = judged_value(a) - judged_value(b)
    return _sign(difference) if abs(difference) > settings.min_margin else 0


def majority_vote(a: Score, b: Score, settings: Pairs) -> int:
    """The members of a jury vote, each for the summary with the higher value of its own. Each vote has its weight.

    A member that finds both equal, or could not read one of them, abstains. The winner's lead, as a share of the
    weights that vote, must be larger than `min_margin`. Members' values are never added up, so their scales need not be
    alike. Votes can go in a circle (Condorcet, 1785): then they decide nothing (`stages/pairs.py`).
    """
    lead = vote_lead(a, b)
    return _sign(lead) if abs(lead) > max(settings.min_margin, _ROUNDING) else 0


def vote_lead(a: Score, b: Score) -> float:
    """The lead of `a` over `b` in the votes of a jury, from -1 to 1, as a share of the weights that vote."""
    members = zip(a["items"], b["items"], a["weights"], strict=True)
    votes = [(_sign(x - y), weight) for x, y, weight in members if x is not None and y is not None and x != y]
    total = math.fsum(weight for _, weight in votes)
    return math.fsum(vote * weight for vote, weight in votes) / total if total else 0.0


def judged_value(score: Score) -> float:
    """What the judge thinks of a summary. Tables of older versions have right answers only."""
    value = score.get("value")
    return score["correct"] if value is None else value


def score_items(score: Score, questions: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """The parts of a score in the order of its article's questions or criteria; None for an unread part.

    Tables of older versions have answers only: 1 for a right answer, 0 for any other.

    Args:
        questions: the article's questions, rows of the column `questions`.
    """
    if (items := score.get("items")) is not None:
        return list(items)
    keys = (LETTERS[question["answer"]] for question in questions)
    return [
        None if answer is None else float(answer == key) for answer, key in zip(score["answers"], keys, strict=True)
    ]


def decided_by_score(chosen: Score, rejected: Score, settings: Pairs) -> bool:
    """Whether the judge's score decided a pair. Otherwise its length did, or something else that a rule looks at.

    Two summaries that both reach `threshold` are compared by length, if the preference does so. In any other pair the
    score decided if the chosen summary has the higher value.
    """
    if chosen.get("weights") is not None:
        return vote_lead(chosen, rejected) > 0
    if settings.preference in _LENGTH_RULES and min(chosen["correct"], rejected["correct"]) >= settings.threshold:
        return False
    return judged_value(chosen) > judged_value(rejected)


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        accuracy_then_length,
        accuracy_only,
        length_matched,
        accuracy_then_any_length,
        higher_score,
        majority_vote,
    )
}
_LENGTH_RULES = (accuracy_then_length.__name__, accuracy_then_any_length.__name__)
# What the scores of a kind of judge hold: right answers, a value, or the values of a jury's members.
ScoreKind = Literal["answers", "value", "votes"]


def evaluation_rules(settings: Pairs, kind: ScoreKind = "answers") -> dict[str, Rule]:
    """The rules by which an evaluation counts wins. *strict* is the rule that training uses.

    There is no *reference* rule beside `higher_score`: it counts right answers, and a judge that gives scores has none.

    Args:
        settings: the section `pairs`.
        kind: what the judge's scores hold.
    """
    strict = load_preference(settings)
    if kind != "answers" or strict is higher_score:
        return {"strict": strict}
    return {"strict": strict, "reference": accuracy_then_any_length}


def second_judge_rules(settings: Pairs, first: ScoreKind, second: ScoreKind) -> dict[str, Rule]:
    """The rules of an evaluation, as they are applied to the scores of a second judge, maybe of another kind.

    A named rule that needs what the second judge's scores do not hold would tie everything. The nearest rule takes its
    place: the higher value, or the vote of the jury. A function of the user's is called as it is.

    Args:
        settings: the section `pairs`.
        first: what the scores of the first judge hold.
        second: what the scores of the second judge hold.
    """
    rules = evaluation_rules(settings, first)
    if second != first and settings.preference in RULES:
        rules["strict"] = majority_vote if second == "votes" else higher_score
    return rules if second == "answers" else {"strict": rules["strict"]}


def load_preference(settings: Pairs) -> Rule:
    """The rule that `pairs.preference` names: one of `RULES`, or the user's own function as `module:function`.

    Raises:
        UserError: the module cannot be imported, or has no such function.
    """
    name = settings.preference
    if name in RULES:
        return RULES[name]
    return load_user_code("pairs.preference", name, "function")


def check_preference(settings: Pairs, questions: int, logprobs: bool, weights: Sequence[float] = ()) -> None:
    """Try the user's own rule on a grid of scores, so that its mistakes show before a run and not during it.

    Args:
        questions: the largest possible number of right answers.
        logprobs: whether scores have `soft` and `answer_logps`; otherwise both are None.
        weights: of the members of a jury.

    Raises:
        UserError: as `load_preference`. Or the rule fails, returns something else than 1, 0 or -1, depends on the order
            of the two summaries, or has a cycle.
    """
    if settings.preference in RULES:
        return
    rule, name = load_preference(settings), settings.preference
    scores = [
        _example_score(correct, words, questions, logprobs, weights)
        for correct in range(questions + 1)
        for words in (0, 5, 8, 20, 60)
    ]
    verdicts: dict[tuple[int, int], int] = {}
    for (i, a), (j, b) in product(enumerate(scores), repeat=2):
        verdict = _call(rule, a, b, settings)
        if verdict not in (1, 0, -1):
            raise UserError(
                f"pairs.preference {name} returns {verdict!r} for {_describe(a, b)}: it must return 1, 0 or -1"
            )
        verdicts[i, j] = verdict
    for (i, j), verdict in verdicts.items():
        if verdicts[j, i] != -verdict:
            raise UserError(
                f"pairs.preference {name} returns {verdict} for {_describe(scores[i], scores[j])}, and "
                f"{verdicts[j, i]} if the two are swapped: it must return {-verdict} then"
            )
    if cycle := _find_cycle(verdicts, len(scores)):
        raise UserError(
            f"pairs.preference {name} has a cycle, for example among {_describe(*(scores[i] for i in cycle[:3]))}: "
            "training would learn that a summary is better and that it is worse"
        )


def _call(rule: Rule, a: Score, b: Score, settings: Pairs) -> int:
    try:
        return rule(a, b, settings)
    except Exception as error:
        raise UserError(
            f"pairs.preference {settings.preference} fails for {_describe(a, b)}: {type(error).__name__}: {error}; "
            "it is called with two scores and the section pairs, and must return 1, 0 or -1"
        ) from None


def _find_cycle(verdicts: Mapping[tuple[int, int], int], count: int) -> Sequence[int]:
    """Indices of scores among which there is a cycle; empty if there is none.

    Scores that no other score beats are removed, again and again. The scores that remain contain a cycle.
    """
    beats = {i: {j for j in range(count) if verdicts[i, j] == 1} for i in range(count)}
    while unbeaten := [i for i in beats if not any(i in losers for losers in beats.values())]:
        for i in unbeaten:
            del beats[i]
    return list(beats)


def _example_score(
    correct: int, words: int, questions: int, logprobs: bool, weights: Sequence[float]
) -> dict[str, Any]:
    """A score as `scores_to_compare` gives it, with every field, by a judge that is sure of its answers.

    The text has as many words as the score says.
    """
    text = " ".join(islice(cycle(_EXAMPLE_ARTICLE.split()), words))
    votes = {"value": correct / questions, "items": [correct / questions for _ in weights], "weights": list(weights)}
    return {
        "text": text,
        "article": _EXAMPLE_ARTICLE,
        "finish_reason": "stop",
        "faults": measure_faults(text, _EXAMPLE_ARTICLE),
        "answers": ["A"] * correct + ["unsure"] * (questions - correct),
        "correct": correct,
        "unread": 0,
        "words": words,
        "invalid_chars": 0,
        "answer_logps": [0.0] * questions if logprobs else None,
        "soft": float(correct) if logprobs else None,
        "value": float(correct),
        "items": [1.0] * correct + [0.0] * (questions - correct),
        "weights": None,
    } | (votes if weights else {})


def _describe(*scores: Score) -> str:
    return " and ".join(f"{score['correct']} right in {score['words']} words" for score in scores)
