"""Which of two scored summaries is better: pure functions of two scores, for training and evaluation, by name.

All are called as `rule(a, b, settings)`: two rows of the column `scores` (`correct`, `words`, `answers`, `unread`,
`invalid_chars`) and the section `pairs`; they give 1 if a is better, -1 if b is, 0 for a tie. Left out: what can be
compared at all (a summary cut off, an answer unread): whoever calls sees to that. And which pairs are trained on
(`selection.py`).
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from pipeline.config import UserError
from pipeline.config.run import Pairs

Score = Mapping[str, Any]  # a row of the column `scores`
Rule = Callable[[Score, Score, Pairs], int]


def accuracy_then_length(a: Score, b: Score, settings: Pairs) -> int:
    """Both at `threshold` or above: the shorter one, if at least `min_word_gap` words shorter. Otherwise: more right.

    The reference setting's. A tie: both at the threshold and too close in length; equally right below it.
    """
    if min(a["correct"], b["correct"]) >= settings.threshold:
        gap = b["words"] - a["words"]
        return _sign(gap) if abs(gap) >= settings.min_word_gap else 0
    return accuracy_only(a, b, settings)


def accuracy_only(a: Score, b: Score, settings: Pairs) -> int:
    """More right wins, at whatever length. A tie: equally right."""
    return _sign(a["correct"] - b["correct"])


def length_matched(a: Score, b: Score, settings: Pairs) -> int:
    """More right wins, among summaries of about one length: the longer has at most `max_length_ratio` times the words.

    Any others tie, also where the shorter one has more right: a pair of unequal lengths would teach length beside
    accuracy, in the one direction or the other. A tie, too: equally right.
    """
    short, long = sorted((max(1, a["words"]), max(1, b["words"])))
    return accuracy_only(a, b, settings) if long <= settings.max_length_ratio * short else 0


def accuracy_then_any_length(a: Score, b: Score, settings: Pairs) -> int:
    """The *reference* rule of the evaluation, by which the published 74 % was counted.

    A tie in accuracy, where both at `threshold` or above count as equal, is broken by fewer words. One word is gap
    enough, and no accuracy is too low for length to decide: even at 0 right the shorter wins, which is what the
    *shorten-only* baseline is there to show.
    """
    if min(a["correct"], b["correct"]) < settings.threshold and a["correct"] != b["correct"]:
        return accuracy_only(a, b, settings)
    return _sign(b["words"] - a["words"])


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


RULES: dict[str, Rule] = {
    rule.__name__: rule for rule in (accuracy_then_length, accuracy_only, length_matched, accuracy_then_any_length)
}


def evaluation_rules(settings: Pairs) -> dict[str, Rule]:
    """The rules by which an evaluation counts wins: *strict* is what training prefers."""
    return {"strict": load_preference(settings), "reference": accuracy_then_any_length}


def load_preference(settings: Pairs) -> Rule:
    """The function that `pairs.preference` names: one of `SHIPPED`, or the user's `module:function`.

    Raises:
        UserError: there is no such module or function, or it cannot be imported.
    """
    name = settings.preference
    if name in RULES:
        return RULES[name]
    module, _, function = name.partition(":")
    _see_here()
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # whatever the user's module does as it is imported
        raise UserError(
            f"pairs.preference is {name!r}, and {module} cannot be imported from {os.getcwd()}: "
            f"{type(error).__name__}: {error}"
        ) from None
    if not callable(found):
        raise UserError(f"pairs.preference is {name!r}, and {module} has no function {function}")
    return found


def source_file(name: str) -> str | None:
    """The file in which `module:function` is; None where there is none."""
    _see_here()
    try:
        spec = importlib.util.find_spec(name.partition(":")[0])
    except (ImportError, ValueError):
        return None
    return spec.origin if spec else None


def check_preference(settings: Pairs, questions: int, logprobs: bool) -> None:
    """Try a preference of the user's on a grid of scores: what it does wrong is better known before a run than in it.

    Args:
        questions: how many can be right.
        logprobs: scores have a `soft` and `answer_logps` that are not None.

    Raises:
        UserError: as `preference` does; or it fails, gives no 1, 0 or -1, depends on the order of the two, or
            prefers in a circle.
    """
    if settings.preference in RULES:
        return
    rule, name = load_preference(settings), settings.preference
    grid = [
        _score(correct, words, questions, logprobs) for correct in range(questions + 1) for words in (0, 5, 8, 20, 60)
    ]
    verdicts: dict[tuple[int, int], int] = {}
    for (i, a), (j, b) in product(enumerate(grid), repeat=2):
        said = _verdict(rule, a, b, settings)
        if said not in (1, 0, -1):
            raise UserError(f"pairs.preference {name} gives {said!r} for {_pair(a, b)}: it should give 1, 0 or -1")
        verdicts[i, j] = said
    for (i, j), said in verdicts.items():
        if verdicts[j, i] != -said:
            raise UserError(
                f"pairs.preference {name} gives {said} for {_pair(grid[i], grid[j])}, and {verdicts[j, i]} the other "
                f"way round: it should give {-said}"
            )
    beats = {i: {j for j in range(len(grid)) if verdicts[i, j] == 1} for i in range(len(grid))}
    while nobody_beats := [i for i in beats if not any(i in beaten for beaten in beats.values())]:
        for i in nobody_beats:
            del beats[i]
    if beats:
        raise UserError(
            f"pairs.preference {name} prefers in a circle, as among {_pair(*(grid[i] for i in list(beats)[:3]))}: "
            "training would be told both that one is better and that it is worse"
        )


def _verdict(rule: Rule, a: Score, b: Score, settings: Pairs) -> int:
    try:
        return rule(a, b, settings)
    except Exception as error:
        raise UserError(
            f"pairs.preference {settings.preference} fails for {_pair(a, b)}: {type(error).__name__}: {error}; "
            "it is called with two scores and the section pairs, and gives 1, 0 or -1"
        ) from None


def _score(correct: int, words: int, questions: int, logprobs: bool) -> dict[str, Any]:
    """All that a row's score has (`rows.COLUMNS`), of a judge that is sure of itself."""
    score = {"answers": ["A"] * correct + ["unsure"] * (questions - correct), "correct": correct, "unread": 0}
    score |= {"words": words, "invalid_chars": 0}
    return score | {
        "answer_logps": [0.0] * questions if logprobs else None,
        "soft": float(correct) if logprobs else None,
    }


def _pair(*scores: Score) -> str:
    return " and ".join(f"{score['correct']} right in {score['words']} words" for score in scores)


def _see_here() -> None:
    """The folder that a person runs a command in is where their own modules are; `rondo` alone does not look there."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
