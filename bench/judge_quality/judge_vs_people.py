"""Does the judge rank summaries as people do? `python -m bench.judge_quality.judge_vs_people CONFIG FILE`

FILE holds articles, summaries and people's ratings with SummEval's columns (Fabbri et al., 2021), as JSONL, JSON,
Parquet or hf:NAME:SPLIT (hf:mteb/summeval:test). Either a row an article: id, text, machine_summaries, and of
relevance, consistency, coherence and fluency a list aligned with them. Or a row a summary: id, text, decoded (or
summary), and the ratings themselves or expert_annotations, whose mean is taken. A rating that no row has is left out.

The judge is CONFIG's: it asks about each article and answers from each summary, in this process, without Ray.
Correlated with the ratings are the share that it finds right, the number of words, and the preference that is made of
both (`pairs.preference`: how many of the article's other summaries a summary is preferred to, less how many are to it).
Spearman's rho and Kendall's tau-b; the mean over articles (those where both sides differ at all), and pooled over all
summaries. Beside them, of the pairs that the preference and people both rank, the share that they rank alike. What is
left out is counted: summaries with an answer unread, articles with too few questions.

`people_sample.jsonl` beside this is for trying it: newsroom articles, and ratings that nobody gave.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from bench.print_table import show
from pipeline.config import Config, UserError
from pipeline.config.loader import load_config
from pipeline.data import readers
from pipeline.execution.progress import Display, StageProgress
from pipeline.execution.resources import provide_resources
from pipeline.inference.base import Engine
from pipeline.judging.factory import make_judge
from pipeline.judging.preference import load_preference
from pipeline.judging.question_generation import generate_questions
from pipeline.judging.scoring import score_summaries

RATINGS = ("relevance", "consistency", "coherence", "fluency")
BATCH = 64  # articles that the engine is given at a time


@dataclass
class Rated:
    """An article, its summaries, and people's ratings of each: a dict by name, aligned with `summaries`."""

    article_id: str
    article: str
    summaries: list[str] = field(default_factory=list)
    ratings: list[dict[str, float]] = field(default_factory=list)


def main() -> None:
    options = _options()
    settings = load_config(options.config, options.overrides)
    unseen = StageProgress(Display().console, None, "", None, "")
    pool = provide_resources(("judge_engine",), settings, {}, "", "judge_vs_people", unseen)["judge_engine"]
    result = compare(read(options.file), settings, pool.make_engine())
    show(
        f"{result['judge']} and people, on {result['summaries']:,} summaries of {result['articles']:,} articles",
        rows(result),
    )
    for what, count in result["left_out"].items():
        print(f"left out: {count:,} {what}")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def read(place: str) -> list[Rated]:
    """Articles with their rated summaries, in the order of the file.

    Raises:
        UserError: no such file, a row without the columns, lists that are not aligned.
    """
    found: dict[str, Rated] = {}
    for number, row in enumerate(readers.read_rows(place, "FILE"), 1):
        for text, summary, ratings in _summaries(row, f"{place}, row {number}"):
            article = found.setdefault(str(row["id"]), Rated(str(row["id"]), text))
            article.summaries.append(summary)
            article.ratings.append(ratings)
    if not found:
        raise UserError(f"{place} holds no rows")
    return list(found.values())


def _summaries(row: Mapping[str, Any], where: str) -> Iterator[tuple[str, str, dict[str, float]]]:
    """(article, summary, ratings) of a row."""
    written = row.get("machine_summaries") or [row.get("decoded") or row.get("summary")]
    if "id" not in row or not isinstance(row.get("text"), str) or not all(isinstance(s, str) for s in written):
        raise UserError(
            f"{where} has {', '.join(row)}: it should have id, text, and machine_summaries, decoded or summary "
            "(SummEval's own file has to be paired with the articles first, as its README says)"
        )
    experts = row.get("expert_annotations")
    lists: dict[str, list[float]] = {}
    for name in RATINGS:
        if experts:
            lists[name] = [float(np.mean([expert[name] for expert in experts]))]
        elif row.get(name) is not None:
            lists[name] = row[name] if isinstance(row[name], list) else [row[name]]
    if not lists or any(len(values) != len(written) for values in lists.values()):
        counts = ", ".join(f"{len(values)} of {name}" for name, values in lists.items()) or "none"
        raise UserError(f"{where} has {len(written)} summaries and ratings {counts}: each summary should have one")
    for i, summary in enumerate(written):
        yield row["text"], summary, {name: float(values[i]) for name, values in lists.items()}


def compare(articles: Sequence[Rated], settings: Config, engine: Engine) -> dict[str, Any]:
    """The judge's scores beside people's ratings.

    Returns:
        counts; and `correlations`: for each rating, and `mean` of all four, and for each of `judge`, `words` and
        `preference`: `spearman` and `kendall`, each `per_article` and `pooled` (None where nothing varies), and
        `articles`, how many the mean is over; `pairs_alike` for each rating.
    """
    judge = make_judge(settings.judge, settings.seed)
    left_out = {"articles with too few questions": 0, "summaries with an answer unread": 0}
    found: list[dict[str, np.ndarray]] = []
    for begin in range(0, len(articles), BATCH):
        batch = articles[begin : begin + BATCH]
        rows = [{"article_id": rated.article_id, "article": rated.article} for rated in batch]
        asked = generate_questions(judge, settings.judge.questions, settings.questions, engine, rows)
        good = [i for i, said in enumerate(asked) if isinstance(said, dict) and not said.get("skipped")]
        left_out["articles with too few questions"] += len(batch) - len(good)
        judged = [rows[i] | asked[i] | {"summaries": [{"text": text} for text in batch[i].summaries]} for i in good]
        for i, said in zip(good, score_summaries(judge, engine, judged), strict=True):
            assert isinstance(said, dict), "an article with ratings has summaries"
            read = [n for n, score in enumerate(said["scores"]) if not score["unread"]]
            left_out["summaries with an answer unread"] += len(said["scores"]) - len(read)
            found.append(_columns([said["scores"][n] for n in read], [batch[i].ratings[n] for n in read], settings))
    names = [name for name in (*RATINGS, "mean") if any(name in columns for columns in found)]
    return {
        "judge": settings.judge.model or settings.judge.kind,
        "preference": settings.pairs.preference,
        "articles": len(found),
        "summaries": sum(len(columns["words"]) for columns in found),
        "left_out": left_out,
        "correlations": {
            name: {what: _correlations(found, what, name) for what in ("judge", "words", "preference")}
            for name in names
        },
        "pairs_alike": {name: _alike(found, name) for name in names},
    }


def _columns(scores: list[dict[str, Any]], ratings: list[dict[str, float]], settings: Config) -> dict[str, np.ndarray]:
    """Of an article's summaries, (n,) each: what the judge says, words, the preference, and each rating."""
    rule = load_preference(settings.pairs)
    verdicts = np.array([[rule(a, b, settings.pairs) for b in scores] for a in scores]).reshape(
        len(scores), len(scores)
    )
    columns = {
        "judge": np.array([score["correct"] / max(1, len(score["answers"])) for score in scores]),
        "words": np.array([score["words"] for score in scores]),
        # Over how many others: else an article with more summaries would count for more where all are pooled.
        "preference": verdicts.sum(1) / max(1, len(scores) - 1),
        "verdicts": verdicts,
    }
    for name in RATINGS:
        if ratings and all(name in rating for rating in ratings):
            columns[name] = np.array([rating[name] for rating in ratings])
    if rated := [columns[name] for name in RATINGS if name in columns]:
        columns["mean"] = np.mean(rated, 0)
    return columns


def _correlations(found: list[dict[str, np.ndarray]], what: str, rating: str) -> dict[str, Any]:
    sides = [(columns[what], columns[rating]) for columns in found if rating in columns]
    result: dict[str, Any] = {}
    for name, measure in (("spearman", spearman), ("kendall", kendall)):
        each = [value for value in (measure(a, b) for a, b in sides) if value is not None]
        pooled = measure(*(np.concatenate(side) for side in zip(*sides, strict=True))) if sides else None
        result[name] = {"per_article": float(np.mean(each)) if each else None, "pooled": pooled, "articles": len(each)}
    return result


def _alike(found: list[dict[str, np.ndarray]], rating: str) -> dict[str, Any]:
    """Of the pairs within an article that neither the preference nor people call a tie: the share ranked alike."""
    verdicts = [
        columns["verdicts"][i, j] * np.sign(columns[rating][i] - columns[rating][j])
        for columns in found
        if rating in columns
        for i, j in combinations(range(len(columns["words"])), 2)
    ]
    ranked = [verdict for verdict in verdicts if verdict]
    return {"share": float(np.mean([v > 0 for v in ranked])) if ranked else None, "pairs": len(ranked)}


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rho of two (n,): Pearson's r of their ranks, where equals share one. None if a side is constant."""
    ranks = [_ranks(np.asarray(side, float)) for side in (a, b)]
    x, y = (rank - rank.mean() for rank in ranks) if len(a) else ranks
    norm = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / norm if norm else None


def kendall(a: np.ndarray, b: np.ndarray) -> float | None:
    """Kendall's tau-b of two (n,), which corrects for ties (Kendall, 1945). None if a side is constant."""
    # Row by row: n = 1,600 in one piece would be 20 MB a side, and ten times the articles a hundred times that.
    both = up = down = 0
    a, b = np.asarray(a, float), np.asarray(b, float)
    for i in range(len(a)):
        x, y = np.sign(a[i] - a[i + 1 :]), np.sign(b[i] - b[i + 1 :])
        both, up, down = both + float((x * y).sum()), up + float((x != 0).sum()), down + float((y != 0).sum())
    return both / float(np.sqrt(up * down)) if up and down else None


def _ranks(values: np.ndarray) -> np.ndarray:
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[where]


def rows(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """A line for each rating and each of judge, words and preference."""
    lines = []
    for rating, sides in result["correlations"].items():
        for what, values in sides.items():
            line = {"rating": rating, "by": result["preference"] if what == "preference" else what}
            for name in ("spearman", "kendall"):
                line |= {f"{name}, per article": _number(values[name]["per_article"])}
                line |= {f"{name}, pooled": _number(values[name]["pooled"])}
            alike = result["pairs_alike"][rating]
            line["pairs ranked alike"] = ""
            if what == "preference" and alike["pairs"]:
                line["pairs ranked alike"] = f"{alike['share']:.1%} of {alike['pairs']:,}"
            lines.append(line)
    return lines


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help="a run's configuration: its judge, questions and pairs count")
    parser.add_argument("file", metavar="FILE", help="articles, summaries and ratings")
    parser.add_argument("overrides", metavar="NAME=VALUE", nargs="*", help="such as judge.model=… judge.questions=10")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
