"""Computes how well a judge's scores agree with people: correlations with ratings, and pairs ranked alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from jobs.judge.correlation import (
    MEASURES,
    Array,
    Bootstrap,
    Estimate,
    one_rater_and_the_others,
    partial_spearman,
)
from jobs.judge.ratings import CROWD, HumanRatings, RatedArticle
from jobs.judge.scored_articles import value_of
from pipeline.config.judging import Pairs
from pipeline.judging.preference import Rule, Score

MEAN = "mean"  # the name of the mean of all ratings but those of a crowd
JUDGE, SOFT, WORDS, PREFERENCE = "judge", "soft", "words", "preference"
_FEWEST_SYSTEMS = 3


@dataclass(frozen=True)
class JudgedArticle:
    """Scores and ratings of the n summaries of an article that the judge could score.

    Attributes:
        scores: (n,) by name: `judge` (the value; of a judge that asks questions the share of right answers), `soft`
            (where the judge has log-probabilities), `words`, and `preference`: net wins by `pairs.preference`, divided
            by the number of other summaries.
        verdicts: (n, n) by name, 1 where the summary of the row beats that of the column, -1 where it loses.
        systems: who wrote each summary.
        ratings: (n, raters) by name; NaN where a rater gave none.
        choices: people's choices: indices of the chosen and of the rejected summary.
    """

    scores: dict[str, Array]
    verdicts: dict[str, Array]
    systems: list[str | None]
    ratings: dict[str, Array]
    choices: list[tuple[int, int]]

    def mean_ratings(self, name: str) -> Array:
        """The mean over raters, (n,); NaN for a summary without a rating."""
        table = self.ratings[name]
        counts = (~np.isnan(table)).sum(1)
        return np.where(counts > 0, np.nansum(table, 1) / np.maximum(counts, 1), np.nan)

    def centred_points(self, name: str) -> list[tuple[float, float]]:
        """Value of the judge and mean rating of each rated summary, both less their means in the article."""
        ratings = self.mean_ratings(name)
        rated = ~np.isnan(ratings)
        if not rated.any():
            return []
        sides = (side[rated] - side[rated].mean() for side in (self.scores[JUDGE], ratings))
        return [(float(value), float(rating)) for value, rating in zip(*sides, strict=True)]


def judged_article(
    article: RatedArticle, scores: Sequence[Score], view: HumanRatings, rule: Rule, pairs: Pairs
) -> JudgedArticle:
    """Put the scores of an article beside what people think, without the summaries whose score could not be read."""
    read = [i for i, score in enumerate(scores) if value_of(score) is not None]
    rows = [scores[i] for i in read]
    values = [value for score in scores if (value := value_of(score)) is not None]
    verdicts = np.array([[rule(a, b, pairs) for b in rows] for a in rows], float).reshape(len(rows), len(rows))
    columns = {
        # A share: articles with more questions would dominate when pooled. A judge that gives scores asks none.
        JUDGE: np.array([value / max(1, len(row["answers"])) for value, row in zip(values, rows, strict=True)]),
        WORDS: np.array([row["words"] for row in rows], float),
        PREFERENCE: verdicts.sum(1) / max(1, len(rows) - 1),
    }
    if rows and all(row["soft"] is not None for row in rows):
        columns[SOFT] = np.array([row["soft"] / max(1, len(row["answers"])) for row in rows], float)
    ratings = {name: view.rater_table(article, name)[read] for name in view.names}
    plain = [table for name, table in ratings.items() if not name.endswith(CROWD)]
    if len(plain) > 1 and len({tuple(view.raters[name]) for name in ratings if not name.endswith(CROWD)}) == 1:
        ratings[MEAN] = np.mean(plain, 0)  # NaN unless the rater gave all of them
    new_index = {old: new for new, old in enumerate(read)}
    choices = [(new_index[a], new_index[b]) for a, b in article.choices if a in new_index and b in new_index]
    signs = {name: np.sign(column[:, None] - column) for name, column in columns.items() if name != PREFERENCE}
    return JudgedArticle(columns, signs | {PREFERENCE: verdicts}, [article.systems[i] for i in read], ratings, choices)


def measure_agreement(articles: Sequence[JudgedArticle], names: Sequence[str], bootstrap: Bootstrap) -> dict[str, Any]:
    """Compute all figures. Each has `value`, `low`, `high` (None if undefined), and `n`, what it is computed from.

    Returns:
        `ratings`: by name of the rating (and `mean`): `scores`, by name of the score (see `JudgedArticle.scores`):
        `per_article`, `pooled` and `system` (only with three or more systems), each with `pearson`, `spearman` and
        `kendall`; `beyond_length`: Spearman per article with the number of words held constant; `pairs`: see
        `_pairs`. Also `people`: `per_article` and `pairs` of one rater and the mean of the others (None with one
        rater), which is about what a judge can reach. `choices`: by score, the pairs of people's own choices.
    """
    found = [name for name in (*names, MEAN) if any(name in article.ratings for article in articles)]
    score_names = [
        name
        for name in (JUDGE, SOFT, WORDS, PREFERENCE)
        if articles and all(name in article.scores for article in articles)
    ]
    choices = [article.choices for article in articles]
    return {
        "ratings": {name: _of_rating(articles, name, score_names, bootstrap) for name in found},
        "choices": {
            score: _pairs([article.verdicts[score] for article in articles], choices, bootstrap)
            for score in score_names
        }
        if any(choices)
        else {},
    }


def _of_rating(
    articles: Sequence[JudgedArticle], name: str, score_names: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Any]:
    tables = [article.ratings[name] if name in article.ratings else np.empty((0, 0)) for article in articles]
    means = [article.mean_ratings(name) if name in article.ratings else np.empty(0) for article in articles]
    rated = [np.flatnonzero(~np.isnan(mean)) for mean in means]
    better = [_better(mean) for mean in means]
    scores = {}
    for score in score_names:
        sides = [
            (article.scores[score][own], mean[own]) for article, mean, own in zip(articles, means, rated, strict=True)
        ]
        words = [article.scores[WORDS][own] for article, own in zip(articles, rated, strict=True)]
        entry: dict[str, Any] = {
            "per_article": {
                measure: bootstrap.mean([function(*side) for side in sides]) for measure, function in MEASURES.items()
            },
            "pooled": {measure: bootstrap.pooled(measure, sides) for measure in MEASURES},
            "pairs": _pairs([article.verdicts[score] for article in articles], better, bootstrap),
        }
        if score != WORDS:
            partial = [partial_spearman(*side, given) for side, given in zip(sides, words, strict=True)]
            entry["beyond_length"] = bootstrap.mean(partial)
        if (system := _system_level(articles, sides, rated, bootstrap)) is not None:
            entry["system"] = system
        scores[score] = entry
    return {"scores": scores, "people": _people(tables, bootstrap)}


def _better(ratings: Array) -> list[tuple[int, int]]:
    """Pairs of summaries of which people rate the first higher."""
    pairs = []
    for i, j in combinations(range(len(ratings)), 2):
        if ratings[i] > ratings[j]:
            pairs.append((i, j))
        elif ratings[j] > ratings[i]:
            pairs.append((j, i))
    return pairs


def _pairs(
    verdicts: Sequence[Array], better: Sequence[Sequence[tuple[int, int]]], bootstrap: Bootstrap
) -> dict[str, Estimate]:
    """How often verdicts agree with people, among pairs that people do not tie.

    Returns:
        `alike`: the share among the pairs that the verdict does not tie either. `ties`: the share that it ties.
        `with_half_ties`: the share among all pairs, where a tie counts half; 0.5 is chance.
    """
    signs = [
        np.array([verdict[i, j] for i, j in pairs], float) for verdict, pairs in zip(verdicts, better, strict=True)
    ]
    alike, unlike, tied = (np.array([(sign == value).sum() for sign in signs], float) for value in (1, -1, 0))
    return {
        "alike": bootstrap.ratio(alike, alike + unlike),
        "ties": bootstrap.ratio(tied, alike + unlike + tied),
        "with_half_ties": bootstrap.ratio(alike + tied / 2, alike + unlike + tied),
    }


def _system_level(
    articles: Sequence[JudgedArticle],
    sides: Sequence[tuple[Array, Array]],
    rated: Sequence[Array],
    bootstrap: Bootstrap,
) -> dict[str, Estimate] | None:
    """Correlations of mean score and mean rating by system; None with too few systems."""
    systems = sorted({system for article in articles for system in article.systems if system is not None})
    if len(systems) < _FEWEST_SYSTEMS:
        return None
    column = {system: i for i, system in enumerate(systems)}
    scores, ratings, counts = (np.zeros((len(articles), len(systems))) for _ in range(3))
    for row, (article, (score, rating), own) in enumerate(zip(articles, sides, rated, strict=True)):
        for i, summary in enumerate(own):
            system = article.systems[summary]
            if system is not None:
                scores[row, column[system]] += score[i]
                ratings[row, column[system]] += rating[i]
                counts[row, column[system]] += 1
    return {measure: bootstrap.system_level(measure, (scores, ratings), counts) for measure in MEASURES}


def _people(tables: Sequence[Array], bootstrap: Bootstrap) -> dict[str, Any] | None:
    """How well one rater agrees with the mean of the others; None if no article has several raters."""
    if not any(((~np.isnan(table)).any(0)).sum() > 1 for table in tables if table.size):
        return None
    counts = np.array([_count_alike(table) for table in tables], float).reshape(len(tables), 2)
    return {
        "per_article": {
            measure: bootstrap.mean([one_rater_and_the_others(table, function) for table in tables])
            for measure, function in MEASURES.items()
        },
        "pairs_alike": bootstrap.ratio(counts[:, 0], counts.sum(1)),
    }


def _count_alike(table: Array) -> tuple[int, int]:
    """How many pairs of an article one rater and the mean of the others rank alike, and how many not, over raters."""
    alike = unlike = 0
    for rater in range(table.shape[1]):
        own, others = table[:, rater], np.delete(table, rater, axis=1)
        rated = ~np.isnan(own) & ~np.isnan(others).all(1)
        if rated.any():
            mean = np.nanmean(others[rated], 1)
            product = np.sign(own[rated][:, None] - own[rated]) * np.sign(mean[:, None] - mean)
            alike, unlike = alike + int((product > 0).sum()) // 2, unlike + int((product < 0).sum()) // 2
    return alike, unlike
