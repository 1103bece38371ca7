"""The stages `scores`, `evaluation` and `second_scores`: a judge scores the summaries of each article.

An unread answer is not a wrong answer: it is counted separately, and too many of them stop the run. The second judge
has its own questions and its own habits. So it can tell whether the policy only learned to please the first judge.
"""

from functools import partial

from ray.data import Dataset

from judges.base import Skip
from pipeline.config.judging import JudgeSettings
from pipeline.inference.base import Engine
from pipeline.inference.pool import EnginePool, EngineStep
from pipeline.judging.factory import make_judge
from pipeline.judging.scoring.step import scoring_step
from pipeline.stages.base import stage
from pipeline.storage.schema import Outcome, Row


@stage(
    "scores",
    version=3,
    inputs=("rows",),
    settings=("judge", "seed"),
    contents=("judge.model", "judge.kind"),
    uses=("judge_engine",),
    writes=("scores",),
    limits=("scores.max_unread",),
    workload="judging",
)
def score_samples(rows: Dataset, *, judge: JudgeSettings, seed: int, judge_engine: EnginePool) -> Dataset:
    """Add `scores`, aligned with `summaries`."""
    return judge_engine.map(rows, scoring_step(make_judge(judge, seed)), score_samples.writes)


@stage(
    "evaluation",
    version=6,
    inputs=("rows",),
    settings=("evaluation.ask_again", "judge", "seed"),
    contents=("judge.model", "judge.kind"),
    uses=("judge_engine",),
    writes=("scores",),
    limits=("scores.max_unread",),
    workload="judging",
)
def score_heldout(
    rows: Dataset, *, ask_again: float, judge: JudgeSettings, seed: int, judge_engine: EnginePool
) -> Dataset:
    """Add `scores`, aligned with `summaries`, to summaries of held-out articles.

    Args:
        ask_again: the share of rows whose first summary is judged twice, the second time with the options in another
            order. The judge card shows how often the two agree.
    """
    step = scoring_step(make_judge(judge, seed), ask_again)
    return judge_engine.map(rows, step, score_heldout.writes)


@stage(
    "evaluation",
    version=6,
    inputs=("rows",),
    settings=("judge", "seed"),
    contents=("judge.model", "judge.kind"),
    uses=("judge_engine",),
    writes=("scores",),
    workload="judging",
)
def score_leads(rows: Dataset, *, judge: JudgeSettings, seed: int, judge_engine: EnginePool) -> Dataset:
    """Score the articles' extracts, the first of each article twice. This tries a judge without any policy."""
    return score_heldout(rows, ask_again=1.0, judge=judge, seed=seed, judge_engine=judge_engine)


@stage(
    "second_scores",
    version=2,
    inputs=("rows",),
    settings=("second_judge", "seed"),
    contents=("second_judge.model", "second_judge.kind"),
    uses=("second_judge_engine",),
    writes=("second_scores",),
    limits=("scores.max_unread",),
    workload="judging",
)
def score_second(rows: Dataset, *, second_judge: JudgeSettings, seed: int, second_judge_engine: EnginePool) -> Dataset:
    """Add `second_scores`, aligned with `summaries`. Without `second_questions` a score has no answers."""
    step = partial(_score_by_second_judge, scoring_step(make_judge(second_judge, seed)))
    return second_judge_engine.map(rows, step, score_second.writes)


def _score_by_second_judge(score: EngineStep, engine: Engine, rows: list[Row]) -> list[Outcome]:
    second_rows = [row | {"questions": row["second_questions"]} for row in rows]
    return [
        outcome if isinstance(outcome, Skip) else {"second_scores": outcome["scores"], "tally": outcome["tally"]}
        for outcome in score(engine, second_rows)
    ]
