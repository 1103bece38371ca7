"""A judge at an engine: putting questions about passages, and scoring summaries by the answers.

What the `questions`, `scores` and `evaluation` stages share, so that a summary is scored by the same code whoever
asks. Left out: which summary is better (`preference.py`).
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from judges.base import LETTERS, UNSURE, Answer, Judge, Question, Skip, line_logps, shuffled
from pipeline.inference.base import Engine, Reply, count_tokens
from pipeline.storage.schema import Outcome, Row, is_drawn


@dataclass(frozen=True)
class Answered:
    """Answers to the questions about one passage, the tokens they cost, and why there was no reply if none came.

    logps: of each answer, in nats; None for one unread. No list where the engine gave none.
    """

    answers: list[Answer]
    tokens: dict[str, int]
    logps: list[float | None] | None = None


def answer_questions(
    judge: Judge, engine: Engine, passages: Sequence[str], questions: Sequence[Sequence[Question]]
) -> list[Answered]:
    """Answer questions[i] from passages[i]. A reply that cannot be had or read gives None for each question."""
    asked = [i for i, some in enumerate(questions) if some]
    replies = engine.generate([judge.ask_answers(passages[i], questions[i]) for i in asked])
    answered = [Answered([], {}) for _ in passages]
    for i, reply in zip(asked, replies, strict=True):
        text = reply.samples[0].text if reply.samples else ""
        failed = {f"no reply: {reply.error}": 1} if reply.error else {}
        answers = judge.read_answers(text, questions[i])
        logps = _logps(reply, answers)
        answered[i] = Answered(answers, count_tokens([reply]) | failed, logps)
    return answered


def _logps(reply: Reply, answers: Sequence[Answer]) -> list[float | None] | None:
    if not reply.samples or reply.samples[0].token_logps is None:
        return None
    logps = line_logps(reply.samples[0].token_logps, len(answers))
    return [None if said is None else logp for said, logp in zip(answers, logps, strict=True)]


_AGAIN = 1  # first seed of the second order of options; the first order is part of what is drawn from


def score_summaries(judge: Judge, engine: Engine, rows: list[Row], again: float = 0.0) -> list[Outcome]:
    """Score every summary of every row: the step of a pool of judges. Adds `scores`, aligned with `summaries`.

    Equal summaries of an article are judged once.

    Args:
        again: the share of rows, by hash of article and writer, whose first summary is judged a second time with the
            options in another order. What came of it is tallied, and changes no score.
    """
    passages: list[str] = []
    questions: list[list[Question]] = []
    where: list[list[int]] = []
    for row in rows:
        asked = [Question(q["question_id"], q["question"], tuple(q["options"]), q["answer"]) for q in row["questions"]]
        place: dict[str, int] = {}
        for summary in row["summaries"]:
            text = summary["text"].strip()
            if text not in place:
                place[text] = len(passages)
                passages.append(text)
                questions.append(asked)
        where.append([place[summary["text"].strip()] for summary in row["summaries"]])
    drawn = [i for i, row in enumerate(rows) if where[i] and _drawn(row, again)]
    twice = {i: len(passages) + n for n, i in enumerate(drawn)}
    for i in twice:
        first = where[i][0]
        passages.append(passages[first])
        questions.append([_reordered(question) for question in questions[first]])
    answered = answer_questions(judge, engine, passages, questions)
    outcomes: list[Outcome] = []
    for number, (row, places) in enumerate(zip(rows, where, strict=True)):
        if not places:
            outcomes.append(Skip("no summary"))
            continue
        scores = [_score(questions[i], answered[i], passages[i], row["article"]) for i in places]
        tally = {
            "answers": sum(len(score["answers"]) for score in scores),
            "unread": sum(score["unread"] for score in scores),
            "unsure": sum(score["answers"].count(UNSURE) for score in scores),
            "judged": len(set(places)),
        }
        if (second := twice.get(number)) is not None:
            tally["judged again"] = 1
            tally |= _agreement(
                _told(questions[places[0]], answered[places[0]].answers),
                _told(questions[second], answered[second].answers),
            )
        for i in {*places} | ({second} if second is not None else set()):
            for what, count in answered[i].tokens.items():
                tally[what] = tally.get(what, 0) + count
        outcomes.append({"scores": scores, "tally": tally})
    return outcomes


def _reordered(question: Question) -> Question:
    """The question with its options, which are distinct, in another order than now."""
    orders = (shuffled(question, seed) for seed in itertools.count(_AGAIN))
    return next(other for other in orders if other.options != question.options)


def _drawn(row: Row, share: float) -> bool:
    return bool(row["summaries"]) and is_drawn(f"{row['article_id']}\n{row.get('writer')}", share)


def _told(questions: Sequence[Question], answers: Sequence[Answer]) -> list[str | None]:
    """The options that the answers mean, whatever letters they have."""
    return [
        said if said is None or said == UNSURE else f"option {question.options[LETTERS.index(said)]}"
        for question, said in zip(questions, answers, strict=True)
    ]


def _agreement(first: Sequence[str | None], second: Sequence[str | None]) -> dict[str, int]:
    """Of the answers that could be read both times: how many chose an option at least once, and how many the same.

    Unsure twice is no sign that the order does not matter: a judge that is always unsure would always agree.
    """
    both = [(one, other) for one, other in zip(first, second, strict=True) if one is not None and other is not None]
    chose = [pair for pair in both if pair != (UNSURE, UNSURE)]
    return {
        "asked again": len(chose),
        "same again": sum(one == other for one, other in chose),
        "unsure twice": len(both) - len(chose),
    }


def _score(questions: Sequence[Question], answered: Answered, summary: str, article: str) -> Row:
    right = [said == question.letter for said, question in zip(answered.answers, questions, strict=True)]
    return {
        "answers": answered.answers,
        "correct": sum(right),
        "unread": answered.answers.count(None),
        "words": count_words(summary),
        "invalid_chars": count_invalid_chars(summary, article),
        "answer_logps": answered.logps,
        "soft": None if answered.logps is None else soft_score(right, answered.logps),
    }


def soft_score(right: Sequence[bool], logps: Sequence[float | None]) -> float:
    """The probabilities of the right answers, added up: `correct`, less what the judge doubts. Never above it."""
    there = [logp for hit, logp in zip(right, logps, strict=True) if hit and logp is not None]
    return math.fsum(confidence(logp) for logp in there)


def confidence(logp: float) -> float:
    """The probability of an answer; a log-probability may be above 0 by a rounding."""
    return math.exp(min(0.0, logp))


def count_words(text: str) -> int:
    """Words as white space parts them: the reference setting's count."""
    return len(text.split())


def count_invalid_chars(summary: str, article: str) -> int:
    """Characters that no summary of this article should hold: neither the article's own nor plain printable ASCII.

    Gibberish, which the reference setting looks for as characters that no article has.
    """
    return sum(c not in article for c in re.sub(r"[ -~\s‘’“”–—…]", "", summary))
