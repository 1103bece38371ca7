"""Tests correlations and their intervals: values computed by hand, definitions, and resamples drawn one by one."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jobs.judge.correlation import (
    MEASURES,
    Bootstrap,
    kendall,
    one_rater_and_the_others,
    partial_spearman,
    pearson,
    spearman,
)


@pytest.mark.parametrize(
    ("a", "b", "rho", "tau"),
    [
        ((1, 2, 3), (10, 20, 90), 1, 1),
        ((1, 2, 3), (3, 2, 1), -1, -1),
        ((1, 2, 3, 4), (1, 3, 2, 4), 0.8, 4 / 6),
        # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: rho = 4.5 / sqrt(4.5 * 5); tau-b = 5 / sqrt(5 * 6).
        ((1, 2, 2, 3), (1, 2, 3, 4), 4.5 / math.sqrt(22.5), 5 / math.sqrt(30)),
        ((1, 1, 1), (1, 2, 3), None, None),
        ((1,), (2,), None, None),
        ((), (), None, None),
    ],
)
def test_correlations_equal_values_computed_by_hand(a, b, rho, tau):
    assert spearman(np.array(a), np.array(b)) == (rho if rho is None else pytest.approx(rho))
    assert kendall(np.array(a), np.array(b)) == (tau if tau is None else pytest.approx(tau))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9))
def test_correlations_equal_their_definitions(points):
    a, b = (np.array(side, float) for side in zip(*points, strict=True))
    pairs = list(itertools.combinations(points, 2))
    alike = sum((x - u) * (y - v) > 0 for (x, y), (u, v) in pairs)
    unlike = sum((x - u) * (y - v) < 0 for (x, y), (u, v) in pairs)
    in_a, in_b = sum(x == u for (x, _), (u, _) in pairs), sum(y == v for (_, y), (_, v) in pairs)
    norm = math.sqrt((len(pairs) - in_a) * (len(pairs) - in_b))
    assert kendall(a, b) == (pytest.approx((alike - unlike) / norm) if norm else None)
    varies = bool(norm)
    assert pearson(a, b) == (pytest.approx(stats.pearsonr(a, b).statistic) if varies else None)
    assert spearman(a, b) == (pytest.approx(stats.spearmanr(a, b).statistic) if varies else None)


def some_articles(seed=0, articles=6):
    """Two sides with ties, of articles with 1 to 5 summaries."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, articles)
    return [(rng.integers(0, 4, n).astype(float), rng.integers(0, 3, n).astype(float)) for n in sizes]


@pytest.mark.parametrize("name", MEASURES)
def test_a_pooled_interval_equals_resamples_computed_one_by_one(name):
    sides = some_articles()
    bootstrap = Bootstrap(len(sides), 300, confidence=0.9, seed=1)
    drawn = []
    for counts in bootstrap.counts.astype(int):
        chosen = [side for side, count in zip(sides, counts, strict=True) for _ in range(count)]
        drawn.append(MEASURES[name](*(np.concatenate(part) for part in zip(*chosen, strict=True))))
    expected = np.quantile([value for value in drawn if value is not None], [0.05, 0.95])
    pooled = bootstrap.pooled(name, sides)
    assert (pooled["low"], pooled["high"]) == pytest.approx(tuple(expected))
    assert pooled["value"] == pytest.approx(MEASURES[name](*map(np.concatenate, zip(*sides, strict=True))))
    assert pooled["n"] == sum(len(side[0]) for side in sides)


@pytest.mark.parametrize("name", MEASURES)
def test_an_interval_by_system_equals_resamples_computed_one_by_one(name):
    rng = np.random.default_rng(3)
    scores, ratings, counts = rng.normal(size=(8, 4)), rng.normal(size=(8, 4)), rng.integers(0, 3, (8, 4))
    scores, ratings = scores * counts, ratings * counts
    bootstrap = Bootstrap(8, 200, seed=2)
    drawn = []
    for drawn_counts in bootstrap.counts:
        total = drawn_counts @ counts
        if (total > 0).all():
            drawn.append(MEASURES[name](drawn_counts @ scores / total, drawn_counts @ ratings / total))
    found = bootstrap.system_level(name, (scores, ratings), counts.astype(float))
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    assert found["n"] == 4


def test_a_mean_leaves_out_articles_without_a_value():
    bootstrap = Bootstrap(4, 500)
    found = bootstrap.mean([0.5, None, 1.0, 0.0])
    assert (found["value"], found["n"]) == (0.5, 3) and found["low"] <= 0.5 <= found["high"]
    assert bootstrap.mean([None] * 4) == {"value": None, "low": None, "high": None, "n": 0}
    assert bootstrap.mean([1.0] * 4) == {"value": 1, "low": 1, "high": 1, "n": 4}
    assert Bootstrap(0, 500).mean([]) == {"value": None, "low": None, "high": None, "n": 0}


def test_intervals_contain_the_true_value_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        found = Bootstrap(40, 300, seed=trial).mean(list(rng.normal(0.3, 1, 40)))
        hits += found["low"] <= 0.3 <= found["high"]
    assert 0.88 < hits / 200 < 0.99


def test_the_same_seed_gives_the_same_interval():
    sides = some_articles(5)
    first, second, other = (Bootstrap(6, 100, seed=seed).pooled("spearman", sides) for seed in (1, 1, 2))
    assert first == second != other


def test_a_partial_correlation_takes_out_length():
    rng = np.random.default_rng(0)
    words = rng.normal(size=500)
    score, rating = words + 0.3 * rng.normal(size=500), words + 0.3 * rng.normal(size=500)
    assert spearman(score, rating) > 0.8 and abs(partial_spearman(score, rating, words)) < 0.1
    assert partial_spearman(score, rating, np.ones(500)) == spearman(score, rating)
    assert partial_spearman(words, rating, words) is None  # nothing is left of the score
    # By the formula, from rho 0.5, 0.5 and 0.5: (0.5 - 0.25) / 0.75.
    a, b, c = np.array([1, 2, 3]), np.array([1, 3, 2]), np.array([2, 1, 3])
    assert (spearman(a, b), spearman(a, c), spearman(b, c)) == pytest.approx((0.5, 0.5, -0.5))
    assert partial_spearman(a, b, c) == pytest.approx((0.5 + 0.25) / 0.75)


def test_one_rater_is_compared_with_the_mean_of_the_others():
    alike = np.array([[1, 1, 1], [2, 2, 2], [4, 4, 4]], float)
    assert one_rater_and_the_others(alike, spearman) == pytest.approx(1)
    ratings = np.array([[1, 1], [2, 3], [3, 2]], float)
    assert one_rater_and_the_others(ratings, spearman) == pytest.approx(0.5)  # with two raters both ways are equal
    missing = np.array([[1, 1, np.nan], [2, 2, 9], [np.nan, 3, 8], [4, np.nan, 7]], float)
    first = spearman(np.array([1, 2, 4]), np.array([1, 5.5, 7]))
    second = spearman(np.array([1, 2, 3]), np.array([1, 5.5, 8]))
    third = spearman(np.array([9, 8, 7]), np.array([2, 3, 4]))
    assert one_rater_and_the_others(missing, spearman) == pytest.approx(np.mean([first, second, third]))
    assert one_rater_and_the_others(ratings[:, :1], spearman) is None
