"""Tests `rondo judge-eval` as a whole: judges of both kinds, that agree with people or not, and the command."""

import json

import numpy as np
import pytest

from jobs.judge.agreement import JudgedArticle, measure_agreement
from jobs.judge.correlation import Bootstrap
from jobs.judge.evaluate import evaluate, evaluate_judge, tables
from jobs.judge.plot import draw_agreement
from jobs.judge.ratings import HumanRatings, RatedArticle, read_human_ratings
from jobs.judge.scored_articles import Candidates, open_judge, score_articles
from judges.base import Judgement
from judges.cloze import ClozeJudge
from pipeline.config import UserError
from pipeline.config.loader import load_config
from pipeline.inference.scripted import ScriptedEngine
from tests.helpers.paths import ROOT

SAMPLE = ROOT / "bench/judge_quality/people_sample.jsonl"
CONFIG = ROOT / "configs/articles_cpu.yaml"


class OddWords:
    """A scoring judge without a model: the number of words, but no value for text that ends in "?", NaN for "!"."""

    engine = "none"

    def __init__(self, seed: int):
        pass

    def ask_scores(self, article, summaries, order=0):
        return []

    def read_scores(self, article, summaries, replies, order=0):
        special = {"?": None, "!": float("nan")}
        return [Judgement(special.get(text[-1], float(len(text.split())))) for text in summaries]


def no_engine():
    return ScriptedEngine(lambda prompt, sample: pytest.fail("the judge makes no prompts"))


def judge_words(articles, overrides=()):
    """The result of a judge whose value is the number of words."""
    names = list(dict.fromkeys(name for a in articles for ratings in a.ratings for name in ratings))
    raters = {
        name: sorted({r for a in articles for ratings in a.ratings for r in ratings.get(name, {})}) for name in names
    }
    settings = load_config(
        CONFIG, [f"judge.kind={OddWords.__module__}:OddWords", "pairs.preference=higher_score", *overrides]
    )
    return evaluate(HumanRatings(articles, names, raters, {}), settings, OddWords(0), no_engine())


def rated(number, ratings, systems=None):
    """An article whose summary i has i + 1 words, with ratings by rater."""
    article = RatedArticle(str(number), f"Article {number}.")
    for i, by_rater in enumerate(ratings):
        named = {str(r): float(rating) for r, rating in enumerate(by_rater)}
        article.add(" ".join(["word"] * (i + 1)), systems[i] if systems else None, {"overall": named})
    return article


def test_ratings_by_number_of_facts_agree_with_a_judge_that_asks_questions():
    """Ratings grow with the number of sentences in a summary. One article is too short for questions."""
    view = read_human_ratings(str(SAMPLE), limit=4)
    view.names, view.raters = ["relevance"], {"relevance": ["1"]}
    for article in view.articles:
        sentences = article.article.split(". ")
        article.texts = [". ".join(sentences[:n]) for n in (1, 6, 12, len(sentences))]
        article.ratings = [{"relevance": {"1": float(n)}} for n in range(4)]
    view.articles[3].article = "Nothing to ask."
    settings = load_config(
        CONFIG, ["pairs.preference=accuracy_only", "pairs.min_margin=0", "questions.min_questions=4"]
    )
    judge = ClozeJudge(settings.judge.questions, settings.judge.options, settings.seed)
    result = evaluate(view, settings, judge, ScriptedEngine(judge.reply))
    assert (result["articles"], result["summaries"], result["systems"], result["raters"]) == (3, 12, 0, 1)
    assert result["left_out"] == {"articles: under 4 good questions": 1}
    relevance = result["ratings"]["relevance"]
    assert set(result["ratings"]) == {"relevance"} and relevance["people"] is None
    assert relevance["scores"]["words"]["per_article"]["spearman"]["value"] == pytest.approx(1)
    assert relevance["scores"]["judge"]["per_article"]["kendall"]["value"] > 0.8
    assert relevance["scores"]["judge"]["per_article"]["kendall"]["n"] == 3
    assert relevance["scores"]["preference"]["pairs"]["alike"]["value"] == 1
    assert "system" not in relevance["scores"]["judge"] and "soft" not in relevance["scores"]


def test_a_scoring_judge_agrees_with_raters_by_system_and_in_pairs():
    articles = [rated(n, [(1, 2), (2, 2), (4, 3), (5, 5)], ["M1", "M2", "M3", "M4"]) for n in range(5)]
    result = judge_words(articles)
    overall = result["ratings"]["overall"]
    judge = overall["scores"]["judge"]
    for level in ("per_article", "pooled", "system"):
        assert judge[level]["spearman"]["value"] == pytest.approx(1)
    assert [judge[level]["spearman"]["n"] for level in ("per_article", "pooled", "system")] == [5, 20, 4]
    assert (
        judge["pairs"]["alike"] == {"value": 1, "low": 1, "high": 1, "n": 30} and judge["pairs"]["ties"]["value"] == 0
    )
    assert judge["beyond_length"]["value"] is None  # the value is the number of words
    # Raters: 1, 2, 4, 5 and 2, 2, 3, 5. Of six pairs the second ties one, and ranks the others as the first does.
    assert overall["people"]["pairs_alike"] == {"value": 1, "low": 1, "high": 1, "n": 50}
    assert overall["people"]["per_article"]["spearman"]["value"] == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert result["systems"] == 4 and result["raters"] == 2


def shorter_text(a, b, settings):
    """A user's preference that reads the texts."""
    assert a["article"].startswith("Article") and a["finish_reason"] == "stop" and a["faults"]["copied"] is None
    return (len(a["text"]) < len(b["text"])) - (len(a["text"]) > len(b["text"]))


def test_a_preference_of_ones_own_reads_the_texts():
    articles = [rated(number, [(1,), (2,), (3,)]) for number in range(3)]
    result = judge_words(articles, [f"pairs.preference={__name__}:shorter_text"])
    scores = result["ratings"]["overall"]["scores"]
    assert scores["preference"]["per_article"]["spearman"]["value"] == -1
    assert scores["judge"]["per_article"]["spearman"]["value"] == 1


def test_unread_summaries_and_their_choices_are_left_out():
    article = rated(0, [(1,), (3,), (2,), (2,)])
    article.texts[1], article.texts[3] = "Is this a summary?", "It is!"
    article.choices = [(0, 1), (2, 0), (0, 2)]
    result = judge_words([article])
    assert result["summaries"] == 2 and result["left_out"] == {"summaries whose score could not be read": 2}
    choices = result["choices"]["judge"]  # of (2, 0) and (0, 2) the judge ranks one as people did
    assert (choices["alike"]["value"], choices["ties"]["n"]) == (0.5, 2)
    assert result["ratings"]["overall"]["scores"]["judge"]["per_article"]["pearson"]["n"] == 1


def test_ties_of_the_judge_are_counted_apart():
    article = RatedArticle("1", "Article.")
    texts = ("one two", "two words", "three words now")
    for text, rating in zip(texts, (1.0, 2.0, 3.0), strict=True):
        article.add(text, None, {"overall": {"1": rating}})
    pairs = judge_words([article])["ratings"]["overall"]["scores"]["judge"]["pairs"]
    assert (pairs["alike"]["value"], pairs["alike"]["n"], pairs["ties"]["value"]) == (1, 2, pytest.approx(1 / 3))
    assert pairs["with_half_ties"]["value"] == pytest.approx(2.5 / 3)


def test_a_mean_of_ratings_needs_the_same_raters_and_leaves_out_the_crowd():
    view = HumanRatings([], ["fluency", "relevance", "fluency (crowd)"], {}, {})
    article = RatedArticle("1", "Article.")
    for words, number in ((1, 2.0), (2, 4.0)):
        article.add("w " * words, None, {"fluency": {"1": number}, "relevance": {"1": 1.0}})
    view.raters = {"fluency": ["1"], "relevance": ["1"], "fluency (crowd)": ["1", "2"]}
    settings = load_config(CONFIG, ["pairs.preference=higher_score"])
    view.articles = [article]
    result = evaluate(view, settings, OddWords(0), no_engine())
    assert set(result["ratings"]) == {"fluency", "relevance", "fluency (crowd)", "mean"}
    assert result["points"]["mean"] == [(-0.5, -0.5), (0.5, 0.5)]
    assert result["points"]["fluency (crowd)"] == []


def test_nothing_to_judge_is_refused_in_one_line():
    view = read_human_ratings(str(SAMPLE), limit=2)
    settings = load_config(CONFIG, ["questions.min_questions=5"])
    judge = ClozeJudge(5, 5, 0)
    with pytest.raises(UserError, match="cloze could use none of 2 articles .*try questions.min_questions=1"):
        evaluate(view, settings, judge, ScriptedEngine(lambda prompt, sample: ""))


def test_a_measure_without_articles_is_undefined():
    empty = JudgedArticle(
        {name: np.empty(0) for name in ("judge", "words", "preference")},
        {name: np.empty((0, 0)) for name in ("judge", "words", "preference")},
        [],
        {"overall": np.empty((0, 1))},
        [],
    )
    result = measure_agreement([empty], ["overall"], Bootstrap(1, 100))
    scores = result["ratings"]["overall"]["scores"]["judge"]
    assert scores["pooled"]["kendall"] == {"value": None, "low": None, "high": None, "n": 0}
    assert result["choices"] == {}


def test_the_command_prints_and_writes_results(tmp_path, capsys):
    out, plot = tmp_path / "out.json", tmp_path / "plot.png"
    evaluate_judge(
        str(CONFIG), str(SAMPLE), ["report.resamples=100"], ["relevance", "fluency"], None, str(out), str(plot)
    )
    result = json.loads(out.read_text())
    assert result["judge"] == "cloze" and set(result["ratings"]) == {"relevance", "fluency", "mean"}
    printed = capsys.readouterr().out
    assert "Spearman beyond words" in printed and "words alone" in printed and "higher_score" in printed
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_choices_alone_make_a_table_and_a_plot():
    article = rated(0, [(), ()])
    article.ratings, article.choices = [{}, {}], [(1, 0)]
    result = judge_words([article])
    ((title, lines),) = tables(result)
    assert title.startswith("Pairs") and lines[0]["alike"] == "100.0% [100.0%, 100.0%]"
    assert draw_agreement(result).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"plot": "plot.pdf"}, "--plot is 'plot.pdf': it should end in .png"),
        (
            {"out": "no/such/folder/out.json"},
            "--json is 'no/such/folder/out.json', which is a folder, or in a folder that",
        ),
        ({"file": "none.jsonl"}, "FILE is 'none.jsonl': no such file"),
        ({"overrides": ["judge.model=x"]}, "needs no model, and judge.model is set"),
        ({"overrides": ["pairs.preference=nothing:here"]}, "pairs.preference"),
    ],
)
def test_a_mistake_gives_one_line_before_anything_is_judged(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        evaluate_judge(**({"path": str(CONFIG), "file": str(SAMPLE)} | arguments))
    assert "\n" not in str(error.value)


def test_making_a_judge_engine_outside_ray_does_not_start_ray(monkeypatch):
    import ray

    import pipeline.inference.vllm
    from jobs.judge.scored_articles import open_judge

    monkeypatch.setattr(pipeline.inference.vllm, "VllmEngine", lambda *args: args)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: pytest.fail("this call would start Ray"))
    _, engine = open_judge(load_config(ROOT / "configs/demo.yaml"))
    assert engine[0] == str(ROOT / "newsroom/models/judge")


def test_a_judge_drafts_as_many_questions_as_the_settings_say(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "jobs.judge.scored_articles.generate_questions",
        lambda judge, *others: asked.append(judge.questions) or [{"skipped": "enough"} for _ in others[-1]],
    )
    for draft in ("null", "30"):
        settings = load_config(CONFIG, [f"questions.draft={draft}"])
        judge, engine = open_judge(settings)
        score_articles(settings, judge, engine, [Candidates("a", "Text.", ("b",))])
    assert asked == [20, 30]
