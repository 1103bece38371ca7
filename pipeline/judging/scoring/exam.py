"""Scores summaries: a judge answers an article's questions from each summary, and the right answers are counted.

The stages `questions`, `scores` and `evaluation` all use this code, so every summary is scored in the same way.
`preference.py` decides which of two summaries is better.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from judges.base import LETTERS, UNSURE, Answer, Judge, Question, Skip, line_logps, shuffled
from pipeline.inference.base import Engine, Reply, count_tokens
from pipeline.judging import tallies
from pipeline.judging.scoring.text_faults import measure_text
from pipeline.storage.schema import Outcome, Row, is_drawn

# A second order of a question's options is drawn with seeds that count up from here. The first order is in the row.
_FIRST_SEED = 1


@dataclass(frozen=True)
class Answered:
    """The answers to the questions about one passage.

    Attributes:
        answers: one answer for each question, in order.
        tally: the tokens of the request, and the engine's error if it gave no reply.
        logps: the log-probability of each answer in nats, None for an unread answer. None instead of a list if the
            engine gave no log-probabilities.
    """

    answers: list[Answer]
    tally: dict[str, int]
    logps: list[float | None] | None = None


@dataclass(frozen=True)
class _Passage:
    """A text, and the questions that the judge answers from it."""

    text: str
    questions: list[Question]


def answer_questions(
    judge: Judge, engine: Engine, passages: Sequence[str], questions: Sequence[Sequence[Question]]
) -> list[Answered]:
    """Answer `questions[i]` from `passages[i]`.

    Passages without questions make no request. If the engine gives no reply, or one that cannot be parsed, the answers
    are None.
    """
    indices = [i for i, passage_questions in enumerate(questions) if passage_questions]
    replies = engine.generate([judge.ask_answers(passages[i], questions[i]) for i in indices])
    answered = [Answered([], {}) for _ in passages]
    for i, reply in zip(indices, replies, strict=True):
        text = reply.samples[0].text if reply.samples else ""
        errors = {f"no reply: {reply.error}": 1} if reply.error else {}
        answers = judge.read_answers(text, questions[i])
        # The log-probability of an answer is that of its line, so it is known only for answers in the strict form.
        strict = getattr(judge, "strict_answers", None)
        in_lines = answers
        if strict is not None:
            own = strict(text, questions[i])
            in_lines = [answer if answer == line else None for answer, line in zip(answers, own, strict=True)]
        answered[i] = Answered(answers, count_tokens([reply]) | errors, _answer_logps(reply, in_lines))
    return answered


def _answer_logps(reply: Reply, answers: Sequence[Answer]) -> list[float | None] | None:
    if not reply.samples or reply.samples[0].token_logps is None:
        return None
    logps = line_logps(reply.samples[0].token_logps, len(answers))
    return [None if answer is None else logp for answer, logp in zip(answers, logps, strict=True)]


def score_summaries(judge: Judge, engine: Engine, rows: list[Row], again: float = 0.0) -> list[Outcome]:
    """Score every summary of every row. This is the step of the judge's engine pool.

    Equal summaries of an article are judged once.

    Args:
        again: share of the rows, chosen by a hash of article and writer, whose first summary is judged a second time
            with the options in another order. How often the answers agree is tallied; the scores do not change.

    Returns:
        for each row `scores`, aligned with its `summaries`, and `tally`; a Skip if it has no summary.
    """
    passages: list[_Passage] = []
    passage_indices = [_add_distinct_passages(passages, row) for row in rows]
    repeat_indices = _add_repeats(passages, rows, passage_indices, again)
    # One call for all of them: the more prompts an engine has at once, the fuller its batches.
    answered = answer_questions(judge, engine, [p.text for p in passages], [p.questions for p in passages])
    outcomes: list[Outcome] = []
    for number, (row, indices) in enumerate(zip(rows, passage_indices, strict=True)):
        if not indices:
            outcomes.append(Skip("no summary"))
            continue
        scores = [_score(passages[i], answered[i], row["article"]) for i in indices]
        judged = set(indices)
        tally = Counter(_count_answers(scores) | {tallies.JUDGED: len(judged)})
        tally.update(_count_telling([score["items"] for score in scores]))
        if (repeat := repeat_indices.get(number)) is not None:
            judged.add(repeat)
            first = _chosen_options(passages[indices[0]], answered[indices[0]])
            second = _chosen_options(passages[repeat], answered[repeat])
            tally.update({tallies.JUDGED_AGAIN: 1, **_count_agreement(first, second)})
        for i in judged:
            tally.update(answered[i].tally)
        outcomes.append({"scores": scores, "tally": dict(tally)})
    return outcomes


def _add_distinct_passages(passages: list[_Passage], row: Row) -> list[int]:
    """Add the row's summaries to `passages`, equal ones once. Gives the index in `passages` of each summary."""
    questions = [Question(q["question_id"], q["question"], tuple(q["options"]), q["answer"]) for q in row["questions"]]
    index_of_text: dict[str, int] = {}
    for summary in row["summaries"]:
        text = summary["text"].strip()
        if text not in index_of_text:
            index_of_text[text] = len(passages)
            passages.append(_Passage(text, questions))
    return [index_of_text[summary["text"].strip()] for summary in row["summaries"]]


def _add_repeats(
    passages: list[_Passage], rows: Sequence[Row], passage_indices: Sequence[Sequence[int]], share: float
) -> dict[int, int]:
    """Add the first summary of a share of the rows again, with reordered options. Gives the new index by row number."""
    repeat_indices = {}
    for number, (row, indices) in enumerate(zip(rows, passage_indices, strict=True)):
        if indices and is_drawn(f"{row['article_id']}\n{row.get('writer')}", share):
            first = passages[indices[0]]
            repeat_indices[number] = len(passages)
            passages.append(_Passage(first.text, [_reorder_options(question) for question in first.questions]))
    return repeat_indices


def _reorder_options(question: Question) -> Question:
    """The question with its options, which are distinct, in an order that differs from the present one."""
    orders = (shuffled(question, seed) for seed in itertools.count(_FIRST_SEED))
    return next(reordered for reordered in orders if reordered.options != question.options)


def _score(passage: _Passage, answered: Answered, article: str) -> Row:
    """A row of the column `scores`."""
    right = [answer == question.letter for answer, question in zip(answered.answers, passage.questions, strict=True)]
    return {
        "answers": answered.answers,
        "correct": sum(right),
        "unread": answered.answers.count(None),
        "answer_logps": answered.logps,
        "soft": None if answered.logps is None else soft_score(right, answered.logps),
        "value": float(sum(right)),
        "items": [None if answer is None else float(r) for answer, r in zip(answered.answers, right, strict=True)],
        **measure_text(passage.text, article),
    }


def _count_answers(scores: Sequence[Row]) -> dict[str, int]:
    return {
        tallies.ANSWERS: sum(len(score["answers"]) for score in scores),
        tallies.UNREAD: sum(score["unread"] for score in scores),
        tallies.UNSURE: sum(score["answers"].count(UNSURE) for score in scores),
    }


def _count_telling(items: Sequence[Sequence[float | None]]) -> dict[str, int]:
    """How many questions are answered right from some summaries and not from others; unread answers do not count."""
    right = [[r for r in of_question if r is not None] for of_question in zip(*items, strict=True)]
    compared = [r for r in right if len(r) > 1] if len(items) > 1 else []
    return {tallies.COMPARED: len(compared), tallies.TELLING: sum(len(set(r)) > 1 for r in compared)}


def _chosen_options(passage: _Passage, answered: Answered) -> list[str | None]:
    """The text of each chosen option, whatever its letter; `UNSURE` and None stay as they are."""
    return [
        answer if answer is None or answer == UNSURE else f"option {question.options[LETTERS.index(answer)]}"
        for question, answer in zip(passage.questions, answered.answers, strict=True)
    ]


def _count_agreement(first: Sequence[str | None], second: Sequence[str | None]) -> dict[str, int]:
    """How often two sets of answers to the same questions agree. Only answers that were read both times count.

    "Unsure" twice is counted apart. It is no sign that the order does not matter: a judge that is always unsure would
    always agree with itself.
    """
    read = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    chosen = [answers for answers in read if answers != (UNSURE, UNSURE)]
    return {
        tallies.ASKED_AGAIN: len(chosen),
        tallies.SAME_AGAIN: sum(a == b for a, b in chosen),
        tallies.UNSURE_TWICE: len(read) - len(chosen),
    }


def soft_score(right: Sequence[bool], logps: Sequence[float | None]) -> float:
    """The sum of the probabilities of the right answers. It is at most their number, `correct`."""
    right_logps = [logp for is_right, logp in zip(right, logps, strict=True) if is_right and logp is not None]
    return math.fsum(confidence(logp) for logp in right_logps)


def confidence(logp: float) -> float:
    """The probability of an answer. Rounding may put a log-probability above 0, so it is capped there."""
    return math.exp(min(0.0, logp))
