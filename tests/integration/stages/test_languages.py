"""A round without training in six languages: articles, questions, samples, scores, pairs. The models are scripted."""

import json
import re

import pytest

from judges.base import UNSURE, Question
from judges.cloze import ClozeJudge
from judges.text.languages import detect_language
from pipeline.config import run
from pipeline.config.hardware import EngineHardware
from pipeline.config.judging import JudgeSettings, Pairs, Questions
from pipeline.inference.pool import EnginePool
from pipeline.inference.scripted import ScriptedEngine
from pipeline.judging.factory import make_judge, reply_method
from pipeline.stages.articles import read_articles
from pipeline.stages.pairs import make_pairs
from pipeline.stages.questions import ask_questions
from pipeline.stages.scores import score_samples
from pipeline.stages.summaries import sample_summaries
from pipeline.storage.schema import to_dataset
from tests.languages import ARTICLES, SUMMARIES

pytestmark = pytest.mark.usefixtures("ray_cluster")

QUESTION_MARKS = {"zh": "？", "ja": "？", "ar": "؟"}
PREFERENCE = Pairs(preference="accuracy_only")
QUESTIONS = Questions(min_questions=4)
KNOWLEDGE = ClozeJudge(questions=15, options=5)


def pool(script):
    return EnginePool(lambda: ScriptedEngine(script), EngineHardware(batch_size=3))


def policy(prompt, sample):
    """A policy whose first sample is right, and whose second one has the facts of the article wrong."""
    text = prompt.messages[0]["content"].removeprefix("Summarize: ")
    (language,) = [language for language, article in ARTICLES.items() if article.strip() in text]
    return SUMMARIES[language][sample]


def llm_judge(prompt, sample):
    """A judge LLM that writes in the article's language, and knows what the cloze judge knows."""
    text = prompt.messages[0]["content"]
    if "<article>" in text:
        article = text.split("<article>\n")[1].split("\n</article>")[0]
        mark = QUESTION_MARKS.get(detect_language(article), "?")
        drafts = KNOWLEDGE.reply(KNOWLEDGE.ask_questions(article)).split("\n")
        shortest = sorted(drafts, key=len)[:5]  # a character is a token of the scripted engine
        return "\n".join(
            f"Q{number} {question}{mark} Answer {' | '.join(options)}"
            for number, (question, *options) in enumerate((line.split("\t") for line in shortest), 1)
        )
    passage = text.split("<passage>\n")[1].split("\n</passage>")[0]
    asked = []
    for block in text.split("\n\n"):
        if match := re.match(r"Q\d+ (.+)[?？؟]\n(?=A\. )", block.strip("\n")):
            options = [line[3:] for line in block.strip("\n").split("\n")[1:]]
            asked.append(Question(match[1], match[1], tuple(options), 0))
    answers = KNOWLEDGE.reply(KNOWLEDGE.ask_answers(passage, asked)).split("\n")
    return "\n".join(
        f"Q{number} {'Unsure' if answer == UNSURE else answer}" for number, answer in enumerate(answers, 1)
    )


def play_round(tmp_path, judge, script):
    """The rows with pairs, by language."""
    path = tmp_path / "articles.jsonl"
    path.write_text(
        "\n".join(json.dumps({"id": language, "text": text}) for language, text in ARTICLES.items()), encoding="utf-8"
    )
    settings = run.Articles(path=str(path), eval_fraction=0.3)
    rows = [row for table in read_articles(articles=settings) for row in table.to_pylist()]
    assert {row["article_id"]: row["skipped"] for row in rows} == dict.fromkeys(ARTICLES)
    articles = to_dataset([row | {"split": "train"} for row in rows])
    asked = ask_questions(articles, judge=judge, questions=QUESTIONS, seed=0, judge_engine=pool(script))
    sampled = sample_summaries(
        asked,
        "policy",
        summaries=run.Summaries(n=2, max_tokens=2000),
        policy=run.PolicySettings(model="none", instruction="Summarize: {article}"),
        seed=0,
        policy_engine=pool(policy),
    )
    scored = score_samples(sampled, judge=judge, seed=0, judge_engine=pool(script))
    return {row["article_id"]: row for row in make_pairs(scored, PREFERENCE).take_all()}


def test_the_cloze_judge_prefers_the_right_facts_in_every_language(tmp_path):
    judge = JudgeSettings(kind="cloze", questions=20)
    paired = play_round(tmp_path, judge, reply_method(make_judge(judge, 0)))
    for language in ARTICLES:
        row = paired[language]
        assert row["skipped"] is None, f"{language}: {row['skipped']}"
        assert [(pair["chosen"], pair["rejected"]) for pair in row["pairs"]] == [(0, 1)], language
        for score in row["scores"]:
            assert score["invalid_chars"] == 0 and 5 <= score["words"] < 200, language
            assert score["faults"]["other_language"] is None, language


def test_an_llm_judge_is_asked_and_read_in_every_language(tmp_path):
    paired = play_round(tmp_path, JudgeSettings(model="none", questions=10), llm_judge)
    for language in ARTICLES:
        row = paired[language]
        assert len(row["questions"]) >= 4, f"{language}: {row['dropped']}"
        assert all(score["unread"] == 0 for score in row["scores"]), language
    right, wrong = (sum(paired[language]["scores"][i]["correct"] for language in ARTICLES) for i in (0, 1))
    assert right > wrong
