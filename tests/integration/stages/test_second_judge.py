"""The stages of a second judge: its own questions, its own scores, and every article kept."""

import pytest

from judges.cloze import ClozeJudge
from pipeline.config import run
from pipeline.config.hardware import EngineHardware
from pipeline.inference.pool import EnginePool
from pipeline.inference.scripted import ScriptedEngine
from pipeline.stages.questions import ask_second_questions
from pipeline.stages.scores import score_second
from pipeline.storage.schema import to_dataset

SECOND = run.JudgeSettings(kind="cloze", questions=4)


ARTICLE = """Ana Santos leads Northwind. The firm hired 93 people in Lima last year. Ben Costa left Bluepeak.
Carla Weber spoke in Oslo. Dan Okafor paid 12 million to Ironwood. Eva Rossi saw 45 cars. Farid Khan bought 7 boats.
Grace Xu met 61 pilots, and Hugo Lopez met 88 more."""


@pytest.fixture(scope="module")
def judged(ray_cluster):
    """Two articles with summaries by two writers. One of the articles is too short to ask questions about."""
    pool = EnginePool(lambda: ScriptedEngine(ClozeJudge(4).reply), EngineHardware(batch_size=2))
    articles = [
        {"article_id": name, "article": text, "split": "eval", "questions": []}
        for name, text in (("rich", ARTICLE), ("poor", "Nothing happened."))
    ]
    settings = {"second_judge": SECOND, "seed": 0, "second_judge_engine": pool}
    asked = ask_second_questions(to_dataset(articles), questions=run.Questions(min_questions=3), **settings).take_all()
    columns = ("article_id", "article", "split", "questions", "second_questions")
    first = {"answers": ["A"], "correct": 1, "unread": 0, "words": 3, "invalid_chars": 0}
    rows = [
        {name: row[name] for name in columns}
        | {"writer": writer, "prompt_ids": [], "scores": [first]}
        | {"summaries": [{"text": text, "token_ids": [], "finish_reason": "stop"}]}
        for row in asked
        for writer, text in (("whole", row["article"]), ("nothing", "Nothing."))
    ]
    scored = score_second(to_dataset(rows), **settings).take_all()
    return asked, {(row["article_id"], row["writer"]): row for row in scored}


def test_second_judge_scores_by_its_own_questions(judged):
    asked, scored = judged
    assert {row["article_id"]: len(row["second_questions"]) for row in asked} == {"rich": 4, "poor": 0}
    assert all(row["skipped"] is None for row in asked), "the evaluation by the first judge needs all rows"
    assert scored["rich", "whole"]["second_scores"][0]["correct"] == 4
    assert scored["rich", "nothing"]["second_scores"][0]["correct"] == 0
    assert len(scored["poor", "whole"]["second_scores"][0]["answers"]) == 0
    assert scored["rich", "whole"]["scores"][0]["correct"] == 1, "the first judge's score stays"
