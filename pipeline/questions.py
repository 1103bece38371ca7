"""Questions about each article: asked once a run, checked before use.

Left out: how they are asked and checked (`asking.py`).
"""

from functools import partial

from ray.data import Dataset

from pipeline.config.run import JudgeSettings, Questions
from pipeline.inference.pool import EnginePool
from pipeline.judging.factory import make_judge
from pipeline.judging.question_generation import generate_questions
from pipeline.stage import stage


@stage(
    "questions",
    version=3,
    settings=("judge", "questions", "seed"),
    contents=("judge.model",),
    uses=("judge_engine",),
    writes=("questions", "dropped"),
    limits=("questions.max_skipped",),
)
def ask(rows: Dataset, *, judge: JudgeSettings, questions: Questions, seed: int, judge_engine: EnginePool) -> Dataset:
    """Add `questions` to each article, and the reason for each one `dropped`."""
    return judge_engine.map(
        rows, partial(generate_questions, make_judge(judge, seed), judge.questions, questions), ask.writes
    )
