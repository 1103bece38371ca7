"""Chooses how a judge scores summaries: by answers to questions, or by scores of its own."""

from functools import partial

from judges.base import Skip
from pipeline.inference.base import Engine, EngineStep
from pipeline.judging.factory import AnyJudge, asks_questions
from pipeline.judging.scoring.exam import score_summaries
from pipeline.judging.scoring.length_bias import count_length_bias
from pipeline.judging.scoring.scored import score_by_judge
from pipeline.storage.schema import Outcome, Row


def scoring_step(judge: AnyJudge, again: float = 0.0, anchored: bool = False) -> EngineStep:
    """Return the step of the judge's engine pool.

    Args:
        judge: the judge.
        again: share of the rows that are judged a second time in another order, for the judge card.
        anchored: a judge that compares summaries compares each with the base policy's (`scored.score_by_judge`).
    """
    if asks_questions(judge):
        return partial(_with_length_bias, partial(score_summaries, judge, again=again))  # type: ignore[arg-type]
    return partial(_with_length_bias, partial(score_by_judge, judge, again=again, anchored=anchored))  # type: ignore[arg-type]


def _with_length_bias(score: EngineStep, engine: Engine, rows: list[Row]) -> list[Outcome]:
    """Score rows, and add to each tally how far values rise with length."""
    outcomes = list(score(engine, rows))
    for row, outcome in zip(rows, outcomes, strict=True):
        if not isinstance(outcome, Skip):
            texts = [summary["text"].strip() for summary in row["summaries"]]
            outcome["tally"] = {**outcome["tally"], **count_length_bias(texts, outcome["scores"])}
    return outcomes
