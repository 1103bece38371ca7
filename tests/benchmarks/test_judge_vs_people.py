"""Tests the comparison of a judge with human ratings: correlations, both file formats, and a judge that agrees."""

import itertools
import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.judge_quality import judge_vs_people
from bench.judge_quality.judge_vs_people import RATINGS, compare, kendall, read_ratings, spearman
from judges.cloze import ClozeJudge
from pipeline.config import UserError
from pipeline.config.loader import load_config
from pipeline.inference.scripted import ScriptedEngine
from tests.helpers.paths import ROOT

SAMPLE = ROOT / "bench/judge_quality/people_sample.jsonl"
CONFIG = ROOT / "configs/articles_cpu.yaml"


@pytest.mark.parametrize(
    ("a", "b", "rho", "tau"),
    [
        ((1, 2, 3), (10, 20, 90), 1, 1),
        ((1, 2, 3), (3, 2, 1), -1, -1),
        ((1, 2, 3, 4), (1, 3, 2, 4), 0.8, 4 / 6),
        # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: rho = 4.5 / sqrt(4.5 * 5); tau-b = 5 / sqrt(5 * 6).
        ((1, 2, 2, 3), (1, 2, 3, 4), 4.5 / math.sqrt(22.5), 5 / math.sqrt(30)),
        ((1, 1, 1), (1, 2, 3), None, None),
        ((), (), None, None),
    ],
)
def test_correlations_equal_values_computed_by_hand(a, b, rho, tau):
    assert spearman(np.array(a), np.array(b)) == (rho if rho is None else pytest.approx(rho))
    assert kendall(np.array(a), np.array(b)) == (tau if tau is None else pytest.approx(tau))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9))
def test_kendall_equals_its_definition(points):
    a, b = zip(*points, strict=True)
    pairs = list(itertools.combinations(points, 2))
    alike = sum((x - u) * (y - v) > 0 for (x, y), (u, v) in pairs)
    unlike = sum((x - u) * (y - v) < 0 for (x, y), (u, v) in pairs)
    in_a, in_b = sum(x == u for (x, _), (u, _) in pairs), sum(y == v for (_, y), (_, v) in pairs)
    norm = math.sqrt((len(pairs) - in_a) * (len(pairs) - in_b))
    assert kendall(np.array(a), np.array(b)) == (pytest.approx((alike - unlike) / norm) if norm else None)


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 9)),
        min_size=2,
        max_size=9,
        unique_by=(lambda p: p[0], lambda p: p[1]),
    )
)
def test_spearman_without_ties_equals_its_formula(points):
    a, b = (np.array(side) for side in zip(*points, strict=True))
    d, n = a.argsort().argsort() - b.argsort().argsort(), len(a)
    assert spearman(a, b) == pytest.approx(1 - 6 * float((d**2).sum()) / (n * (n**2 - 1)))


def test_both_file_formats_give_the_same_articles(tmp_path):
    flat = tmp_path / "flat.jsonl"
    lines = []
    for row in map(json.loads, SAMPLE.read_text().splitlines()):
        for i, summary in enumerate(row["machine_summaries"]):
            experts = [{name: row[name][i] + shift for name in RATINGS} for shift in (-0.5, 0, 0.5)]
            lines.append({"id": row["id"], "text": row["text"], "decoded": summary, "expert_annotations": experts})
    flat.write_text("".join(json.dumps(line) + "\n" for line in lines))
    by_article, by_summary = read_ratings(str(SAMPLE)), read_ratings(str(flat))
    assert len(by_article) == len(by_summary) == 10
    for a, b in zip(by_article, by_summary, strict=True):
        assert (a.article_id, a.article, a.summaries) == (b.article_id, b.article, b.summaries)
        assert [rating == pytest.approx(other) for rating, other in zip(b.ratings, a.ratings, strict=True)] == [
            True
        ] * 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"id": 1, "text": "x"},
            "row 1 has the columns id, text; it must have id, text, and machine_summaries, decoded or",
        ),
        ({"id": 1, "decoded": "x"}, "has the columns id, decoded; it must have id, text"),
        ({"id": 1, "text": "x", "decoded": "y"}, "has 1 summaries and ratings none; each summary needs one"),
        (
            {"id": 1, "text": "x", "machine_summaries": ["y", "z"], "fluency": [1]},
            "2 summaries and ratings 1 of fluency",
        ),
    ],
)
def test_a_file_with_wrong_columns_is_refused(tmp_path, row, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        read_ratings(str(path))


def test_ratings_by_number_of_facts_agree_with_the_judge(tmp_path):
    """Ratings grow with the number of sentences in a summary. One article is too short for questions."""
    articles = read_ratings(str(SAMPLE))[:4]
    for rated in articles:
        sentences = rated.article.split(". ")
        rated.summaries = [". ".join(sentences[:n]) for n in (1, 6, 12, len(sentences))]
        rated.ratings = [{"relevance": float(n)} for n in range(4)]
    articles[3].article = "Nothing to ask."
    settings = load_config(CONFIG, ["pairs.preference=accuracy_only", "questions.min_questions=4"])
    judge = ClozeJudge(settings.judge.questions, settings.judge.options, settings.seed)
    result = compare(articles, settings, ScriptedEngine(judge.reply))
    assert (result["articles"], result["summaries"]) == (3, 12)
    assert result["left_out"]["articles with too few questions"] == 1
    relevance = result["correlations"]["relevance"]
    assert set(result["correlations"]) == {"relevance", "mean"} and result["correlations"]["mean"] == relevance
    assert relevance["words"]["spearman"]["per_article"] == pytest.approx(1)
    assert relevance["judge"]["kendall"]["per_article"] > 0.8
    assert relevance["judge"]["kendall"]["articles"] == 3
    assert result["pairs_alike"]["relevance"]["share"] == 1


def test_making_a_judge_engine_outside_ray_does_not_start_ray(monkeypatch):
    import ray

    import pipeline.inference.vllm
    from pipeline.execution.resources import provide_resources

    monkeypatch.setattr(pipeline.inference.vllm, "VllmEngine", lambda *args: args)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: pytest.fail("this call would start Ray"))
    config = load_config(ROOT / "configs/demo.yaml")
    pool = provide_resources(("judge_engine",), config, {}, "", "judge_vs_people", None)["judge_engine"]
    assert pool.make_engine()[0] == str(ROOT / "newsroom/models/judge")


def test_the_command_prints_and_writes_results(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["judge_vs_people", str(CONFIG), str(SAMPLE), "seed=1", "--json", str(out)])
    judge_vs_people.main()
    result = json.loads(out.read_text())
    assert result["judge"] == "cloze" and set(result["correlations"]) == {*RATINGS, "mean"}
    assert "pairs ranked alike" in capsys.readouterr().out
