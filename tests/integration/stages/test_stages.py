"""Each stage as a plain function over real Ray Data, with a scripted engine where an engine would be."""

import math
import random
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.show.tables import show_rows
from judges.base import LETTERS, UNSURE, Question, Sample
from judges.text.sentences import split_sentences
from pipeline.config import run
from pipeline.config.hardware import EngineHardware
from pipeline.evaluation.comparison import CountingSettings, compare_writers, single_summary_rows
from pipeline.inference.base import Reply
from pipeline.inference.pool import EnginePool
from pipeline.inference.scripted import ScriptedEngine
from pipeline.judging.factory import make_judge
from pipeline.judging.question_generation import generate_questions
from pipeline.judging.scoring.exam import soft_score
from pipeline.stages.pairs import make_pairs
from pipeline.stages.questions import ask_questions
from pipeline.stages.scores import score_heldout, score_samples
from pipeline.stages.summaries import (
    add_extracts,
    first_sentences,
    lead_baseline,
    sample_summaries,
    shorten,
    summarize_heldout,
    summarize_heldout_with_baselines,
)
from pipeline.storage.ledger import Ledger
from pipeline.storage.schema import to_dataset
from tests.helpers.tables import add_table

pytestmark = pytest.mark.usefixtures("ray_cluster")

POLICY = run.PolicySettings(model="none", instruction="Summarize: {article}")
JUDGE = run.JudgeSettings(model="none", questions=3, wording="plain")
NAMES = ["Ana", "Ben", "Carla", "Dan", "Eva"]


def pool(script, batch_size=3):
    return EnginePool(lambda: ScriptedEngine(script), EngineHardware(batch_size=batch_size))


def articles(count=8):
    """Article i says the values of its three facts; a judge can be scripted to look for them."""
    facts = [[random.Random(f"{i}{k}").choice(NAMES) for k in range(3)] for i in range(count)]
    return [
        {
            "article_id": f"a{i}",
            "article": " ".join(f"fact{k} is {fact[k]}." for k in range(3)),
            "split": "eval" if i % 4 == 3 else "train",
        }
        for i, fact in enumerate(facts)
    ]


def newsroom(prompt, sample=0):
    """A judge LLM's part: it writes a question for each fact, and answers from what the passage says."""
    text = prompt.messages[0]["content"]
    if "write 3 multiple-choice" in text:
        said = dict(part.split(" is ") for part in _body(text, "article").rstrip(".").split(". "))
        lines = [[name] + [n for n in NAMES if n != name] for name in said.values()]
        return "\n".join(f"Q{k + 1} What is fact{k}? Answer {' | '.join(line)}" for k, line in enumerate(lines))
    passage = _body(text, "passage")
    answers = []
    for number in (1, 2, 3):
        block = text.split(f"Q{number} What is ")[1]
        fact, options = block.split("?")[0], [line[3:] for line in block.split("\n")[1:6]]
        told = [name for name in NAMES if f"{fact} is {name}" in passage]
        answers.append(f"Q{number} {LETTERS[options.index(told[0])] if told else 'Unsure'}")
    return "\n".join(answers)


def _body(text, tag):
    return text.split(f"<{tag}>\n")[1].split(f"\n</{tag}>")[0]


def asked(rows=None, script=newsroom, **settings):
    made = ask_questions(
        to_dataset(rows or articles()),
        judge=JUDGE,
        questions=run.Questions(min_questions=2, **settings),
        seed=0,
        judge_engine=pool(script),
    )
    return sorted(made.take_all(), key=lambda row: row["article_id"])


def plain(row):
    """Arrays that Ray Data makes of lists, as lists."""
    if isinstance(row, dict):
        return {name: plain(value) for name, value in row.items()}
    return [plain(value) for value in row] if isinstance(row, list | np.ndarray) else row


def test_questions_know_their_answers():
    for row in map(plain, asked()):
        assert row["skipped"] is None
        assert len(row["questions"]) == 3
        for k, question in enumerate(row["questions"]):
            assert f"fact{k} is {question['options'][question['answer']]}" in row["article"]


def test_a_question_the_judge_fails_on_the_whole_article_is_dropped():
    def forgetful(prompt, sample):
        return newsroom(prompt).replace("Q2 A", "Q2 Unsure").replace("Q2 B", "Q2 Unsure").replace("Q2 C", "Q2 Z")

    for row in map(plain, asked(script=forgetful)):
        unsure_or_unread = {"unsure from the whole article", "unread from the whole article"}
        assert len(row["questions"]) == 3 - len(row["dropped"])
        assert set(row["dropped"]) <= unsure_or_unread
    assert any(row["dropped"] for row in map(plain, asked(script=forgetful)))


def test_a_question_right_from_nothing_is_dropped():
    def guesses_the_first(prompt, sample):
        reply = newsroom(prompt)
        text = prompt.messages[0]["content"]
        if "<passage>\n\n</passage>" in text:
            return "Q1 A\nQ2 Unsure\nQ3 Unsure"
        return reply

    rows = list(map(plain, asked(script=guesses_the_first)))
    dropped = [row for row in rows if row["dropped"]]
    assert dropped
    assert all(row["dropped"] == ["right from nothing"] for row in dropped)
    assert all(row["questions"][0]["answer"] != 0 for row in rows if not row["dropped"])


def test_an_article_without_enough_questions_is_set_aside():
    rows = asked(script=lambda prompt, sample: "nothing of use")
    assert {row["skipped"] for row in rows} == {"under 2 good questions"}


def test_one_bad_article_never_costs_its_batch():
    def poisoned(prompt, sample):
        if "poison" in prompt.messages[0]["content"]:
            raise ValueError("prompt too long")
        return newsroom(prompt)

    rows = articles()
    rows[2]["article"] = "poison is Ana."
    assert [row["skipped"] for row in asked(rows, poisoned)] == [None, None, "prompt too long", *[None] * 5]


def sampled(rows, script, n=4):
    return sample_summaries(
        to_dataset(rows),
        "build-1",
        summaries=run.Summaries(n=n, max_tokens=60),
        policy=POLICY,
        seed=0,
        policy_engine=pool(script),
    )


def facts(prompt, sample):
    """A policy's part: sample i tells the first i facts."""
    told = prompt.messages[0]["content"].removeprefix("Summarize: ").split(". ")
    return ". ".join(told[:sample]) + " and that was all"


def test_summaries_are_kept_as_sampled():
    for row in map(plain, sampled(articles(), facts).take_all()):
        assert row["writer"] == "build-1"
        assert row["prompt_ids"] == [ord(c) + 1 for c in "Summarize: " + row["article"]]
        assert len(row["summaries"]) == 4
        for summary in row["summaries"]:
            if summary["finish_reason"] == "stop":
                assert summary["token_ids"] == [*(ord(c) + 1 for c in summary["text"]), 0]
            else:
                assert len(summary["token_ids"]) == 60


@pytest.mark.parametrize(("asked_for", "expected"), [(False, 3), (True, 8)])
def test_an_engine_gives_the_log_probabilities_of_its_first_batch_unasked(asked_for, expected):
    """vLLM takes them of all that runs beside a prompt that asks: one article in 16 made sampling a fifth slower."""
    engine = EnginePool(lambda: ScriptedEngine(facts), EngineHardware(batch_size=3), at_once=1)
    settings = run.Summaries(n=4, max_tokens=60, logprobs=asked_for)
    rows = sample_summaries(
        to_dataset(articles()), "b", summaries=settings, policy=POLICY, seed=0, policy_engine=engine
    ).take_all()
    known = [[summary["logp"] is not None for summary in row["summaries"]] for row in rows]
    assert known.count([True] * 4) == expected
    assert known.count([False] * 4) == 8 - expected


def test_a_row_keeps_every_column_it_came_with():
    with_questions = [
        {name: row[name] for name in ("article_id", "article", "split", "questions", "dropped")}
        for row in map(plain, asked())
    ]
    rows = {row["article_id"]: row for row in map(plain, sampled(with_questions, facts).take_all())}
    for before in with_questions:
        assert {name: rows[before["article_id"]][name] for name in before} == before


def scored(rows, script=newsroom):
    return score_samples(to_dataset(rows), judge=JUDGE, seed=0, judge_engine=pool(script))


@pytest.fixture(scope="module")
def judged():
    columns = ("article_id", "article", "split", "questions")
    rows = [{name: row[name] for name in columns} for row in map(plain, asked())]
    columns = (*columns, "writer", "prompt_ids", "summaries")
    rows = [{name: row[name] for name in columns} for row in map(plain, sampled(rows, facts).take_all())]
    return [plain(row) for row in scored(rows).take_all()]


def test_a_summary_is_scored_by_what_it_tells(judged):
    for row in judged:
        for told, (summary, score) in enumerate(zip(row["summaries"], row["scores"], strict=True)):
            assert score["words"] == len(summary["text"].split())
            assert score["unread"] == 0
            assert score["correct"] == min(told, 3) or summary["finish_reason"] == "length"
            assert score["answers"].count(UNSURE) == 3 - score["correct"]


def test_equal_summaries_are_judged_once():
    seen = []

    def counting(prompt, sample):
        seen.append(prompt)
        return newsroom(prompt)

    from pipeline.judging.factory import make_judge
    from pipeline.judging.scoring.exam import score_summaries

    row = plain(asked()[0]) | {"summaries": [{"text": text} for text in ("one", "two", " one ", "one")]}
    (outcome,) = score_summaries(make_judge(JUDGE, 0), ScriptedEngine(counting), [row])
    assert len(seen) == 2
    assert len(outcome["scores"]) == 4
    assert outcome["tally"]["judged"] == 2


def test_unread_is_not_wrong():
    row = plain(asked()[0]) | {"summaries": [{"text": "one"}]}
    from pipeline.judging.factory import make_judge
    from pipeline.judging.scoring.exam import score_summaries

    engine = ScriptedEngine(lambda prompt, sample: "Q1 A\ngibberish")
    (outcome,) = score_summaries(make_judge(JUDGE, 0), engine, [row])
    (score,) = outcome["scores"]
    assert score["answers"] == ["A", None, None]
    assert score["unread"] == 2
    assert outcome["tally"]["unread"] == 2


def test_a_soft_score_is_the_count_less_the_judges_doubts():
    row = plain(asked()[0]) | {"summaries": [{"text": "one"}]}
    from pipeline.judging.factory import make_judge
    from pipeline.judging.scoring.exam import score_summaries

    key = Question("", "", ("",) * 5, row["questions"][0]["answer"]).letter
    other = "A" if row["questions"][1]["answer"] else "B"
    engine = ScriptedEngine(lambda prompt, sample: f"Q1 {key}\nQ2 {other}\nQ3 what?")
    for logprobs in (True, False):
        judge = make_judge(JUDGE.model_copy(update={"logprobs": logprobs}), 0)
        (score,) = score_summaries(judge, engine, [row])[0]["scores"]
        assert (score["answers"], score["correct"]) == ([key, other, None], 1)
        if logprobs:
            # A token a character, of 1 nat each: of the first line also its end; the second's opens it.
            assert score["answer_logps"] == [-5.0, -5.0, None]
            assert score["soft"] == pytest.approx(math.exp(-5))
        else:
            assert score["answer_logps"] is score["soft"] is None


def test_show_tells_the_soft_score_where_there_is_one(capsys, tmp_path):
    score = {"answers": ["A", None], "correct": 1, "words": 7}
    row = {"article_id": "a", "split": "train", "article": "An article.", "summaries": [], "scores": []}
    for soft in ({}, {"soft": None}, {"soft": 0.8125}):
        row["summaries"].append({"text": "one", "finish_reason": "stop"})
        row["scores"].append(score | soft)
    add_table(Ledger(str(tmp_path)), "scores", [row])
    show_rows(str(tmp_path), "scores", 1, None)
    said = [line.strip() for line in capsys.readouterr().out.splitlines() if "right" in line]
    plain_line = "summary {}  1 right (A unread), 7 words"
    assert said == [plain_line.format(0), plain_line.format(1), "summary 2  1 right (A unread), soft 0.81, 7 words"]


@given(st.lists(st.tuples(st.booleans(), st.floats(-30, 1e-6) | st.none()), max_size=10))
def test_a_soft_score_is_never_above_the_count(answers):
    right, logps = [hit for hit, _ in answers], [logp for _, logp in answers]
    assert 0 <= soft_score(right, logps) <= sum(right)


def test_pairs_prefer_what_the_judge_preferred(judged):
    settings = run.Pairs(threshold=3, min_words=1)
    rows = [{k: v for k, v in row.items() if k not in ("skipped", "tally")} for row in judged]
    made = [plain(row) for row in make_pairs(to_dataset(rows), settings).take_all()]
    assert all(row["skipped"] is None for row in made)
    for row in made:
        for p in row["pairs"]:
            assert row["scores"][p["chosen"]]["correct"] > row["scores"][p["rejected"]]["correct"]


def examined(sitting=summarize_heldout, **extra):
    columns = ("article_id", "article", "split", "questions")
    rows = [{name: row[name] for name in columns} for row in map(plain, asked())]
    engine = pool(lambda prompt, sample: facts(prompt, 2))
    written = sitting(to_dataset(rows), "build-1", max_tokens=60, policy=POLICY, seed=0, policy_engine=engine, **extra)
    made = score_heldout(written, ask_again=0.0, judge=JUDGE, seed=0, judge_engine=pool(newsroom))
    return [plain(row) for row in made.take_all()]


def test_evaluation_is_one_greedy_summary_an_article():
    rows = examined()
    assert len(rows) == 8
    assert all(len(row["summaries"]) == len(row["scores"]) == 1 for row in rows)
    assert all(row["scores"][0]["correct"] == 2 for row in rows)


def test_baselines_are_judged_like_the_policy():
    rows = examined(summarize_heldout_with_baselines, baselines=run.Baselines(lead_sentences=1, shorten_to=0.5))
    assert len({row["article_id"] for row in rows}) == len(rows) == 8
    base, led, short = (single_summary_rows(rows, place) for place in range(3))
    assert all(len(row["summaries"]) == len(row["scores"]) == 1 for row in (*base, *led, *short))
    assert [row["scores"][0]["correct"] for row in base] == [2] * 8
    assert [row["summaries"][0]["text"] for row in led] == [first_sentences(row["article"], 1) for row in rows]
    assert [row["scores"][0]["correct"] for row in led] == [1] * 8
    for whole, cut in zip(base, short, strict=True):
        assert cut["summaries"][0]["text"] == shorten(whole["summaries"][0]["text"], 0.5)
        assert cut["scores"][0]["words"] == whole["scores"][0]["words"] // 2


def test_a_cut_off_summary_made_shorter_is_cut_off_too():
    engine = pool(lambda prompt, sample: "Ana led it.")
    settings = {"policy": POLICY, "seed": 0, "policy_engine": engine, "baselines": run.Baselines()}
    for tokens, ends in ((5, ["length", "stop", "length"]), (50, ["stop"] * 3)):
        written = summarize_heldout_with_baselines(to_dataset(articles(1)), "w", max_tokens=tokens, **settings)
        (row,) = written.take_all()
        assert [summary["finish_reason"] for summary in row["summaries"]] == ends


def test_a_summary_cut_off_never_wins():
    def row(finish_reason, correct, words):
        scores = [{"correct": correct, "words": words, "unread": 0}]
        summaries = [{"text": "", "finish_reason": finish_reason}]
        return {"article_id": "a", "article": "", "summaries": summaries, "scores": scores}

    long, short = row("stop", 4, 30), row("length", 4, 5)
    for ours, theirs, wins, losses in ((short, long, 0, 0), (long, short, 0, 0), (row("stop", 4, 5), long, 1, 0)):
        for rate in compare_writers([ours], [theirs], CountingSettings(run.Pairs(), run.Report(), 0)).values():
            assert (rate.wins, rate.losses) == (wins, losses)


def test_an_unread_answer_leaves_its_article_out_of_the_comparison():
    read = {"article_id": "a", "article": "", "summaries": [{"text": "", "finish_reason": "stop"}]}
    ours = read | {"scores": [{"correct": 4, "words": 9, "unread": 1}]}
    theirs = read | {"scores": [{"correct": 0, "words": 9, "unread": 0}]}
    assert compare_writers([ours], [theirs], CountingSettings(run.Pairs(), run.Report(), 0)) == {
        "strict": None,
        "reference": None,
    }


def test_a_question_cut_off_is_not_used():
    lines = "\n".join(f"Q{i} Who {i}? Answer Ana | Ben | Carla | Dan | Ev" for i in (1, 2))
    settings = run.Questions(check=False, min_questions=1)
    for finish, count, reason in (("stop", 3, "question not written"), ("length", 2, "question cut off")):
        engine = mock.Mock()
        engine.generate.return_value = [Reply([1], [Sample(lines, [1], finish)])]
        (outcome,) = generate_questions(make_judge(JUDGE, 0), count, settings, engine, [{"article": "Ana."}])
        assert outcome["dropped"] == [reason]


def test_a_judge_without_a_policy_scores_random_extracts():
    """The lead comes first. A sentence is in every third extract, whichever other sentences are there."""
    sentences = [f"Sentence {i}." for i in range(9)]
    rows = [{"article_id": str(i), "article": " ".join(sentences), "split": "train"} for i in range(40)]
    made = add_extracts(lead_baseline(to_dataset(rows), lead_sentences=3), lead_sentences=3, seed=0).take_all()
    texts = [[summary["text"] for summary in row["summaries"]] for row in made]
    assert {of_article[0] for of_article in texts} == {"Sentence 0. Sentence 1. Sentence 2."}
    extracts = [set(split_sentences(text)) for of_article in texts for text in of_article[1:]]
    assert 220 < len(extracts) <= 240 and set().union(*extracts) == set(sentences), "an empty extract is none"
    held = np.array([[sentence in extract for sentence in sentences] for extract in extracts])
    assert np.abs(held.mean(0) - 1 / 3).max() < 0.1
    assert np.abs(np.corrcoef(held.T) - np.eye(9)).max() < 0.25
    (short,) = add_extracts(
        lead_baseline(to_dataset([{"article_id": "a", "article": "One", "split": "train"}]), lead_sentences=3),
        lead_sentences=3,
        seed=0,
    ).take_all()
    assert {summary["text"] for summary in short["summaries"]} == {"One"}


def test_lead_and_shorten():
    assert first_sentences("One. Two! Three? Four.", 3) == "One. Two! Three?"
    assert (
        first_sentences("He met Dr. Lee in the U.S. on Monday. It rained.\nThen", 1)
        == "He met Dr. Lee in the U.S. on Monday."
    )
    assert first_sentences("今天下雨。你去吗？不去。", 2) == "今天下雨。你去吗？"
    assert first_sentences("आज बारिश है। कल धूप होगी। फिर", 2) == "आज बारिश है। कल धूप होगी।"
    assert shorten("a b c d e", 0.8) == "a b c d"
    assert shorten("今天下雨，不去。", 0.5) == "今天下"
    assert shorten("word", 0.5) == "word"
    assert shorten("", 0.5) == ""
