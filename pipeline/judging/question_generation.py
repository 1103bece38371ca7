"""Asks a judge for questions about articles and checks them. The stages of both judges use this code.

A question is used only if it is well-formed (`judges.base.vet`), and if the judge answers it right from the whole
article (the ceiling) and does not answer it right from nothing, an empty text (the floor). Otherwise its answers would
measure the judge instead of the summary. Manakul et al. (2023), MQAG, arXiv 2301.12307, filter by answerability too.

Settings add further checks (`questions.more_checks`): one right option, importance, no overlap. Lee et al. (2024),
CheckEval, arXiv 2403.18771, filter their checklists by the last two. Dropped questions are counted by reason. What the
checks show about the judge, and what each costs, is tallied for its card (`evaluation/judge_card.py`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from judges.base import UNSURE, Answer, Judge, Question, Skip, option_key, vet
from judges.mcq.judge import DETAIL
from judges.text.tokens import normalized_tokens
from pipeline.config.judging import Questions
from pipeline.inference.base import TOKENS_IN, TOKENS_OUT, Engine, Reply, count_tokens
from pipeline.judging import tallies
from pipeline.judging.scoring.exam import Answered, answer_questions, confidence
from pipeline.storage.schema import Outcome, Row

_GUESSED = Skip("right from nothing")
Draft = Question | Skip  # a question, or the reason why it is dropped


def generate_questions(judge: Judge, count: int, settings: Questions, engine: Engine, rows: list[Row]) -> list[Outcome]:
    """Ask questions about each row's article, check them, and keep `count`. This is the step of a judge's engine pool.

    Args:
        judge: asks `settings.draft` questions, or `count` if that is None.
        settings: which checks there are.

    Returns:
        for each row the `questions` that are used, `dropped` with the reason for each of the others, and `tally`. Also
        `skipped` if the engine gave no reply or fewer than `settings.min_questions` questions are left.
    """
    articles = [row["article"] for row in rows]
    replies = engine.generate([judge.ask_questions(article) for article in articles])
    drafts = [_parse_questions(judge, reply, settings.draft or count) for reply in replies]
    counts = [Counter(count_tokens([reply])) for reply in replies]
    if settings.check or "single_key" in settings.more_checks:
        drafts = _check_answers(judge, engine, settings, articles, drafts, counts)
    ratings: list[dict[int, int]] = [{} for _ in drafts]
    if "important" in settings.more_checks:
        drafts, ratings = _check_importance(judge, engine, articles, drafts, counts)
    if "no_overlap" in settings.more_checks:
        drafts = [_drop_overlaps(*of_row) for of_row in zip(drafts, ratings, counts, strict=True)]
    if settings.draft:
        drafts = [_drop_surplus(*of_row, count) for of_row in zip(drafts, ratings, counts, strict=True)]
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
        drafts = [*drafts[:-1], Skip(tallies.QUESTION_CUT_OFF)]
    return [*drafts, *[Skip("question not written")] * (count - len(drafts))]


def _check_answers(
    judge: Judge,
    engine: Engine,
    settings: Questions,
    articles: Sequence[str],
    drafts: Sequence[Sequence[Draft]],
    counts: Sequence[Counter[str]],
) -> list[list[Draft]]:
    """Have the judge answer each well-formed question: from the whole article, from nothing, and without its key.

    Args:
        articles, drafts: of each row.
        counts: of each row; the results of the checks are added.

    Returns:
        the drafts, where each question that failed a check is replaced by a Skip.
    """
    questions = [_questions_in(row_drafts) for row_drafts in drafts]
    ways = ["answerable", "unguessable"] * settings.check + ["single_key"] * ("single_key" in settings.more_checks)
    asked = {"answerable": questions, "unguessable": questions, "single_key": [_without_keys(q) for q in questions]}
    # All ways go in one call: the more prompts an engine has at once, the fuller its batches.
    answered = answer_questions(
        judge,
        engine,
        ["" if way == "unguessable" else article for article in articles for way in ways],
        [asked[way][i] for i in range(len(articles)) for way in ways],
    )
    checked_drafts = []
    for i, row_questions in enumerate(questions):
        by_way = dict(zip(ways, answered[i * len(ways) : (i + 1) * len(ways)], strict=True))
        skips: list[Skip | None] = [None] * len(row_questions)
        if settings.check:
            whole, nothing = by_way["answerable"], by_way["unguessable"]
            counts[i].update(_count_checks(row_questions, whole.answers, nothing.answers))
            counts[i].update(_sum_confidences(row_questions, whole))
            checked = map(check_question, row_questions, whole.answers, nothing.answers)
            skips = [draft if isinstance(draft, Skip) else None for draft in checked]
            guessed = sum(skip == _GUESSED for skip in skips)
            failed = {"answerable": len(skips) - skips.count(None) - guessed, "unguessable": guessed}
            for way, dropped in failed.items():
                counts[i].update(_count_check(way, len(row_questions), dropped, by_way[way].tally))
        if way_without_keys := by_way.get("single_key"):
            faults = list(map(_check_without_key, way_without_keys.answers))
            failed_first = sum(skip is None and fault is not None for skip, fault in zip(skips, faults, strict=True))
            skips = [skip or fault for skip, fault in zip(skips, faults, strict=True)]
            counts[i].update(_count_check("single_key", len(faults), failed_first, way_without_keys.tally))
            counts[i].update({tallies.ANSWERS: len(faults), tallies.UNREAD: way_without_keys.answers.count(None)})
        for way in ways:
            counts[i].update(by_way[way].tally)
        next_skip = iter(skips)
        checked_drafts.append([draft if isinstance(draft, Skip) else next(next_skip) or draft for draft in drafts[i]])
    return checked_drafts


def _questions_in(drafts: Sequence[Draft]) -> list[Question]:
    return [draft for draft in drafts if isinstance(draft, Question)]


def _without_keys(questions: Sequence[Question]) -> list[Question]:
    """The questions without their right options. `answer` then points to some option, and means nothing."""
    return [
        replace(
            question, options=question.options[: question.answer] + question.options[question.answer + 1 :], answer=0
        )
        for question in questions
    ]


def _check_without_key(answer: Answer) -> Skip | None:
    """Why a question fails if this is the answer from the whole article without the right option; None if it passes."""
    if answer is None:
        return Skip("unread without its key")
    return None if answer == UNSURE else Skip("another option fits")


def _count_check(name: str, asked: int, dropped: int, tally: Mapping[str, int] | None) -> dict[str, int]:
    """What a check did to an article's questions. `tally`: of its prompt; None if it had none."""
    counts = {tallies.CHECK_ASKED_PREFIX + name: asked, tallies.CHECK_DROPPED_PREFIX + name: dropped}
    if tally:
        counts[tallies.CHECK_PROMPTS_PREFIX + name] = 1
        counts[tallies.CHECK_TOKENS_PREFIX + name] = tally.get(TOKENS_IN, 0) + tally.get(TOKENS_OUT, 0)
    return counts


def _check_importance(
    judge: Any,
    engine: Engine,
    articles: Sequence[str],
    drafts: Sequence[Sequence[Draft]],
    counts: Sequence[Counter[str]],
) -> tuple[list[list[Draft]], list[dict[int, int]]]:
    """Have the judge rate how important each question is, and drop those about details.

    Returns:
        the drafts, and for each row the rating of each question that is left, by its place among the drafts.
    """
    questions = [_questions_in(row_drafts) for row_drafts in drafts]
    asked = [i for i, row_questions in enumerate(questions) if row_questions]
    replies = engine.generate([judge.ask_importance(articles[i], questions[i]) for i in asked])
    checked_drafts, ratings = [list(row_drafts) for row_drafts in drafts], [dict[int, int]() for _ in drafts]
    for i, reply in zip(asked, replies, strict=True):
        read = judge.read_importance(reply.samples[0].text if reply.samples else "", questions[i])
        places = [place for place, draft in enumerate(drafts[i]) if isinstance(draft, Question)]
        for place, rating in zip(places, read, strict=True):
            if rating is None or rating == DETAIL:
                checked_drafts[i][place] = Skip("importance unread" if rating is None else "asks for a detail")
            else:
                ratings[i][place] = rating
        tally = count_tokens([reply])
        counts[i].update(_count_check("important", len(places), len(places) - len(ratings[i]), tally))
        counts[i].update(tally)
        counts[i].update({f"no reply: {reply.error}": 1} if reply.error else {})
    return checked_drafts, ratings


def _by_importance(drafts: Sequence[Draft], ratings: Mapping[int, int]) -> list[int]:
    """The places of the questions among the drafts, the most important first, then in their order."""
    places = [place for place, draft in enumerate(drafts) if isinstance(draft, Question)]
    return sorted(places, key=lambda place: -ratings.get(place, 0))


def _drop_overlaps(drafts: Sequence[Draft], ratings: Mapping[int, int], counts: Counter[str]) -> list[Draft]:
    """Drop each question that overlaps one that is kept; the more important of two is kept, then the first."""
    checked, kept = list(drafts), list[Question]()
    places = _by_importance(drafts, ratings)
    for place in places:
        question = drafts[place]
        assert isinstance(question, Question)
        if any(questions_overlap(question, other) for other in kept):
            checked[place] = Skip("overlaps another question")
        else:
            kept.append(question)
    counts.update(_count_check("no_overlap", len(places), len(places) - len(kept), None))
    return checked


def questions_overlap(one: Question, other: Question) -> bool:
    """Return whether two questions ask for the same, or the text of one gives away the answer to the other.

    They ask for the same if they have the same right option and share more than half of their words (of the union).
    """
    texts = [normalized_tokens(question.question) for question in (one, other)]
    keys = [option_key(question.options[question.answer]) for question in (one, other)]
    words = [set(text) for text in texts]
    if keys[0] == keys[1]:
        return 2 * len(words[0] & words[1]) > len(words[0] | words[1])
    return _gives_away(texts[0], texts[1], keys[1]) or _gives_away(texts[1], texts[0], keys[0])


def _gives_away(text: Sequence[str], asked: Sequence[str], key: Sequence[str]) -> bool:
    """Return whether a question's text tells the answer `key` to the question `asked`.

    A text that only names the key does not: it must speak of what is asked for too, so it must have half of the words
    that carry meaning. Numbers do, and words of five letters or more, and any word outside the Latin script.
    """
    found = any(tuple(text[i : i + len(key)]) == tuple(key) for i in range(len(text) - len(key) + 1))
    words = {word for word in asked if len(word) > 4 or word.isdecimal() or not word.isascii()}
    return bool(found and key) and 2 * len(words & set(text)) >= max(1, len(words))


def _drop_surplus(drafts: Sequence[Draft], ratings: Mapping[int, int], counts: Counter[str], count: int) -> list[Draft]:
    """Keep the `count` most important questions, in their order."""
    places = _by_importance(drafts, ratings)
    surplus = set(places[count:])
    counts.update(_count_check("draft", len(places), len(surplus), None))
    return [Skip("more than needed") if place in surplus else draft for place, draft in enumerate(drafts)]


def check_question(question: Question, whole: Answer, nothing: Answer) -> Draft:
    """The question, if the answer from the whole article is right and the answer from nothing is not."""
    if nothing == question.letter:
        return _GUESSED
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
