"""Questions about each article: asked once a run, checked before use.

Left out: how they are asked and checked (`asking.py`).
"""

from functools import partial

from ray.data import Dataset

from judges.base import Judge, Skip
from pipeline.config.run import JudgeSettings, Questions
from pipeline.inference.base import Engine
from pipeline.inference.pool import EnginePool
from pipeline.judging.factory import make_judge
from pipeline.judging.question_generation import generate_questions
from pipeline.stages.base import stage
from pipeline.storage.schema import Outcome, Row


@stage(
    "questions",
    version=3,
    settings=("judge", "questions", "seed"),
    contents=("judge.model",),
    uses=("judge_engine",),
    writes=("questions", "dropped"),
    limits=("questions.max_skipped",),
)
def ask_questions(
    rows: Dataset, *, judge: JudgeSettings, questions: Questions, seed: int, judge_engine: EnginePool
) -> Dataset:
    """Add `questions` to each article, and the reason for each one `dropped`."""
    return judge_engine.map(
        rows, partial(generate_questions, make_judge(judge, seed), judge.questions, questions), ask_questions.writes
    )


@stage(
    "second_questions",
    version=2,
    settings=("second_judge", "questions", "seed"),
    contents=("second_judge.model",),
    uses=("second_engine",),
    writes=("second_questions",),
    split="eval",
)
def ask_second_questions(
    rows: Dataset, *, second_judge: JudgeSettings, questions: Questions, seed: int, second_engine: EnginePool
) -> Dataset:
    """Add `second_questions` to each held-out article: none where there are too few good ones, and the row is kept."""
    step = partial(_ask, make_judge(second_judge, seed), second_judge.questions, questions)
    return second_engine.map(rows, step, ask_second_questions.writes)


def _ask(judge: Judge, count: int, settings: Questions, engine: Engine, rows: list[Row]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for said in generate_questions(judge, count, settings, engine, rows):
        assert not isinstance(said, Skip), "what is skipped has its reason among its columns"
        too_few = bool(said.get("skipped"))
        tally = said["tally"] | {"articles with too few questions": int(too_few)}
        outcomes.append({"second_questions": [] if too_few else said["questions"], "tally": tally})
    return outcomes
