"""Questions about each article: asked once a run, checked before use.

A question is used only if the judge answers it right from the whole article (ceiling) and not right from nothing
(floor): else its answers would measure the judge, not the summary. What is dropped is counted by reason.
"""

from collections import Counter
from functools import partial

from ray.data import Dataset

from judges.base import UNSURE, Answer, Judge, Question, Skip
from pipeline.config import Judge as JudgeSettings
from pipeline.config import Questions
from pipeline.engines.base import Engine, Reply, tokens
from pipeline.engines.pool import Pool
from pipeline.judging import answer, make_judge
from pipeline.rows import Outcome, Row
from pipeline.stage import stage


@stage(
    "questions",
    version=1,
    settings=("judge", "questions", "seed"),
    contents=("judge.model",),
    uses=("judge_engine",),
    writes=("questions", "dropped"),
    limits=("questions.max_skipped",),
)
def ask(rows: Dataset, *, judge: JudgeSettings, questions: Questions, seed: int, judge_engine: Pool) -> Dataset:
    """Add `questions` to each article, and the reason for each one `dropped`."""
    return judge_engine.map(rows, partial(_ask, make_judge(judge, seed), questions), ask.writes)


def _ask(judge: Judge, settings: Questions, engine: Engine, rows: list[Row]) -> list[Outcome]:
    replies = engine.generate([judge.ask_questions(row["article"]) for row in rows])
    asked = [_read(judge, reply) for reply in replies]
    tallies = [Counter(tokens([reply])) for reply in replies]
    if settings.check:
        # Both checks go in one call: the more prompts an engine has at once, the fuller its batches.
        some = [[q for q in line if isinstance(q, Question)] for line in asked]
        passages = [passage for row in rows for passage in (row["article"], "")]
        answered = answer(judge, engine, passages, [questions for questions in some for _ in ("whole", "nothing")])
        for i, (whole, nothing) in enumerate(zip(answered[::2], answered[1::2], strict=True)):
            tallies[i] += Counter(whole.tokens) + Counter(nothing.tokens)
            checked = map(check, some[i], whole.answers, nothing.answers)
            asked[i] = [q if isinstance(q, Skip) else next(checked) for q in asked[i]]
    outcomes: list[Outcome] = []
    for reply, line, tally in zip(replies, asked, tallies, strict=True):
        good = [question for question in line if isinstance(question, Question)]
        dropped = [question.reason for question in line if isinstance(question, Skip)]
        tally += Counter(f"question dropped: {reason}" for reason in dropped) + Counter(questions=len(good))
        said: Row = {"questions": [_row(question) for question in good], "dropped": dropped, "tally": tally}
        if reply.error:
            said["skipped"] = reply.error
        elif len(good) < settings.min_questions:
            said["skipped"] = f"under {settings.min_questions} good questions"
        outcomes.append(said)
    return outcomes


def _read(judge: Judge, reply: Reply) -> list[Question | Skip]:
    if not reply.samples:
        return []
    read = judge.read_questions(reply.samples[0].text)
    # The last option of a reply that was cut off may be half a word, and still look like an option.
    return [*read[:-1], Skip("question cut off")] if reply.samples[0].finish_reason == "length" else read


def check(question: Question, whole: Answer, nothing: Answer) -> Question | Skip:
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
