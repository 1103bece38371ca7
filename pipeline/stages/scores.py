"""The stages `scores`, `evaluation` and `second_scores`: a judge scores the summaries of each article.

An unread answer is not a wrong answer: it is counted separately, and too many of them stop the run. The second judge
has its own questions and its own habits. So it can tell whether the policy only learned to please the first judge.
"""

from collections.abc import Mapping
from functools import partial

from ray.data import Dataset

from judges.base import Skip
from pipeline.config.judging import JudgeSettings
from pipeline.inference.base import Engine, EngineStep
from pipeline.judging.factory import make_judge
from pipeline.judging.scoring.jury import JudgePool, score_by_jury
from pipeline.judging.scoring.step import scoring_step
from pipeline.stages.base import judge_contents, stage
from pipeline.storage.schema import Outcome, Row


@stage(
    "scores",
    version=3,
    inputs=("rows",),
    settings=("judge", "seed"),
    contents=judge_contents("judge"),
    uses=("judge_engine",),
    writes=("scores",),
    limits=("scores.max_unread",),
    workload="judging",
)
def score_samples(rows: Dataset, *, judge: JudgeSettings, seed: int, judge_engine: JudgePool) -> Dataset:
    """Add `scores`, aligned with `summaries`. A judge that compares summaries compares those of the row."""
    if isinstance(judge_engine, Mapping):
        return score_by_jury(rows, judge, seed, judge_engine)
    return judge_engine.map(rows, scoring_step(make_judge(judge, seed)), score_samples.writes)


@stage(
    "evaluation",
    version=6,
    inputs=("rows",),
    settings=("evaluation.ask_again", "judge", "seed"),
    contents=judge_contents("judge"),
    uses=("judge_engine",),
    writes=("scores",),
    limits=("scores.max_unread",),
    workload="judging",
)
def score_heldout(
    rows: Dataset, *, ask_again: float, judge: JudgeSettings, seed: int, judge_engine: JudgePool
) -> Dataset:
    """Add `scores`, aligned with `summaries`, to summaries of held-out articles.

    A judge that compares summaries compares each with the base policy's, so that values of all tables can be compared.

    Args:
        ask_again: the share of rows whose first summary is judged twice, the second time with the options in another
            order. The judge card shows how often the two agree.
    """
    if isinstance(judge_engine, Mapping):
        return score_by_jury(rows, judge, seed, judge_engine, ask_again, anchored=True)
    step = scoring_step(make_judge(judge, seed), ask_again, anchored=True)
    return judge_engine.map(rows, step, score_heldout.writes)


@stage(
    "evaluation",
    version=6,
    inputs=("rows",),
    settings=("judge", "seed"),
    contents=judge_contents("judge"),
    uses=("judge_engine",),
    writes=("scores",),
    workload="judging",
)
def score_leads(rows: Dataset, *, judge: JudgeSettings, seed: int, judge_engine: JudgePool) -> Dataset:
    """Score the articles' extracts, some of them twice. This tries a judge without any policy."""
    if isinstance(judge_engine, Mapping):
        return score_by_jury(rows, judge, seed, judge_engine, again=1.0)
    return judge_engine.map(rows, scoring_step(make_judge(judge, seed), again=1.0), score_leads.writes)


@stage(
    "second_scores",
    version=2,
    inputs=("rows",),
    settings=("second_judge", "seed"),
    contents=judge_contents("second_judge"),
    uses=("second_judge_engine",),
    writes=("second_scores",),
    limits=("scores.max_unread",),
    workload="judging",
)
def score_second(rows: Dataset, *, second_judge: JudgeSettings, seed: int, second_judge_engine: JudgePool) -> Dataset:
    """Add `second_scores`, aligned with `summaries`. Without `second_questions` a score has no answers."""
    if isinstance(second_judge_engine, Mapping):
        return score_by_jury(rows, second_judge, seed, second_judge_engine, anchored=True, prefix="second_")
    step = partial(_score_by_second_judge, scoring_step(make_judge(second_judge, seed), anchored=True))
    return second_judge_engine.map(rows, step, score_second.writes)


def _score_by_second_judge(score: EngineStep, engine: Engine, rows: list[Row]) -> list[Outcome]:
    second_rows = [row | {"questions": row["second_questions"]} for row in rows]
    return [
        outcome if isinstance(outcome, Skip) else {"second_scores": outcome["scores"], "tally": outcome["tally"]}
        for outcome in score(engine, second_rows)
    ]
