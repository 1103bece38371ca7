"""The stages `questions` and `second_questions`: each judge asks questions about articles.

`questions` runs once, and with `articles.each_round=new` once per round, for the new articles of the round.
`second_questions` runs once. At the end of a run both run again, for the test articles. How questions are asked and
checked is in `judging/question_generation.py`.
"""

from collections.abc import Mapping
from functools import partial

from ray.data import Dataset

from judges.base import Judge, Skip
from pipeline.config.judging import JudgeSettings, Questions
from pipeline.inference.base import Engine
from pipeline.judging.factory import asks_questions, make_judge
from pipeline.judging.question_generation import generate_questions
from pipeline.judging.scoring.jury import JudgePool, ask_by_jury, ask_by_second_jury
from pipeline.stages.base import judge_contents, stage
from pipeline.storage.schema import Outcome, Row, map_rows


@stage(
    "questions",
    version=3,
    inputs=("rows",),
    settings=("judge", "questions", "seed"),
    contents=judge_contents("judge"),
    uses=("judge_engine",),
    writes=("questions", "dropped"),
    splits=("train", "eval"),
    limits=("questions.max_skipped",),
    workload="questions",
)
def ask_questions(
    rows: Dataset, *, judge: JudgeSettings, questions: Questions, seed: int, judge_engine: JudgePool
) -> Dataset:
    """Add the usable `questions` to each article, and the reason for each question that was `dropped`."""
    if isinstance(judge_engine, Mapping):
        return ask_by_jury(rows, judge, questions, seed, judge_engine)
    asking = make_judge(questions.drafting(judge), seed)
    if not asks_questions(asking):
        return map_rows(rows, _without_questions, ask_questions.writes)
    step = partial(generate_questions, asking, judge.questions, questions)
    return judge_engine.map(rows, step, ask_questions.writes)


def _without_questions(row: Row) -> Outcome:
    """The columns of an article for a judge that asks no questions."""
    return {"questions": [], "dropped": []}


@stage(
    "second_questions",
    version=2,
    inputs=("rows",),
    settings=("second_judge", "questions", "seed"),
    contents=judge_contents("second_judge"),
    uses=("second_judge_engine",),
    writes=("second_questions",),
    splits=("eval",),
    workload="questions",
)
def ask_second_questions(
    rows: Dataset, *, second_judge: JudgeSettings, questions: Questions, seed: int, second_judge_engine: JudgePool
) -> Dataset:
    """Add `second_questions` to each held-out article. An article with too few usable questions gets none and stays."""
    if isinstance(second_judge_engine, Mapping):
        return ask_by_second_jury(rows, second_judge, questions, seed, second_judge_engine)
    questions = questions.for_judge(second_judge)
    asking = make_judge(questions.drafting(second_judge), seed)
    if not asks_questions(asking):
        return map_rows(rows, lambda row: {"second_questions": []}, ask_second_questions.writes)
    step = partial(_generate_second_questions, asking, second_judge.questions, questions)
    return second_judge_engine.map(rows, step, ask_second_questions.writes)


def _generate_second_questions(
    judge: Judge, count: int, settings: Questions, engine: Engine, rows: list[Row]
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for generated in generate_questions(judge, count, settings, engine, rows):
        assert not isinstance(generated, Skip), "generate_questions puts the reason into the column `skipped`"
        too_few = bool(generated.get("skipped"))
        tally = generated["tally"] | {"articles with too few questions": int(too_few)}
        outcomes.append({"second_questions": [] if too_few else generated["questions"], "tally": tally})
    return outcomes
