"""`rondo judge-eval`: compares a judge's scores with what people think of the same summaries."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from jobs.judge.agreement import JUDGE, PREFERENCE, WORDS, judged_article, measure_agreement
from jobs.judge.correlation import MEASURES, Bootstrap, Estimate
from jobs.judge.ratings import HumanRatings, read_human_ratings
from jobs.judge.scored_articles import Candidates, OpenEngine, OpenJudge, open_judge, score_articles, value_of
from pipeline.config import Config, UserError
from pipeline.config.loader import load_config
from pipeline.execution.progress import Display
from pipeline.judging.preference import check_preference, load_preference

_WIDTH = 150  # of a table outside a terminal
_UNREAD = "summaries whose score could not be read"
_PEOPLE = "one rater"


def evaluate_judge(
    path: str,
    file: str,
    overrides: Sequence[str] = (),
    ratings: Sequence[str] = (),
    limit: int | None = None,
    out: str | None = None,
    plot: str | None = None,
) -> None:
    """Judge the summaries of a file, and print how far the judge agrees with people.

    Args:
        path: the YAML file; `judge`, `questions`, `pairs`, `report` and `hardware` are used.
        file: articles, summaries and what people think of them; see `ratings.py`.
        overrides: settings that replace those of the file.
        ratings: columns with ratings; empty: those with known names.
        limit: use only the first articles.
        out: JSON file to write.
        plot: PNG file to write.

    Raises:
        UserError: the settings are wrong, the judge or the file cannot be used, or a file cannot be written.
    """
    settings = load_config(path, overrides)
    for option, name in (("--json", out), ("--plot", plot)):
        _check_target(option, name)
    weights = [member.weight for member in settings.judge.members.values()]
    check_preference(settings.pairs, settings.judge.questions, settings.judge.logprobs, weights)
    view = read_human_ratings(file, ratings, limit)
    display = Display()
    judge, engine = open_judge(settings)
    result = evaluate(view, settings, judge, engine, display)
    if out is not None:
        Path(out).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if plot is not None:
        from jobs.judge.plot import draw_agreement

        Path(plot).write_bytes(draw_agreement(result))
    _show(display, result)


def _check_target(option: str, name: str | None) -> None:
    """Refuse a file that cannot be written before hours are spent on judging."""
    if name is None:
        return
    if option == "--plot" and not name.endswith(".png"):
        raise UserError(f"--plot is {name!r}: it should end in .png")
    if Path(name).is_dir() or not Path(name).parent.is_dir():
        raise UserError(
            f"{option} is {name!r}, which is a folder, or in a folder that does not exist: name another file"
        )


def evaluate(
    view: HumanRatings, settings: Config, judge: OpenJudge, engine: OpenEngine, display: Display | None = None
) -> dict[str, Any]:
    """Judge all summaries and compute the figures.

    Returns:
        `judge`, `preference`, `confidence`, the number of `articles`, `summaries`, `systems` and `raters` (the largest
        number of raters of a rating), `left_out` (counts by reason), and the figures of
        `agreement.measure_agreement`. `points`: for the plot, by rating: value of the judge and mean rating of each
        summary, both less the article's mean.

    Raises:
        UserError: no article could be judged.
    """
    candidates = [Candidates(article.article_id, article.article, tuple(article.texts)) for article in view.articles]
    scored = score_articles(settings, judge, engine, candidates, display)
    left_out = Counter(view.left_out)
    left_out.update(f"articles: {found.left_out}" for found in scored if found.left_out)
    left_out[_UNREAD] += sum(value_of(score) is None for found in scored for score in found.scores)
    rule = load_preference(settings.pairs)
    articles = [
        judged_article(article, found.scores, view, rule, settings.pairs)
        for article, found in zip(view.articles, scored, strict=True)
        if found.scores
    ]
    if not any(len(article.systems) for article in articles):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)
        raise UserError(
            f"the judge {settings.judge.name} could use none of {len(view.articles):,} articles ({reasons}): try "
            "questions.min_questions=1, or another judge"
        )
    bootstrap = Bootstrap(len(articles), settings.report.resamples, settings.report.confidence, settings.seed)
    agreement = measure_agreement(articles, view.names, bootstrap)
    return {
        "judge": settings.judge.name,
        "preference": settings.pairs.preference,
        "confidence": settings.report.confidence,
        "articles": len(articles),
        "summaries": sum(len(article.systems) for article in articles),
        "systems": len({system for article in articles for system in article.systems if system is not None}),
        "raters": max((len(names) for names in view.raters.values()), default=0),
        "left_out": {reason: count for reason, count in left_out.items() if count},
        **agreement,
        "points": {
            name: [point for article in articles if name in article.ratings for point in article.centred_points(name)]
            for name in agreement["ratings"]
        },
    }


def _show(display: Display, result: Mapping[str, Any]) -> None:
    console = display.console
    if not console.is_terminal:
        console.width = _WIDTH
    display.say(
        f"{result['judge']} and people, on {result['summaries']:,} summaries of {result['articles']:,} articles "
        f"({100 * result['confidence']:g} % bootstrap intervals over articles)",
        style="bold",
    )
    for title, lines in tables(result):
        display.say("")
        console.print(_table(title, lines))
    if result["left_out"]:
        display.say("")
    for reason, count in result["left_out"].items():
        display.warn(f"left out: {count:,} {reason}")


def tables(result: Mapping[str, Any]) -> list[tuple[str, list[dict[str, str]]]]:
    """The figures as tables: a title, and lines with the same columns."""
    ratings = result["ratings"]
    found = []
    if ratings:
        lines = _correlation_lines(result, "per_article", "articles")
        found.append(("Correlation per article, as a mean over articles in which both sides vary", lines))
        found.append(("Correlation over all summaries (pooled)", _correlation_lines(result, "pooled", "summaries")))
    if any("system" in scores for rating in ratings.values() for scores in rating["scores"].values()):
        found.append(("Correlation of the systems' means", _correlation_lines(result, "system", "systems")))
    pairs = []
    for name, rating in ratings.items():
        pairs += [
            {"rating": name, **_pair_cells(_label(result, score), scores["pairs"])}
            for score, scores in rating["scores"].items()
        ]
        if people := rating["people"]:
            alike = people["pairs_alike"]
            cells = {"alike": _percent(alike), "ties": "", "ties as half": "", "pairs": f"{alike['n']:,}"}
            pairs.append({"rating": name, "score": _PEOPLE, **cells})
    pairs += [
        {"rating": "people's choices", **_pair_cells(_label(result, score), figures)}
        for score, figures in result["choices"].items()
    ]
    if pairs:
        found.append(("Pairs that people rank, ranked alike by the score", pairs))
    return found


def _correlation_lines(result: Mapping[str, Any], level: str, unit: str) -> list[dict[str, str]]:
    lines = []
    for name, rating in result["ratings"].items():
        for score, scores in rating["scores"].items():
            line = {"rating": name, "score": _label(result, score)}
            line |= {measure: _coefficient(scores[level][measure]) for measure in MEASURES}
            if level == "per_article":
                line["Spearman beyond words"] = _beyond_words(scores)
            lines.append(line | {unit: f"{scores[level]['spearman']['n']:,}"})
        if level == "per_article" and (people := rating["people"]):
            figures = people["per_article"]
            line = {"rating": name, "score": _PEOPLE, "Spearman beyond words": ""}
            line |= {measure: _coefficient(figures[measure]) for measure in MEASURES}
            lines.append(line | {unit: f"{figures['spearman']['n']:,}"})
    return lines


def _beyond_words(scores: Mapping[str, Any]) -> str:
    """The partial correlation. An article in which score and words rank the summaries alike has none."""
    figure = scores.get("beyond_length")
    if figure is None:
        return ""
    own = "" if figure["n"] == scores["per_article"]["spearman"]["n"] or not figure["n"] else f" of {figure['n']:,}"
    return _coefficient(figure) + own


def _pair_cells(score: str, pairs: Mapping[str, Estimate]) -> dict[str, str]:
    return {
        "score": score,
        "alike": _percent(pairs["alike"]),
        "ties": _percent(pairs["ties"]),
        "ties as half": _percent(pairs["with_half_ties"]),
        "pairs": f"{pairs['ties']['n']:,}",
    }


def _label(result: Mapping[str, Any], score: str) -> str:
    return {JUDGE: "judge", WORDS: "words alone", PREFERENCE: str(result["preference"])}.get(score, f"{score} score")


def _coefficient(figure: Estimate) -> str:
    return _with_interval(figure, "{:+.2f}")


def _percent(figure: Estimate) -> str:
    return _with_interval(figure, "{:.1%}")


def _with_interval(figure: Estimate, form: str) -> str:
    if figure["value"] is None:
        return "–"
    text = form.format(figure["value"])
    return text if figure["low"] is None else f"{text} [{form.format(figure['low'])}, {form.format(figure['high'])}]"


def _table(title: str, lines: Sequence[Mapping[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left", title_style="")
    for column in lines[0]:
        name = column.capitalize() if column in MEASURES else column
        table.add_column(Text(name), justify="left" if column in ("rating", "score") else "right")
    before = ""
    for line in lines:
        shown = dict(line) | ({"rating": ""} if line["rating"] == before else {})
        before = line["rating"]
        table.add_row(*(Text(shown[column]) for column in lines[0]))
    return table
