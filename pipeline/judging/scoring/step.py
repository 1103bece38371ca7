"""Chooses how a judge scores summaries: by answers to questions, or by scores of its own."""

from functools import partial

from pipeline.inference.pool import EngineStep
from pipeline.judging.factory import AnyJudge, asks_questions
from pipeline.judging.scoring.exam import score_summaries
from pipeline.judging.scoring.scored import score_by_judge


def scoring_step(judge: AnyJudge, again: float = 0.0) -> EngineStep:
    """Return the step of the judge's engine pool.

    Args:
        judge: the judge.
        again: share of the rows that are judged a second time in another order, for the judge card.
    """
    return partial(score_summaries if asks_questions(judge) else score_by_judge, judge, again=again)  # type: ignore[arg-type]
