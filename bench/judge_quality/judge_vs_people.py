"""Correlates a judge's scores with human ratings: `python -m bench.judge_quality.judge_vs_people CONFIG FILE`.

FILE holds articles, summaries and human ratings with SummEval's columns (Fabbri et al., 2021), as JSONL, JSON, Parquet
or hf:NAME:SPLIT (hf:mteb/summeval:test). It has one of two forms:

- One row per article: id, text, machine_summaries, and relevance, consistency, coherence and fluency, each a list
  aligned with machine_summaries.
- One row per summary: id, text, decoded (or summary), and either the ratings or expert_annotations, whose mean is used.

A rating that no row has is not reported.

The judge of CONFIG asks questions about each article and answers them from each summary, in this process and without
Ray. The ratings are correlated with three scores of a summary: the share of right answers, the number of words, and its
net wins by `pairs.preference` (the number of the article's other summaries that it is preferred to, minus the number
that are preferred to it, divided by the number of others). Correlations are Spearman's rho and Kendall's tau-b, as a
mean over the articles in which both sides vary, and pooled over all summaries. The table also has the share of pairs
that the preference and people rank alike, among the pairs without a tie. Summaries with an unread answer and articles
with too few questions are left out and counted.

`people_sample.jsonl` in this folder is for trying the script: newsroom articles with invented ratings.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from bench.print_table import print_table
from pipeline.config import Config, UserError
from pipeline.config.loader import load_config
from pipeline.data import readers
from pipeline.execution.progress import Display, StageProgress
from pipeline.execution.resources import provide_resources
from pipeline.inference.base import Engine
from pipeline.judging.factory import make_judge
from pipeline.judging.preference import load_preference
from pipeline.judging.question_generation import generate_questions
from pipeline.judging.scoring.exam import score_summaries

TOO_FEW_QUESTIONS, UNREAD = "articles with too few questions", "summaries with an answer unread"
RATINGS = ("relevance", "consistency", "coherence", "fluency")
BATCH = 64  # articles per call of the engine


@dataclass
class RatedArticle:
    """An article with its summaries and, aligned with them, the human ratings of each summary by name."""

    article_id: str
    article: str
    summaries: list[str] = field(default_factory=list)
    ratings: list[dict[str, float]] = field(default_factory=list)


def main() -> None:
    options = _options()
    settings = load_config(options.config, options.overrides)
    hidden_progress = StageProgress(Display().console, None, "", None, "")
    resources = provide_resources(("judge_engine",), settings, {}, "", "judge_vs_people", hidden_progress)
    result = compare(read_ratings(options.file), settings, resources["judge_engine"].make_engine())
    print_table(
        f"{result['judge']} and people, on {result['summaries']:,} summaries of {result['articles']:,} articles",
        table_rows(result),
    )
    for reason, count in result["left_out"].items():
        print(f"left out: {count:,} {reason}")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def read_ratings(place: str) -> list[RatedArticle]:
    """Read articles with their rated summaries, in the order of the file.

    Raises:
        UserError: the file does not exist or is empty, a row lacks a column, or its lists are not aligned.
    """
    articles: dict[str, RatedArticle] = {}
    for number, row in enumerate(readers.read_rows(place, "FILE"), 1):
        for text, summary, ratings in _rated_summaries(row, f"{place}, row {number}"):
            article = articles.setdefault(str(row["id"]), RatedArticle(str(row["id"]), text))
            article.summaries.append(summary)
            article.ratings.append(ratings)
    if not articles:
        raise UserError(f"{place} has no rows")
    return list(articles.values())


def _rated_summaries(row: Mapping[str, Any], where: str) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield (article, summary, ratings) for each summary of a row. `where` names the row in errors."""
    summaries = row.get("machine_summaries") or [row.get("decoded") or row.get("summary")]
    if "id" not in row or not isinstance(row.get("text"), str) or not all(isinstance(s, str) for s in summaries):
        raise UserError(
            f"{where} has the columns {', '.join(row)}; it must have id, text, and machine_summaries, decoded or "
            "summary (join SummEval's own file with the articles first, as its README says)"
        )
    experts = row.get("expert_annotations")
    lists: dict[str, list[float]] = {}
    for name in RATINGS:
        if experts:
            lists[name] = [float(np.mean([expert[name] for expert in experts]))]
        elif row.get(name) is not None:
            lists[name] = row[name] if isinstance(row[name], list) else [row[name]]
    if not lists or any(len(values) != len(summaries) for values in lists.values()):
        counts = ", ".join(f"{len(values)} of {name}" for name, values in lists.items()) or "none"
        raise UserError(f"{where} has {len(summaries)} summaries and ratings {counts}; each summary needs one")
    for i, summary in enumerate(summaries):
        yield row["text"], summary, {name: float(values[i]) for name, values in lists.items()}


def compare(articles: Sequence[RatedArticle], settings: Config, engine: Engine) -> dict[str, Any]:
    """Judge the summaries and correlate the scores with the ratings.

    Returns:
        the judge, the preference and counts, and by name of rating (and `mean` of all four):
        `correlations`: for each of `judge`, `words` and `preference`: `spearman` and `kendall`, each with
        `per_article` and `pooled` (None if a side is constant) and `articles`, the number of articles in the mean;
        `pairs_alike`: the `share` ranked alike and the number of `pairs`.
    """
    judge = make_judge(settings.judge, settings.seed)
    left_out = {TOO_FEW_QUESTIONS: 0, UNREAD: 0}
    scored_articles: list[dict[str, np.ndarray]] = []
    for begin in range(0, len(articles), BATCH):
        batch = articles[begin : begin + BATCH]
        rows = [{"article_id": rated.article_id, "article": rated.article} for rated in batch]
        replies = generate_questions(judge, settings.judge.questions, settings.questions, engine, rows)
        questions = {
            i: reply for i, reply in enumerate(replies) if isinstance(reply, dict) and not reply.get("skipped")
        }
        left_out[TOO_FEW_QUESTIONS] += len(batch) - len(questions)
        to_score = [
            rows[i] | asked | {"summaries": [{"text": text} for text in batch[i].summaries]}
            for i, asked in questions.items()
        ]
        for i, scored in zip(questions, score_summaries(judge, engine, to_score), strict=True):
            assert isinstance(scored, dict), "an article with ratings has summaries"
            scores = scored["scores"]
            read = [n for n, score in enumerate(scores) if not score["unread"]]
            left_out[UNREAD] += len(scores) - len(read)
            scored_articles.append(_columns([scores[n] for n in read], [batch[i].ratings[n] for n in read], settings))
    names = [name for name in (*RATINGS, "mean") if any(name in columns for columns in scored_articles)]
    return {
        "judge": settings.judge.name,
        "preference": settings.pairs.preference,
        "articles": len(scored_articles),
        "summaries": sum(len(columns["words"]) for columns in scored_articles),
        "left_out": left_out,
        "correlations": {
            name: {score: _correlations(scored_articles, score, name) for score in ("judge", "words", "preference")}
            for name in names
        },
        "pairs_alike": {name: _share_ranked_alike(scored_articles, name) for name in names},
    }


def _columns(scores: list[dict[str, Any]], ratings: list[dict[str, float]], settings: Config) -> dict[str, np.ndarray]:
    """Scores and ratings of an article's n summaries.

    Returns:
        arrays of (n,): judge, words, preference, and each rating that all summaries have; verdicts is (n, n).
    """
    rule = load_preference(settings.pairs)
    verdicts = np.array([[rule(a, b, settings.pairs) for b in scores] for a in scores])
    verdicts = verdicts.reshape(len(scores), len(scores))  # also for no scores
    columns = {
        "judge": np.array([score["correct"] / max(1, len(score["answers"])) for score in scores]),
        "words": np.array([score["words"] for score in scores]),
        # Divided by the number of other summaries; otherwise articles with more summaries would dominate when pooled.
        "preference": verdicts.sum(1) / max(1, len(scores) - 1),
        "verdicts": verdicts,
    }
    for name in RATINGS:
        if ratings and all(name in rating for rating in ratings):
            columns[name] = np.array([rating[name] for rating in ratings])
    if rated := [columns[name] for name in RATINGS if name in columns]:
        columns["mean"] = np.mean(rated, 0)
    return columns


def _correlations(scored_articles: list[dict[str, np.ndarray]], score: str, rating: str) -> dict[str, Any]:
    rated = [(columns[score], columns[rating]) for columns in scored_articles if rating in columns]
    result: dict[str, Any] = {}
    for name, measure in (("spearman", spearman), ("kendall", kendall)):
        by_article = [value for value in (measure(a, b) for a, b in rated) if value is not None]
        pooled = measure(*(np.concatenate(side) for side in zip(*rated, strict=True))) if rated else None
        mean = float(np.mean(by_article)) if by_article else None
        result[name] = {"per_article": mean, "pooled": pooled, "articles": len(by_article)}
    return result


def _share_ranked_alike(scored_articles: list[dict[str, np.ndarray]], rating: str) -> dict[str, Any]:
    """The share of pairs ranked alike, among pairs within an article that are no tie by preference or by rating."""
    agreements = [
        columns["verdicts"][i, j] * np.sign(columns[rating][i] - columns[rating][j])
        for columns in scored_articles
        if rating in columns
        for i, j in combinations(range(len(columns["words"])), 2)
    ]
    ranked = [agreement for agreement in agreements if agreement]
    share = float(np.mean([agreement > 0 for agreement in ranked])) if ranked else None
    return {"share": share, "pairs": len(ranked)}


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rho of two (n,): Pearson's r of their ranks; equal values share a rank. None if a side is constant."""
    ranks = [_ranks(np.asarray(side, float)) for side in (a, b)]
    x, y = (rank - rank.mean() for rank in ranks) if len(a) else ranks
    norm = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / norm if norm else None


def kendall(a: np.ndarray, b: np.ndarray) -> float | None:
    """Kendall's tau-b of two (n,), which corrects for ties (Kendall, 1945). None if a side is constant."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    concordance = untied_a = untied_b = 0.0
    # Row by row: full matrices would take 20 MB per side at n = 1,600, and a hundred times that at ten times n.
    for i in range(len(a)):
        sign_a, sign_b = np.sign(a[i] - a[i + 1 :]), np.sign(b[i] - b[i + 1 :])
        concordance += float((sign_a * sign_b).sum())
        untied_a += float((sign_a != 0).sum())
        untied_b += float((sign_b != 0).sum())
    return concordance / float(np.sqrt(untied_a * untied_b)) if untied_a and untied_b else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last_ranks = np.cumsum(counts)
    return (last_ranks - (counts - 1) / 2)[group]


def table_rows(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """A line for each rating and each of judge, words and preference."""
    lines = []
    for rating, scores in result["correlations"].items():
        for score, values in scores.items():
            line = {"rating": rating, "score": result["preference"] if score == "preference" else score}
            for name in ("spearman", "kendall"):
                line |= {f"{name}, per article": _number(values[name]["per_article"])}
                line |= {f"{name}, pooled": _number(values[name]["pooled"])}
            alike = result["pairs_alike"][rating]
            line["pairs ranked alike"] = ""
            if score == "preference" and alike["pairs"]:
                line["pairs ranked alike"] = f"{alike['share']:.1%} of {alike['pairs']:,}"
            lines.append(line)
    return lines


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "config", metavar="CONFIG", help="a run's configuration, of which judge, questions and pairs are used"
    )
    parser.add_argument("file", metavar="FILE", help="articles, summaries and ratings")
    parser.add_argument("overrides", metavar="NAME=VALUE", nargs="*", help="such as judge.model=… judge.questions=10")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
