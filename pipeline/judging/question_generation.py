"""Asking a judge for questions at an engine, and checking them: what the first judge's and a second's stage share.

A question is used only if it is well-formed, and if the judge answers it right from the whole article (ceiling) and not
right from nothing (floor): else its answers would measure the judge, not the summary. What is dropped is counted by
reason, and what the checks saw is tallied for the judge's card (`card.py`). Left out: what is well-formed
(`judges.base.vet`).
"""

from collections import Counter

from judges.base import UNSURE, Answer, Judge, Question, Skip
from pipeline.config.run import Questions
from pipeline.inference.base import Engine, Reply, count_tokens
from pipeline.judging.scoring import Answered, answer_questions, confidence
from pipeline.judging.tallies import (
    ANSWER_LETTER_PREFIX,
    CONFIDENCE_PREFIX,
    DROPPED_PREFIX,
    KEY_LETTER_PREFIX,
    WEIGHED_RIGHT,
    WEIGHED_WRONG,
)
from pipeline.storage.schema import Outcome, Row


def generate_questions(judge: Judge, count: int, settings: Questions, engine: Engine, rows: list[Row]) -> list[Outcome]:
    """Ask `count` questions about every row's article, and check them: the step of a pool of judges."""
    replies = engine.generate([judge.ask_questions(row["article"]) for row in rows])
    asked = [_read(judge, reply, count) for reply in replies]
    tallies = [Counter(count_tokens([reply])) for reply in replies]
    if settings.check:
        # Both checks go in one call: the more prompts an engine has at once, the fuller its batches.
        some = [[q for q in line if isinstance(q, Question)] for line in asked]
        passages = [passage for row in rows for passage in (row["article"], "")]
        answered = answer_questions(
            judge, engine, passages, [questions for questions in some for _ in ("whole", "nothing")]
        )
        for i, (whole, nothing) in enumerate(zip(answered[::2], answered[1::2], strict=True)):
            tallies[i] += Counter(whole.tokens) + Counter(nothing.tokens)
            tallies[i] += Counter(_seen(some[i], whole.answers, nothing.answers))
            tallies[i] += Counter(_sure(some[i], whole))
            checked = map(check_question, some[i], whole.answers, nothing.answers)
            asked[i] = [q if isinstance(q, Skip) else next(checked) for q in asked[i]]
    outcomes: list[Outcome] = []
    for reply, line, tally in zip(replies, asked, tallies, strict=True):
        good = [question for question in line if isinstance(question, Question)]
        dropped = [question.reason for question in line if isinstance(question, Skip)]
        tally += Counter(f"{DROPPED_PREFIX}{reason}" for reason in dropped)
        tally += Counter({"questions": len(good), "questions asked": len(line)})
        said: Row = {"questions": [_row(question) for question in good], "dropped": dropped, "tally": tally}
        if reply.error:
            said["skipped"] = reply.error
        elif len(good) < settings.min_questions:
            said["skipped"] = f"under {settings.min_questions} good questions"
        outcomes.append(said)
    return outcomes


def _read(judge: Judge, reply: Reply, count: int) -> list[Question | Skip]:
    """What was read of each of `count` questions, those not written included; none where there was no reply."""
    if not reply.samples:
        return []
    read = judge.read_questions(reply.samples[0].text)[:count]  # a server's judge may write more than it is asked for
    if reply.samples[0].finish_reason == "length":
        # The last option of a reply that was cut off may be half a word, and still look like an option.
        read = [*read[:-1], Skip("question cut off")]
    return [*read, *[Skip("question not written")] * (count - len(read))]


def _seen(questions: list[Question], whole: list[Answer], nothing: list[Answer]) -> dict[str, int]:
    """What both checks saw of a judge, whatever became of the question."""
    keys = [question.letter for question in questions]
    return {
        "checked": len(keys),
        "right from the whole article": sum(said == key for said, key in zip(whole, keys, strict=True)),
        "right from nothing": sum(said == key for said, key in zip(nothing, keys, strict=True)),
        "unsure from nothing": nothing.count(UNSURE),
        "answers": len(whole) + len(nothing),
        "unread": whole.count(None) + nothing.count(None),
        **Counter(f"{ANSWER_LETTER_PREFIX}{letter}" for letter in (*whole, *nothing) if letter not in (None, UNSURE)),
        **Counter(f"{KEY_LETTER_PREFIX}{letter}" for letter in keys),
    }


def _sure(questions: list[Question], whole: Answered) -> Counter[str]:
    """How sure the judge is from the whole article, where it is right and where it is not: added up in millionths."""
    found: Counter[str] = Counter()
    for question, said, logp in zip(questions, whole.answers, whole.logps or [None] * len(questions), strict=True):
        if logp is not None:
            which = WEIGHED_RIGHT if said == question.letter else WEIGHED_WRONG
            found[which] += 1
            found[f"{CONFIDENCE_PREFIX}{which}"] += round(1e6 * confidence(logp))
    return found


def check_question(question: Question, whole: Answer, nothing: Answer) -> Question | Skip:
    """The question, if the judge answers it right from the whole article and not right from nothing."""
    if nothing == question.letter:
        return Skip("right from nothing")
    if whole == question.letter:
        return question
    return Skip({None: "unread", UNSURE: "unsure"}.get(whole, "wrong") + " from the whole article")


def _row(question: Question) -> Row:
    return {
        "question_id": question.question_id,
        "question": question.question,
        "options": list(question.options),
        "answer": question.answer,
    }
