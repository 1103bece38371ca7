"""Asks a judge for questions about articles and checks them. The stages of both judges use this code.

A question is used only if it is well-formed (`judges.base.vet`), and if the judge answers it right from the whole
article (the ceiling) and does not answer it right from nothing, an empty text (the floor). Otherwise its answers would
measure the judge instead of the summary. Dropped questions are counted by reason. What the checks show about the judge
is tallied for its card (`evaluation/judge_card.py`).
"""

from collections import Counter
from collections.abc import Sequence

from judges.base import UNSURE, Answer, Judge, Question, Skip, vet
from pipeline.config.judging import Questions
from pipeline.inference.base import Engine, Reply, count_tokens
from pipeline.judging import tallies
from pipeline.judging.scoring.exam import Answered, answer_questions, confidence
from pipeline.storage.schema import Outcome, Row

Draft = Question | Skip  # a question, or the reason why it is dropped


def generate_questions(judge: Judge, count: int, settings: Questions, engine: Engine, rows: list[Row]) -> list[Outcome]:
    """Ask `count` questions about each row's article and check them. This is the step of a judge's engine pool.

    Returns:
        for each row the `questions` that are used, `dropped` with the reason for each of the others, and `tally`. Also
        `skipped` if the engine gave no reply or fewer than `settings.min_questions` questions are left.
    """
    articles = [row["article"] for row in rows]
    replies = engine.generate([judge.ask_questions(article) for article in articles])
    drafts = [_parse_questions(judge, reply, count) for reply in replies]
    counts = [Counter(count_tokens([reply])) for reply in replies]
    if settings.check:
        drafts = _check_drafts(judge, engine, articles, drafts, counts)
    return [
        _outcome(reply, article_drafts, article_counts, settings.min_questions)
        for reply, article_drafts, article_counts in zip(replies, drafts, counts, strict=True)
    ]


def _parse_questions(judge: Judge, reply: Reply, count: int) -> list[Draft]:
    """Parse `count` questions from a reply. A missing question is a Skip. No reply gives an empty list."""
    if not reply.samples:
        return []
    # A judge may write more questions than it was asked for, and need not check that they are well-formed.
    drafts = vet(judge.read_questions(reply.samples[0].text)[:count])
    if reply.samples[0].finish_reason == "length":
        # The last option of a reply that was cut off may be half a word and still look like an option.
        drafts = [*drafts[:-1], Skip("question cut off")]
    return [*drafts, *[Skip("question not written")] * (count - len(drafts))]


def _check_drafts(
    judge: Judge,
    engine: Engine,
    articles: Sequence[str],
    drafts: Sequence[Sequence[Draft]],
    counts: Sequence[Counter[str]],
) -> list[list[Draft]]:
    """Have the judge answer each well-formed question from the whole article and from nothing.

    Args:
        articles, drafts: of each row.
        counts: of each row; the results of the checks are added.

    Returns:
        the drafts, where each question that failed a check is replaced by a Skip.
    """
    questions = [[draft for draft in row_drafts if isinstance(draft, Question)] for row_drafts in drafts]
    # Both checks go in one call: the more prompts an engine has at once, the fuller its batches.
    answered = answer_questions(
        judge,
        engine,
        [passage for article in articles for passage in (article, "")],
        [row_questions for row_questions in questions for _ in ("whole article", "nothing")],
    )
    checked_drafts = []
    for i, (whole, nothing) in enumerate(zip(answered[::2], answered[1::2], strict=True)):
        counts[i].update(whole.tally)
        counts[i].update(nothing.tally)
        counts[i].update(_count_checks(questions[i], whole.answers, nothing.answers))
        counts[i].update(_sum_confidences(questions[i], whole))
        checked = map(check_question, questions[i], whole.answers, nothing.answers)
        checked_drafts.append([draft if isinstance(draft, Skip) else next(checked) for draft in drafts[i]])
    return checked_drafts


def check_question(question: Question, whole: Answer, nothing: Answer) -> Draft:
    """The question, if the answer from the whole article is right and the answer from nothing is not."""
    if nothing == question.letter:
        return Skip("right from nothing")
    if whole == question.letter:
        return question
    return Skip({None: "unread", UNSURE: "unsure"}.get(whole, "wrong") + " from the whole article")


def _count_checks(questions: list[Question], whole: list[Answer], nothing: list[Answer]) -> dict[str, int]:
    """Counts of both checks for the judge card. They include the questions that are then dropped."""
    keys = [question.letter for question in questions]
    letters = [answer for answer in (*whole, *nothing) if answer not in (None, UNSURE)]
    return {
        tallies.CHECKED: len(keys),
        tallies.RIGHT_FROM_ARTICLE: sum(answer == key for answer, key in zip(whole, keys, strict=True)),
        tallies.RIGHT_FROM_NOTHING: sum(answer == key for answer, key in zip(nothing, keys, strict=True)),
        tallies.UNSURE_FROM_NOTHING: nothing.count(UNSURE),
        tallies.ANSWERS: len(whole) + len(nothing),
        tallies.UNREAD: whole.count(None) + nothing.count(None),
        **Counter(f"{tallies.ANSWER_LETTER_PREFIX}{letter}" for letter in letters),
        **Counter(f"{tallies.KEY_LETTER_PREFIX}{letter}" for letter in keys),
    }


def _sum_confidences(questions: list[Question], whole: Answered) -> Counter[str]:
    """The probabilities of right and of wrong answers from the whole article, added up in millionths."""
    sums: Counter[str] = Counter()
    logps = whole.logps or [None] * len(questions)
    for question, answer, logp in zip(questions, whole.answers, logps, strict=True):
        if logp is not None:
            name = tallies.WEIGHED_RIGHT if answer == question.letter else tallies.WEIGHED_WRONG
            sums[name] += 1
            sums[f"{tallies.CONFIDENCE_PREFIX}{name}"] += round(1e6 * confidence(logp))
    return sums


def _outcome(reply: Reply, drafts: Sequence[Draft], counts: Counter[str], min_questions: int) -> Row:
    questions = [draft for draft in drafts if isinstance(draft, Question)]
    dropped = [draft.reason for draft in drafts if isinstance(draft, Skip)]
    counts.update(f"{tallies.DROPPED_PREFIX}{reason}" for reason in dropped)
    counts.update({tallies.QUESTIONS: len(questions), tallies.QUESTIONS_ASKED: len(drafts)})
    outcome: Row = {
        "questions": [_question_row(question) for question in questions],
        "dropped": dropped,
        "tally": +counts,  # without counts of 0
    }
    if reply.error:
        outcome["skipped"] = reply.error
    elif len(questions) < min_questions:
        outcome["skipped"] = f"under {min_questions} good questions"
    return outcome


def _question_row(question: Question) -> Row:
    """A row of the column `questions`."""
    return {
        "question_id": question.question_id,
        "question": question.question,
        "options": list(question.options),
        "answer": question.answer,
    }
