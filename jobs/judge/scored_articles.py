"""Scores candidate summaries of articles with a configuration's judge, in this process and without Ray."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from judges.base import Skip
from pipeline.config import Config
from pipeline.config.judging import JudgeSettings
from pipeline.execution.preflight import check_engines, check_judges
from pipeline.execution.progress import Display, StageProgress
from pipeline.execution.resources import provide_resources
from pipeline.inference.base import Engine
from pipeline.inference.server.server_check import check_server
from pipeline.judging.factory import AnyJudge, asks_questions, make_judge
from pipeline.judging.preference import Score, scores_to_compare
from pipeline.judging.question_generation import generate_questions
from pipeline.judging.scoring.jury import judge_rows
from pipeline.judging.scoring.step import scoring_step
from pipeline.storage.schema import Outcome

# A judge and its engine. A jury is given by its settings, with an engine for each member.
OpenJudge = AnyJudge | JudgeSettings
OpenEngine = Engine | Mapping[str, Engine]

# Articles per call of the engine. An engine that generates text needs many prompts to fill its batches. The others fill
# theirs with the summaries of one article, and with few articles per call the progress shows their speed sooner.
_BATCH = {"text": 64}
_SMALL_BATCH = 2


def value_of(score: Score) -> float | None:
    """The judge's value of a text; None if the judge's reply could not be read, or the value is no number."""
    value = score.get("value")  # tables of older versions have right answers only
    value = float(score["correct"] if value is None else value)
    return None if score["unread"] or math.isnan(value) else value


@dataclass(frozen=True)
class Candidates:
    """An article and texts that a judge scores as its summaries."""

    article_id: str
    article: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """What a judge says about the candidates of one article.

    Attributes:
        scores: one row of the column `scores` for each candidate, with the texts, as a preference gets it
            (`preference.scores_to_compare`). Empty if the article could not be used.
        left_out: why the article could not be used, such as "under 4 good questions".
    """

    scores: list[Score]
    left_out: str | None = None


def open_judge(settings: Config) -> tuple[OpenJudge, OpenEngine]:
    """Make the judge of the settings and its engine, or the engines of a jury, here and not in a Ray actor.

    Raises:
        UserError: the judge, its model or its server cannot be used.
    """
    check_judges(settings, ["judge"])
    check_engines(settings, ["judge"])
    for name, single in settings.judge.single_judges("judge").items():
        if single.served and single.model:
            check_server(name, single.model, single.served, settings.hardware, single.logprobs, single.thinking)
    display = Display()
    hidden_progress = StageProgress(display.console, None, "", None, "")
    resources = provide_resources(("judge_engine",), settings, {}, "", "judge-eval", hidden_progress, display.warn)
    pools = resources["judge_engine"]
    if isinstance(pools, Mapping):
        return settings.judge, {name: pool.make_engine() for name, pool in pools.items()}
    return make_judge(settings.judge, settings.seed), pools.make_engine()


def score_articles(
    settings: Config,
    judge: OpenJudge,
    engine: OpenEngine,
    articles: Sequence[Candidates],
    display: Display | None = None,
) -> list[Scored]:
    """Score all candidates of all articles. A judge that asks questions asks them about each article first.

    Args:
        settings: `judge`, `questions` and `pairs` are used.
        judge: a judge of either kind, see `open_judge`.
        engine: answers the judge's prompts.
        articles: each with its candidates; equal candidates get equal scores.
        display: shows the progress with its rate and the time left. None: nothing is shown.
    """
    batch_size = _BATCH.get(getattr(judge, "engine", "text"), _SMALL_BATCH)
    if settings.judge.model is None:
        batch_size = _SMALL_BATCH  # the judge replies itself, one prompt after the other
    scored: list[Scored] = []
    with display.working(["judge"], len(articles), "articles") if display else nullcontext([None]) as (bar,):
        for begin in range(0, len(articles), batch_size):
            batch = articles[begin : begin + batch_size]
            scored += _score_batch(settings, judge, engine, batch)
            if bar:
                bar.advance(len(batch))
    return scored


def _score_batch(settings: Config, judge: OpenJudge, engine: OpenEngine, batch: Sequence[Candidates]) -> list[Scored]:
    rows: list[dict[str, Any]] = [
        {
            "article_id": candidates.article_id,
            "article": candidates.article,
            "summaries": [{"text": text, "finish_reason": "stop"} for text in candidates.texts],
        }
        for candidates in batch
    ]
    if isinstance(judge, JudgeSettings) or isinstance(engine, Mapping):
        assert isinstance(judge, JudgeSettings) and isinstance(engine, Mapping), "a jury has an engine for each member"
        judged = judge_rows(judge, settings.questions, settings.seed, engine, rows)
        return [_read_outcome(row, outcome, settings) for row, outcome in zip(rows, judged, strict=True)]
    results: list[Scored | None] = [None] * len(batch)
    if asks_questions(judge):
        drafting = settings.questions.drafting(settings.judge)
        asking: Any = judge if drafting is settings.judge else make_judge(drafting, settings.seed)
        replies = generate_questions(asking, settings.judge.questions, settings.questions, engine, rows)
        for i, reply in enumerate(replies):
            assert isinstance(reply, dict)
            if reply.get("skipped"):
                results[i] = Scored([], str(reply["skipped"]))
            else:
                rows[i] |= reply
    to_score = [i for i, result in enumerate(results) if result is None]
    outcomes = scoring_step(judge)(engine, [rows[i] for i in to_score])
    for i, outcome in zip(to_score, outcomes, strict=True):
        results[i] = _read_outcome(rows[i], outcome, settings)
    return [result for result in results if result is not None]


def _read_outcome(row: dict[str, Any], outcome: Outcome, settings: Config) -> Scored:
    if isinstance(outcome, Skip):
        return Scored([], outcome.reason)
    return Scored(scores_to_compare(row | outcome, settings.pairs))
