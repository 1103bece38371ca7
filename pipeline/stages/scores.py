"""Scores: each summary's questions are answered from that summary alone.

Unread is not wrong: an answer that cannot be read is kept apart, and too many of them stop the run. Left out: what is
better (`preference.py`).
"""

from functools import partial

from ray.data import Dataset

from judges.base import Judge, Skip
from pipeline.config.run import JudgeSettings
from pipeline.inference.base import Engine
from pipeline.inference.pool import EnginePool
from pipeline.judging.factory import make_judge
from pipeline.judging.scoring import score_summaries
from pipeline.stages.base import stage
from pipeline.storage.schema import Outcome, Row


@stage(
    "scores",
    version=3,
    settings=("judge", "seed"),
    contents=("judge.model",),
    uses=("judge_engine",),
    writes=("scores",),
    limits=("scores.max_unread",),
)
def score_samples(rows: Dataset, *, judge: JudgeSettings, seed: int, judge_engine: EnginePool) -> Dataset:
    """Add `scores`, aligned with `summaries`."""
    return judge_engine.map(rows, partial(score_summaries, make_judge(judge, seed)), ("scores",))


@stage(
    "second_scores",
    version=2,
    settings=("second_judge", "seed"),
    contents=("second_judge.model",),
    uses=("second_engine",),
    writes=("second_scores",),
    limits=("scores.max_unread",),
)
def score_second(rows: Dataset, *, second_judge: JudgeSettings, seed: int, second_engine: EnginePool) -> Dataset:
    """Add `second_scores` to the rows of an evaluation, aligned with `summaries`; of no questions come no answers."""
    return second_engine.map(rows, partial(_score, make_judge(second_judge, seed)), score_second.writes)


def _score(judge: Judge, engine: Engine, rows: list[Row]) -> list[Outcome]:
    asked = [row | {"questions": row["second_questions"]} for row in rows]
    return [
        said if isinstance(said, Skip) else {"second_scores": said["scores"], "tally": said["tally"]}
        for said in score_summaries(judge, engine, asked)
    ]


@stage(
    "evaluation",
    version=6,
    settings=("evaluation.ask_again", "judge", "seed"),
    contents=("judge.model",),
    uses=("judge_engine",),
    writes=("scores",),
    limits=("scores.max_unread",),
)
def score_heldout(
    rows: Dataset, *, ask_again: float, judge: JudgeSettings, seed: int, judge_engine: EnginePool
) -> Dataset:
    """Add `scores`, aligned with `summaries`, to the rows of an exam.

    Args:
        ask_again: the share of rows whose first summary is judged a second time, the options in another order.
    """
    step = partial(score_summaries, make_judge(judge, seed), again=ask_again)
    return judge_engine.map(rows, step, ("scores",))


@stage(
    "evaluation",
    version=6,
    settings=("judge", "seed"),
    contents=("judge.model",),
    uses=("judge_engine",),
    writes=("scores",),
)
def score_leads(rows: Dataset, *, judge: JudgeSettings, seed: int, judge_engine: EnginePool) -> Dataset:
    """`evaluate`, of articles' leads, every one of them twice: a judge without a policy."""
    return score_heldout(rows, ask_again=1.0, judge=judge, seed=seed, judge_engine=judge_engine)
