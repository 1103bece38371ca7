"""A second judge: a second opinion on what the evaluations found, by questions of its own.

The first judge's questions, answers and habits are what training has learned to please; a judge of another kind has
others. It asks about held-out articles once a run, and scores the summaries of every evaluation. Left out: what its
win rate is beside the first's (`report.py`).
"""

from functools import partial

from ray.data import Dataset

from judges.base import Judge, Skip
from pipeline.config.run import JudgeSettings, Questions
from pipeline.inference.base import Engine
from pipeline.inference.pool import EnginePool
from pipeline.judging.factory import make_judge
from pipeline.judging.question_generation import generate_questions
from pipeline.judging.scoring import score_summaries
from pipeline.stage import stage
from pipeline.storage.schema import Outcome, Row


@stage(
    "second_questions",
    version=2,
    settings=("second_judge", "questions", "seed"),
    contents=("second_judge.model",),
    uses=("second_engine",),
    writes=("second_questions",),
    split="eval",
)
def ask_second(
    rows: Dataset, *, second_judge: JudgeSettings, questions: Questions, seed: int, second_engine: EnginePool
) -> Dataset:
    """Add `second_questions` to each held-out article: none where there are too few good ones, and the row is kept."""
    step = partial(_ask, make_judge(second_judge, seed), second_judge.questions, questions)
    return second_engine.map(rows, step, ask_second.writes)


def _ask(judge: Judge, count: int, settings: Questions, engine: Engine, rows: list[Row]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for said in generate_questions(judge, count, settings, engine, rows):
        assert not isinstance(said, Skip), "what is skipped has its reason among its columns"
        too_few = bool(said.get("skipped"))
        tally = said["tally"] | {"articles with too few questions": int(too_few)}
        outcomes.append({"second_questions": [] if too_few else said["questions"], "tally": tally})
    return outcomes


@stage(
    "second_scores",
    version=2,
    settings=("second_judge", "seed"),
    contents=("second_judge.model",),
    uses=("second_engine",),
    writes=("second_scores",),
    limits=("scores.max_unread",),
)
def judge_second(rows: Dataset, *, second_judge: JudgeSettings, seed: int, second_engine: EnginePool) -> Dataset:
    """Add `second_scores` to the rows of an evaluation, aligned with `summaries`; of no questions come no answers."""
    return second_engine.map(rows, partial(_score, make_judge(second_judge, seed)), judge_second.writes)


def _score(judge: Judge, engine: Engine, rows: list[Row]) -> list[Outcome]:
    asked = [row | {"questions": row["second_questions"]} for row in rows]
    return [
        said if isinstance(said, Skip) else {"second_scores": said["scores"], "tally": said["tally"]}
        for said in score_summaries(judge, engine, asked)
    ]
