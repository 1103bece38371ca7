"""Reads articles with summaries and what people think of them: ratings of each summary, or choices between two.

A row has one of three forms; a file may mix them. Where several names are given, the first that a row has is used.

- An article: `machine_summaries` (or `summaries`), a list, and each rating as a list aligned with it. `systems` (or
  `model_ids`) names the writers. This is the form of `hf:mteb/summeval:test`.
- A summary: `decoded` (or `summary`), and each rating as a number, or as a list of one number for each rater.
  `system` (or `model_id`) names the writer. With a column `rater`, each row has the ratings of one rater. SummEval's
  own `expert_annotations` and `turker_annotations` (or `crowd_annotations`) are lists of ratings, one for each rater.
- A choice: `chosen` and `rejected`, two summaries, as in TRL.

The article is `article`, `text`, `document`, `source` or, in a choice, `prompt`. Rows of one article have the same `id`
(or `article_id`), or the same article.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.config import UserError
from pipeline.data import readers
from pipeline.data.ids import UnusableId, id_text

KNOWN_RATINGS = (
    "relevance",
    "consistency",
    "coherence",
    "fluency",
    "faithfulness",
    "factuality",
    "informativeness",
    "overall",
    "quality",
    "rating",
)
CROWD = " (crowd)"  # ends the name of a rating of a crowd's annotations
_ARTICLE = ("article", "text", "document", "source")
_ID = ("id", "article_id")
_SUMMARIES = ("machine_summaries", "summaries")
_SUMMARY = ("decoded", "summary")
_SYSTEM = ("system", "model_id")
_SYSTEMS = ("systems", "model_ids")
_RATER = ("rater", "annotator", "worker_id")
_ANNOTATIONS = (("expert_annotations", ""), ("crowd_annotations", CROWD), ("turker_annotations", CROWD))
_EXPECTED = (
    "each row needs an article (article, text, document or source) and machine_summaries or a summary (decoded or "
    "summary) with ratings, or chosen and rejected (with prompt, or an article)"
)

RatingsByRater = dict[str, dict[str, float]]  # name of the rating -> rater -> rating


@dataclass
class RatedArticle:
    """An article with its summaries and what people think of them.

    Attributes:
        texts: the summaries. Two systems may have written the same.
        systems: who wrote each summary; None: unknown.
        ratings: of each summary.
        choices: people's choices, as indices in `texts` of the chosen and of the rejected summary.
    """

    article_id: str
    article: str
    texts: list[str] = field(default_factory=list)
    systems: list[str | None] = field(default_factory=list)
    ratings: list[RatingsByRater] = field(default_factory=list)
    choices: list[tuple[int, int]] = field(default_factory=list)

    def add(self, text: str, system: str | None, ratings: RatingsByRater) -> int:
        """Add a summary, and give its index."""
        self.texts.append(text)
        self.systems.append(system)
        self.ratings.append(ratings)
        return len(self.texts) - 1


@dataclass
class HumanRatings:
    """The content of a file.

    Attributes:
        articles: in the order of the file.
        names: the ratings that occur, in the order in which they are reported.
        raters: of each rating, whoever gave one.
        left_out: rows that cannot be used, by reason.
    """

    articles: list[RatedArticle]
    names: list[str]
    raters: dict[str, list[str]]
    left_out: dict[str, int]

    def rater_table(self, article: RatedArticle, name: str) -> np.ndarray:
        """Ratings of an article's summaries, (summaries, raters), NaN where a rater gave none."""
        raters = self.raters[name]
        table = [[ratings.get(name, {}).get(rater, np.nan) for rater in raters] for ratings in article.ratings]
        return np.array(table, float).reshape(len(article.texts), len(raters))


class _BadRow(Exception):
    """A row that cannot be used. The message is the reason, without any data of the row."""


def read_human_ratings(place: str, wanted: Sequence[str] = (), limit: int | None = None) -> HumanRatings:
    """Read a file or dataset.

    Args:
        place: see `readers.read_rows`.
        wanted: names of rating columns; empty: those of `KNOWN_RATINGS`.
        limit: use only the first articles.

    Raises:
        UserError: the file cannot be read or has no row that can be used, or no row has a wanted rating.
    """
    reader = _Reader(wanted or KNOWN_RATINGS, limit)
    columns: dict[str, None] = {}
    for row in readers.read_rows(place, "FILE", is_row=_is_row):
        columns.update(dict.fromkeys(row))
        reader.add(row)
    found_columns = ", ".join(name for name in columns if name != readers.UNREADABLE) or "none"
    articles = list(reader.articles.values())
    annotated = any(name in columns for name, _ in _ANNOTATIONS)
    if wanted and columns and not annotated and not any(name in columns for name in wanted):
        raise UserError(f"--ratings names {', '.join(wanted)}, which no row of {place} has: it has {found_columns}")
    if not articles:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in reader.left_out.most_common(3))
        raise UserError(
            f"{place} has no row that can be used ({reasons or 'it has no rows'}). Its columns: {found_columns}; "
            f"{_EXPECTED}; name other ratings by --ratings"
        )
    present = {name for article in articles for ratings in article.ratings for name in ratings}
    if missing := [name for name in wanted if not {name, name + CROWD} & present]:
        raise UserError(f"--ratings names {', '.join(missing)}, which no row of {place} has: it has {found_columns}")
    names = [name for suffix in ("", CROWD) for base in reader.wanted if (name := base + suffix) in present]
    raters = {
        name: sorted({rater for a in articles for ratings in a.ratings for rater in ratings.get(name, {})})
        for name in names
    }
    return HumanRatings(articles, names, raters, dict(reader.left_out))


class _Reader:
    def __init__(self, wanted: Sequence[str], limit: int | None):
        self.wanted, self.limit = list(dict.fromkeys(wanted)), limit
        self.articles: dict[str, RatedArticle] = {}
        self.left_out: Counter[str] = Counter()
        # Index of a summary by (article, system, text), to which rows of other raters add.
        self.rated_by_name: dict[tuple[str, str | None, str], int] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        try:
            self._add(row)
        except _BadRow as reason:
            self.left_out[str(reason)] += 1

    def _add(self, row: Mapping[str, Any]) -> None:
        if readers.UNREADABLE in row:
            raise _BadRow(f"rows unreadable ({row[readers.UNREADABLE]})")
        is_choice = row.get("chosen") is not None or row.get("rejected") is not None
        text = _first(row, (*_ARTICLE, "prompt") if is_choice else _ARTICLE)
        if not isinstance(text, str) or not text.strip():
            raise _BadRow("rows without an article" if not isinstance(text, list) else "rows whose article is not text")
        named = _name(_first(row, _ID), "rows with an id")
        key = text if named is None else named
        if key in self.articles and self.articles[key].article != text:
            raise _BadRow("rows whose id has another article in an earlier row")
        if key not in self.articles and self.limit is not None and len(self.articles) >= self.limit:
            return
        # The article is kept only if its row turns out to be good.
        article = self.articles.get(key) or RatedArticle(str(len(self.articles)) if named is None else key, text)
        if is_choice:
            self._add_choice(article, row)
        elif (summaries := _first(row, _SUMMARIES)) is not None:
            for summary, system, ratings in self._summaries_of(row, summaries):
                article.add(summary, system, ratings)
        else:
            self._add_summary(article, row)
        self.articles[key] = article

    def _add_choice(self, article: RatedArticle, row: Mapping[str, Any]) -> None:
        texts = [row.get("chosen"), row.get("rejected")]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise _BadRow("choices in which chosen or rejected is not text")
        if texts[0].strip() == texts[1].strip():  # type: ignore[union-attr]
            raise _BadRow("choices between equal texts")
        chosen, rejected = (
            article.texts.index(text) if text in article.texts else article.add(str(text), None, {}) for text in texts
        )
        article.choices.append((chosen, rejected))

    def _summaries_of(self, row: Mapping[str, Any], summaries: Any) -> Iterator[tuple[str, str | None, RatingsByRater]]:
        """The summaries of a row that has all of an article."""
        if not isinstance(summaries, list) or not all(isinstance(summary, str) for summary in summaries):
            raise _BadRow("rows whose summaries are not a list of texts")
        systems = _first(row, _SYSTEMS)
        lists = {name: row[name] for name in self.wanted if row.get(name) is not None}
        if not lists:
            raise _BadRow("rows without a rating")
        for values in (*lists.values(), *([] if systems is None else [systems])):
            if not isinstance(values, list) or len(values) != len(summaries):
                raise _BadRow("rows whose lists of summaries and of ratings or systems are not equally long")
        all_ratings = [
            {name: rated for name, values in lists.items() if (rated := _by_rater(values[i]))}
            for i in range(len(summaries))
        ]
        for i, summary in enumerate(summaries):
            yield summary, _name(systems and systems[i], "rows with a system"), all_ratings[i]

    def _add_summary(self, article: RatedArticle, row: Mapping[str, Any]) -> None:
        summary, system, rater = _first(row, _SUMMARY), _first(row, _SYSTEM), _first(row, _RATER)
        if not isinstance(summary, str):
            raise _BadRow("rows without a summary")
        system, rater = _name(system, "rows with a system"), _name(rater, "rows with a rater")
        ratings: RatingsByRater = {}
        for column, suffix in _ANNOTATIONS:
            ratings |= self._annotations(row.get(column), suffix)
        for name in self.wanted:
            if name not in ratings and (rated := _by_rater(row.get(name), rater)):
                ratings[name] = rated
        if not ratings:
            raise _BadRow("rows without a rating")
        key = (article.article_id, system, summary)
        if rater is None or key not in self.rated_by_name:
            self.rated_by_name[key] = article.add(summary, system, ratings)
            return
        known = article.ratings[self.rated_by_name[key]]
        for name, rated in ratings.items():
            known[name] = known.get(name, {}) | rated

    def _annotations(self, annotations: Any, suffix: str) -> RatingsByRater:
        """Ratings of a list of annotations, one for each rater."""
        ratings: RatingsByRater = {}
        for i, annotation in enumerate(annotations or []):
            if not isinstance(annotation, Mapping):
                raise _BadRow("rows whose annotations are not a list of ratings by name")
            for name in self.wanted:
                if rated := _by_rater(annotation.get(name), str(i + 1)):
                    ratings.setdefault(name + suffix, {}).update(rated)
        return ratings


def _is_row(row: Mapping[str, Any]) -> bool:
    return any(name in row for name in (*_ARTICLE, "chosen", "rejected"))


def _name(value: Any, what: str) -> str | None:
    """The text of an id, a system or a rater; None if it is missing. Raises _BadRow if it cannot name anything."""
    try:
        return id_text(value)
    except UnusableId as error:
        raise _BadRow(f"{what} {error}") from None


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _by_rater(value: Any, rater: str | None = None) -> dict[str, float]:
    """Ratings by rater from a cell: a number, or a list of one number for each rater; empty for no rating.

    In a table of text (CSV) a number is text, and a missing one is empty.
    """
    numbers = value if isinstance(value, list) else [value]
    names = [str(i + 1) for i in range(len(numbers))] if isinstance(value, list) or rater is None else [rater]
    ratings = {}
    for name, number in zip(names, numbers, strict=True):
        if number is None or number == "":
            continue
        if isinstance(number, str):
            with contextlib.suppress(ValueError):
                number = float(number)
        if isinstance(number, bool) or not isinstance(number, int | float) or not np.isfinite(number):
            raise _BadRow("rows with a rating that is not a number")
        ratings[name] = float(number)
    return ratings
