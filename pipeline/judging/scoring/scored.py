"""Scores summaries with a judge that asks no questions (`judges.base.ScoringJudge`)."""

from collections import Counter
from dataclasses import replace
from typing import Any

from judges.base import Judgement, ScoringJudge, Skip
from pipeline.inference.base import Engine, count_tokens
from pipeline.judging import tallies
from pipeline.judging.scoring.text_faults import measure_text
from pipeline.storage.schema import Outcome, Row, is_drawn

_LARGEST = 3.4e38  # about the largest number of float32


def score_by_judge(
    judge: ScoringJudge, engine: Engine, rows: list[Row], again: float = 0.0, anchored: bool = False
) -> list[Outcome]:
    """Score every summary of every row. This is the step of the judge's engine pool.

    Equal summaries of an article are judged once.

    Args:
        again: share of the rows, chosen by a hash of article and writer, that are judged a second time in another
            order. How often both prefer the same of two summaries is tallied; the scores do not change. Nothing is
            judged twice if the judge has no other order.
        anchored: a judge that compares summaries compares each with the base policy's summary of the article, not with
            each other: the first in `base_summaries`, or the row's own first summary if it has no such column.

    Returns:
        for each row `scores`, aligned with its `summaries`, and `tally`; a Skip if it has no summary.
    """
    jobs: list[tuple[int, list[str], int]] = []  # row number, distinct summaries, order
    for number, row in enumerate(rows):
        if texts := list(dict.fromkeys(summary["text"].strip() for summary in row["summaries"])):
            jobs.append((number, texts, 0))
            if is_drawn(f"{row['article_id']}\n{row.get('writer')}", again if judge_reorders(judge) else 0.0):
                jobs.append((number, texts, 1))
    anchors: list[dict[str, Any]] = [_anchor(row) if anchored and compares(judge) else {} for row in rows]
    prompts = [
        judge.ask_scores(rows[number]["article"], texts, order, **anchors[number]) for number, texts, order in jobs
    ]
    # One call for all of them: the more prompts an engine has at once, the fuller its batches.
    replies = iter(engine.generate([prompt for of_job in prompts for prompt in of_job]))
    judged: dict[tuple[int, int], dict[str, Judgement]] = {}
    tallies_of_rows: dict[int, Counter[str]] = {}
    for (number, texts, order), of_job in zip(jobs, prompts, strict=True):
        own, article = [next(replies) for _ in of_job], rows[number]["article"]
        samples = [reply.samples for reply in own]
        judgements = [_storable(each) for each in judge.read_scores(article, texts, samples, order, **anchors[number])]
        judged[number, order] = dict(zip(texts, judgements, strict=True))
        tally = tallies_of_rows.setdefault(number, Counter())
        tally.update(f"{tallies.UNREAD_PREFIX}{each.reason}" for each in judgements if each.reason)
        if compares(judge):
            tally.update(judge.count_places(article, texts, samples, **anchors[number]))  # type: ignore[attr-defined]
        tally.update(count_tokens(own))
        tally.update(f"no reply: {reply.error}" for reply in own if reply.error)
        tally[tallies.JUDGED_AGAIN if order else tallies.JUDGED] += len(texts)
    outcomes: list[Outcome] = []
    for number, row in enumerate(rows):
        if (number, 0) not in judged:
            outcomes.append(Skip("no summary"))
            continue
        first = judged[number, 0]
        scores = [_score(summary["text"].strip(), first, row["article"]) for summary in row["summaries"]]
        tally = tallies_of_rows[number]
        tally.update({tallies.ANSWERS: len(scores), tallies.UNREAD: sum(score["unread"] for score in scores)})
        if (number, 1) in judged:
            tally.update(_count_agreement(first, judged[number, 1]))
        outcomes.append({"scores": scores, "tally": dict(tally)})
    return outcomes


def compares(judge: object) -> bool:
    """Whether a judge compares summaries (`judges.base.ComparingJudge`). A class of the user's need not say."""
    return getattr(judge, "compares", ScoringJudge.compares)


def judge_reorders(judge: object) -> bool:
    """Whether a scoring judge's prompts have another order. A class of the user's need not say."""
    return getattr(judge, "reorders", ScoringJudge.reorders)


def _anchor(row: Row) -> dict[str, str]:
    """The summary of the base policy, as a keyword argument of a comparing judge's methods."""
    by_base = row.get("base_summaries") or row["summaries"]
    return {"anchor": by_base[0]["text"].strip()} if by_base else {}


def _storable(judgement: Judgement) -> Judgement:
    """The judgement without numbers that are not finite in float32, as the column `scores` stores them.

    Such a number wins and loses no comparison, and makes every mean meaningless.
    """
    items = tuple(None if item is None or not abs(item) <= _LARGEST else item for item in judgement.items)
    if judgement.value is None or abs(judgement.value) <= _LARGEST:
        return replace(judgement, items=items)
    return Judgement(None, items, judgement.reason or "score is no finite number")


def _score(text: str, judged: dict[str, Judgement], article: str) -> Row:
    """A row of the column `scores`. A summary without a value counts as one unread answer."""
    judgement = judged[text]
    return {
        "answers": [],
        "correct": 0,
        "unread": int(judgement.value is None),
        "answer_logps": None,
        "soft": None,
        "value": judgement.value,
        "items": list(judgement.items),
        **measure_text(text, article),
    }


def _count_agreement(first: dict[str, Judgement], second: dict[str, Judgement]) -> dict[str, int]:
    """How often two scorings prefer the same of two summaries, among the pairs that both decide."""
    values = [(first[text].value, second[text].value) for text in first]
    read = [(a, b) for a, b in values if a is not None and b is not None]
    signs = [((a > c) - (a < c), (b > d) - (b < d)) for i, (a, b) in enumerate(read) for c, d in read[i + 1 :]]
    decided = [(one, other) for one, other in signs if one and other]
    return {
        tallies.PAIRS_AGAIN: len(decided),
        tallies.SAME_PAIRS_AGAIN: sum(one == other for one, other in decided),
    }
