"""Measures how reliable a score is within an article: would another set of questions prefer the same summaries?

A score is a sum of items: right answers to questions, points for criteria. The questions are a sample of those that
could be asked. All figures follow from how far the items of a score agree with each other about the summaries of one
article. Differences between articles say nothing here, because a pair's two summaries always have the same article.

References: Spearman (1910) and Brown (1910), the reliability of a longer test; Cronbach (1951), the mean of all
split-halves; Kelley (1927) and Sheppard (1899), what one measurement says of another; Efron and Tibshirani (1993),
percentile intervals; Snijders and Bosker (2012), chapter 3, correlation within groups.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from pipeline.config import Config
from pipeline.evaluation.comparison import CountingSettings
from pipeline.judging.pair_selection import beyond_noise
from pipeline.judging.preference import decided_by_score, judged_value, score_items, scores_to_compare
from pipeline.stages.pairs import leave_out_circles, usable_summaries, within_copied_gap
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.schema import Row
from pipeline.storage.tables import read_some_rows

TARGET = 0.7  # a common least reliability of a test (Nunnally, 1978)
MAX_ARTICLES = 1000  # of a table, drawn at random: intervals of shares are then narrower than 3 points
FEW_ARTICLES = 30  # with fewer, an interval is not reliable, and no score is called a coin
_COIN = 0.6  # share of equal winners below which a score is called a coin, as the default of scores.min_same_winner
_NOISY = 0.65  # share of equal winners below which many pairs are called chance: a reliability of about 0.45
_SPLITS = 20  # random halves of an article's items
_CORRELATIONS = np.linspace(-0.995, 0.995, 80)  # grid over which `same_winner` is interpolated
_RESAMPLES_AT_ONCE = 500
_DIGITS = 9  # values are rounded before they are compared, so that sums of equal items are equal
_SAME_AS_VALUE = 0.9  # smallest correlation of the items' mean with the value that makes their figures those of it


@dataclass(frozen=True)
class Estimate:
    """A figure with the ends of its bootstrap interval over articles. `high` is None if there is no upper end."""

    value: float
    low: float
    high: float | None


@dataclass(frozen=True)
class Reliability:
    """How reliable a score is within articles. A figure that is not defined is None, and `reason` says why.

    Attributes:
        articles: number of articles with two or more different summaries that may be paired.
        summaries: number of such summaries.
        unit: what the items are: "questions" of a judge that asks, else "items" (such as criteria).
        items: mean number of items of a score.
        half_correlation: the correlation within articles between the scores by one half of the items and by the other,
            over all splits into halves.
        reliability: the correlation within articles between the score and that by another set of as many items.
        items_needed: number of items for a reliability of `TARGET`; None also if the items do not agree at all.
        half_pairs: number of pairs in which both halves of the items prefer a summary, mean over random splits.
        same_winner_by_halves: the share of these pairs in which both halves prefer the same one. 0.5 is a coin.
        pairs: number of pairs that the preference makes and the score decides, before the selection.
        pairs_by_length: number of pairs that the preference makes and the score does not decide.
        same_winner: the share of `pairs` in which another set of as many items is expected to prefer the same one; a
            tie counts one half. 0.5 is a coin.
    """

    articles: int
    summaries: int
    unit: str = "questions"
    items: float | None = None
    half_correlation: Estimate | None = None
    reliability: Estimate | None = None
    items_needed: Estimate | None = None
    half_pairs: int = 0
    same_winner_by_halves: Estimate | None = None
    pairs: int = 0
    pairs_by_length: int = 0
    same_winner: Estimate | None = None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Article:
    """What an article adds to the figures.

    Attributes:
        asked: the items are answers to questions.
        items: mean number of items of a summary that were read.
        summaries: their number.
        covariance, variance: of two items, and of one, over the summaries: sums of products of deviations from the
            article's mean of the item, means over (pairs of) items.
        score_variance: sum of squared deviations of the mean item.
        half_pairs, same_by_halves: pairs that both halves decide, and those with the same winner, means over splits.
        differences: for each pair that the score decides, the chosen summary's mean item less the rejected one's.
        pairs_by_length: number of other pairs.
        products: sums of products of the deviations of the mean item and of the value: (item, both, value).
    """

    asked: bool
    items: float
    summaries: int
    covariance: float
    variance: float
    score_variance: float
    half_pairs: float
    same_by_halves: float
    differences: np.ndarray
    pairs_by_length: int
    products: tuple[float, float, float]


def measure_table(scores: Artifact, config: Config, ledger: Ledger, start: int = 0) -> Reliability | None:
    """Measure the reliability of a table of scored summaries, from up to about `MAX_ARTICLES` of its articles.

    None if the table is not made yet, as in a dry run.

    Args:
        start: index of the first summary of an article that counts.
    """
    if "parts" not in scores.record:
        return None
    fields = ("article", "summaries.text", "summaries.finish_reason", "scores", "questions.answer")
    rows = read_some_rows(ledger, scores, MAX_ARTICLES, fields)
    counted = [row | {name: row[name][start:] for name in ("summaries", "scores")} for row in rows]
    return measure_reliability(sorted(counted, key=lambda row: row["article_id"]), CountingSettings.from_config(config))


def measure_reliability(rows: Iterable[Row], counting: CountingSettings) -> Reliability:
    """Measure the reliability of the scores of articles with several summaries each.

    Only summaries that may be paired count (`stages.pairs.usable_summaries`): finished, read, of a usable length. Equal
    summaries of an article count once.

    Let c be the mean covariance of two items and v the mean variance of an item, both over the summaries of an article
    and added up over articles. A score of m items then has the reliability m c / (v + (m - 1) c), by Spearman and
    Brown. With all k items this is Cronbach's alpha, which is the mean of all split-halves, and with k / 2 items it is
    the correlation of the halves. So no split has to be drawn for either.

    Another set of k items gives a pair a difference that is bivariate normal with the present one. Their correlation is
    the reliability r, and T is the variance of a difference. If the present difference is d, the chance of the same
    sign is Phi(r d / sqrt(T (1 - r^2))). `same_winner` is the mean of it over the pairs of the preference. Items that
    disagree with each other (a summary that answers one question has no room for the next) do not disagree more in a
    longer score. If c is negative, r is therefore the correlation of the halves.

    Args:
        rows: with `article_id`, `article`, `summaries`, `scores`, and `questions` if scores have no items.
        counting: the preference with its parameters, and the bootstrap's.
    """
    if counting.judge == "votes":
        # One member's scale would hide the others', and the votes decide the pairs.
        return Reliability(0, 0, "items", reason="a jury's items are its members' scores, which have no common scale")
    measured = [article for row in rows if (article := _measure_article(row, counting)) is not None]
    several = [article for article in measured if article.items > 1]
    asked = any(article.asked for article in measured) if measured else counting.judge == "answers"
    unit = "questions" if asked else "items"
    if not several:
        single = "a score is one item, so that it has no halves to compare"
        return Reliability(0, 0, unit, reason=single if measured else "no article has two different summaries to pair")
    items = float(np.mean([article.items for article in several]))
    undefined = Reliability(len(several), sum(article.summaries for article in several), unit, items)
    if not sum(article.variance for article in several):
        return _with_reason(undefined, "all summaries of an article have the same items")
    item, both, value = np.array([article.products for article in several]).sum(0)
    if not value:
        return _with_reason(undefined, "all summaries of an article have the same value")
    if both < _SAME_AS_VALUE * math.sqrt(item * value):
        return _with_reason(undefined, "the value is not the sum of its items")
    return _estimate(several, undefined, counting)


def _with_reason(reliability: Reliability, reason: str) -> Reliability:
    return Reliability(**{**vars(reliability), "reason": reason})


def _measure_article(row: Row, counting: CountingSettings) -> _Article | None:
    """None if the article has fewer than two different summaries that may be paired.

    An item that was not read is left out: a summary is not compared with itself, for example.
    """
    scores, questions = row["scores"], row.get("questions") or ()
    first_of_text = {row["summaries"][i]["text"].strip(): i for i in reversed(usable_summaries(row, counting.pairs))}
    # A score without items, such as a reward, is one item.
    parts = {i: score_items(scores[i], questions) or [judged_value(scores[i])] for i in sorted(first_of_text.values())}
    items = {i: of_summary for i, of_summary in parts.items() if any(part is not None for part in of_summary)}
    if len(items) < 2 or len({len(of_summary) for of_summary in items.values()}) > 1:
        return None
    matrix = np.array(list(items.values()), float)  # (summaries, items); NaN: not read
    count, is_read = len(items), ~np.isnan(matrix)
    matrix = np.where(is_read, matrix, 0.0)
    centred = np.where(is_read, matrix - matrix.sum(0) / np.maximum(is_read.sum(0), 1), 0.0)
    read = is_read.sum(1)  # items of each summary
    products, squares = float((centred.sum(1) ** 2 - (centred**2).sum(1)).sum()), float((centred**2).sum())
    values, means = np.array([judged_value(scores[i]) for i in items], float), matrix.sum(1) / read
    values, means = values - values.mean(), means - means.mean()
    by_score, by_length = _preferred_pairs(row, list(items), counting)
    place = {i: position for position, i in enumerate(items)}
    rng = np.random.default_rng(_article_seed(row["article_id"], counting.seed))
    half_pairs, same = _compare_halves(matrix, is_read, rng)
    return _Article(
        asked=any(scores[i]["answers"] for i in items),
        items=float(read.mean()),
        summaries=count,
        covariance=count * _ratio(products, float((read * (read - 1)).sum())),
        variance=count * squares / float(read.sum()),
        score_variance=float((means**2).sum()),
        half_pairs=half_pairs,
        same_by_halves=same,
        differences=np.array([means[place[chosen]] - means[place[rejected]] for chosen, rejected in by_score]),
        pairs_by_length=by_length,
        products=(float(means @ means), float(means @ values), float(values @ values)),
    )


def _article_seed(article_id: str, seed: int) -> list[int]:
    return [seed, zlib.crc32(article_id.encode("utf-8", "surrogatepass"))]


def _preferred_pairs(row: Row, indices: Sequence[int], counting: CountingSettings) -> tuple[list[tuple[int, int]], int]:
    """The pairs (chosen, rejected) that the score decides, and the number of those that something else decides."""
    pairs, rule = counting.pairs, counting.rules["strict"]
    scores = scores_to_compare(row, pairs)
    verdicts = {(a, b): rule(scores[a], scores[b], pairs) for a, b in combinations(indices, 2)}
    decided = [(a, b) if verdict > 0 else (b, a) for (a, b), verdict in verdicts.items() if verdict]
    decided = within_copied_gap(leave_out_circles(decided), scores, pairs)
    clear = beyond_noise(decided, scores, row.get("questions") or (), pairs)
    by_score = [(a, b) for a, b in clear if decided_by_score(scores[a], scores[b], pairs)]
    return by_score, len(clear) - len(by_score)


def _compare_halves(items: np.ndarray, is_read: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The number of pairs that both halves of the items decide, and of those with the same winner.

    Both are means over random splits. If the number of items is odd, one half has one more.

    Args:
        items: shape (summaries, items); 0 where `is_read`, of the same shape, is False.
    """
    count, size = items.shape
    if size < 2:
        return 0.0, 0.0
    ranks = rng.random((_SPLITS, size)).argsort(1).argsort(1)
    first = (ranks < size // 2).astype(float)  # (splits, items): which items are in the first half
    a, b = np.triu_indices(count, 1)
    signs = []
    for half in (first, 1 - first):
        read = is_read @ half.T  # (summaries, splits)
        means = items @ half.T / np.where(read > 0, read, np.nan)
        signs.append(np.nan_to_num(np.sign(np.round(means[a] - means[b], _DIGITS))))  # a half without items ties
    products = signs[0] * signs[1]
    return float(np.abs(products).sum() / _SPLITS), float((products > 0).sum() / _SPLITS)


def _estimate(articles: Sequence[_Article], counts: Reliability, counting: CountingSettings) -> Reliability:
    """The figures of articles with two items or more, with their intervals."""
    size = counts.items
    assert size is not None, "measured articles have items"
    variance_of_difference = _ratio(
        2 * sum(article.score_variance for article in articles), sum(article.summaries - 1 for article in articles)
    )
    table = np.array(
        [
            (
                *(article.covariance, article.variance, 2 * article.score_variance, article.summaries - 1),
                *(article.half_pairs, article.same_by_halves, len(article.differences)),
                *_same_winners(article.differences, variance_of_difference),
            )
            for article in articles
        ]
    )

    def agreement(sums: np.ndarray) -> np.ndarray:  # of two items
        return sums[:, 0] / sums[:, 1]

    def same_by_halves(sums: np.ndarray) -> np.ndarray:
        return sums[:, 5] / sums[:, 4]

    def same_winner(sums: np.ndarray) -> np.ndarray:
        """Interpolated over the grid: another variance of a difference acts as another correlation."""
        of_items = agreement(sums)
        r = np.where(of_items > 0, _lengthen(of_items, size), _lengthen(of_items, size / 2)).clip(-0.995, 0.995)
        slopes = r / np.sqrt(1 - r**2) * np.sqrt(variance_of_difference / (sums[:, 2] / sums[:, 3]))
        correlations = slopes / np.sqrt(1 + slopes**2)
        shares = sums[:, 7:] / sums[:, 6:7]
        return np.array([np.interp(x, _CORRELATIONS, y) for x, y in zip(correlations, shares, strict=True)])

    figures: list[Callable[[np.ndarray], np.ndarray]] = [agreement, same_by_halves, same_winner]
    of_items, by_halves, another = _bootstrap(table, figures, counting)
    assert of_items is not None, "the items vary"
    return Reliability(
        articles=counts.articles,
        summaries=counts.summaries,
        unit=counts.unit,
        items=size,
        half_correlation=_transform(of_items, lambda r: float(_lengthen(r, size / 2))),
        reliability=_transform(of_items, lambda r: float(_lengthen(r, size))),
        items_needed=_items_needed(of_items),
        half_pairs=round(sum(article.half_pairs for article in articles)),
        same_winner_by_halves=by_halves,
        pairs=sum(len(article.differences) for article in articles),
        pairs_by_length=sum(article.pairs_by_length for article in articles),
        same_winner=another,
        reason=None if another else "the score decides no pair",
    )


def _lengthen(agreement: Any, items: float) -> Any:
    """The reliability of a score of so many items, from that of one item (Spearman, 1910; Brown, 1910).

    Items that disagree with each other have a negative reliability, which has no lower end. It is cut at -1.
    """
    spread = 1 + (items - 1) * agreement
    return np.clip(items * agreement / np.maximum(spread, 1e-9), -1, 1)


def _items_needed(of_items: Estimate) -> Estimate | None:
    """The number of items for a reliability of `TARGET`, from the reliability of one; None if it is not above 0."""

    def needed(agreement: float) -> float:
        return TARGET / (1 - TARGET) * (1 - agreement) / agreement

    if of_items.value <= 0:
        return None
    assert of_items.high is not None, "a correlation has an upper end"
    return Estimate(needed(of_items.value), needed(of_items.high), needed(of_items.low) if of_items.low > 0 else None)


def _transform(estimate: Estimate, function: Callable[[float], float]) -> Estimate:
    """The estimate of a rising function of a figure. Percentile intervals may be transformed like this."""
    assert estimate.high is not None, "only a number of items has no upper end"
    return Estimate(*map(function, (estimate.value, estimate.low, estimate.high)))


def _same_winners(differences: np.ndarray, variance: float) -> np.ndarray:
    """For each correlation of `_CORRELATIONS`, the expected number of pairs whose winner another score confirms."""
    slopes = _CORRELATIONS / np.sqrt(1 - _CORRELATIONS**2)
    if not len(differences):
        return np.zeros_like(slopes)
    from scipy.special import ndtr

    return np.asarray(ndtr(np.outer(slopes, differences / math.sqrt(variance))).sum(1))


def _bootstrap(
    table: np.ndarray, figures: Sequence[Callable[[np.ndarray], np.ndarray]], counting: CountingSettings
) -> list[Estimate | None]:
    """Each figure with its percentile interval over articles; None for a figure that is not defined.

    Args:
        table: what each article adds to the sums, shape (articles, columns).
        figures: functions of sums, shape (resamples, columns). A resample without such pairs gives NaN and is left out.
    """
    rng, count = np.random.default_rng(counting.seed), len(table)
    sums = [table.sum(0, keepdims=True)]
    for start in range(0, counting.report.resamples, _RESAMPLES_AT_ONCE):
        size = min(_RESAMPLES_AT_ONCE, counting.report.resamples - start)
        sums.append(rng.multinomial(count, np.full(count, 1 / count), size=size) @ table)
    tail = (1 - counting.report.confidence) / 2
    estimates: list[Estimate | None] = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for figure in figures:
            value, *resampled = figure(np.concatenate(sums))
            if not np.isfinite(value):
                estimates.append(None)
                continue
            finite = np.array(resampled)[np.isfinite(resampled)]
            low, high = np.quantile(finite, [tail, 1 - tail])
            estimates.append(Estimate(float(value), float(low), float(high)))
    return estimates


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


# Messages and lines of the judge card


def coin_message(reliability: Reliability, least: float) -> str | None:
    """Return why a score is a coin: other questions pick the same winner in less than `least` of the pairs.

    None if the interval reaches `least`, or if there are fewer articles than `FEW_ARTICLES`.
    """
    same = reliability.same_winner
    if same is None or same.high is None or same.high >= least or reliability.articles < FEW_ARTICLES:
        return None
    needed = reliability.items_needed
    more = f" (about {needed.value:,.0f} for a reliability of {TARGET})" if needed and needed.high else ""
    return (
        f"another set of {reliability.items:.3g} {reliability.unit} would pick the same winner in "
        f"{percent_interval(same)} of {reliability.pairs:,} pairs of {reliability.articles:,} articles, and "
        f"scores.min_same_winner asks for {least:.0%}: such a score is close to a coin, so nothing was trained. Use "
        f"more {reliability.unit}{more}, use another judge, pair only clear differences "
        "(pairs.min_standard_errors=1), or go on with scores.min_same_winner=null"
    )


def reliability_lines(reliability: Mapping[str, Any] | None) -> list[list[str]]:
    """Lines of the judge card: name, value, and what it is of. None if the run has no scored summaries yet.

    Args:
        reliability: `Reliability.as_dict`.
    """
    if reliability is None:
        return []
    unit = reliability["unit"]
    if reliability["items"] is None:
        return [[f"same winner by other {unit}", "–", reliability["reason"]]]
    of_summaries = f"{reliability['summaries']:,} summaries of {reliability['articles']:,} articles"
    lines = [
        (f"same winner by other {unit}", "same_winner", f"{reliability['pairs']:,} pairs"),
        (
            "same winner by the other half",
            "same_winner_by_halves",
            f"{reliability['half_pairs']:,} pairs",
        ),
    ]
    needed = reliability["items_needed"]
    return [
        *([label, percent_interval(reliability[key]), of] for label, key, of in lines),
        ["correlation of the halves", _number_interval(reliability["half_correlation"]), of_summaries],
        [
            "reliability of the score",
            _number_interval(reliability["reliability"]),
            f"{reliability['items']:.3g} {unit}",
        ],
        [f"{unit} for reliability {TARGET}", _count_interval(needed), reliability["reason"] or ""],
    ]


def reliability_notes(reliability: Mapping[str, Any] | None) -> list[str]:
    """Warnings about a score whose pairs are close to coins."""
    same = reliability and reliability["same_winner"]
    if not reliability or not same or same["high"] is None:
        return []
    needed, unit = reliability["items_needed"], reliability["unit"]
    remedy = (
        f"About {needed['value']:,.0f} {unit} for each article would give a reliability of {TARGET}."
        if needed and needed["high"]
        else f"These {unit} do not visibly agree with each other, so more of their kind may not help."
    )
    shown = f"picks the same winner in {percent_interval(same)} of {reliability['pairs']:,} pairs"
    if same["low"] <= 0.5:
        doubt = (
            "is no better than a coin"
            if same["high"] < _COIN and reliability["articles"] >= FEW_ARTICLES
            else "cannot be told from a coin by so few pairs"
        )
        return [
            f"Another set of {unit} {shown}: which of two summaries of an article wins {doubt}. Training can then "
            f"learn only what holds in all articles, such as more facts or fewer words. {remedy}"
        ]
    if same["value"] < _NOISY:
        return [f"Another set of {unit} {shown}: many pairs are chance. {remedy}"]
    return []


def percent_interval(estimate: Estimate | Mapping[str, Any] | None) -> str:
    """A share with its interval: `47.3% [41.2%, 53.5%]`."""
    return _interval(estimate, "{:.1%}")


def _number_interval(estimate: Mapping[str, Any] | None) -> str:
    return _interval(estimate, "{:.2f}")


def _count_interval(estimate: Mapping[str, Any] | None) -> str:
    return _interval(estimate, "{:,.0f}")


def _interval(estimate: Estimate | Mapping[str, Any] | None, form: str) -> str:
    if estimate is None:
        return "–"
    value, low, high = (vars(estimate) if isinstance(estimate, Estimate) else estimate).values()
    return f"{form.format(value)} [{form.format(low)}, {'∞' if high is None else form.format(high)}]"
