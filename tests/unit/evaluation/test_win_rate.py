"""Tests of win rates with known values, and of the coverage of their intervals."""

import numpy as np
import pytest

from pipeline.evaluation.win_rate import sign_test, win_rate

OPTIONS = {"resamples": 4000, "confidence": 0.95, "seed": 0}


def test_known_counts():
    rate = win_rate([1, 1, 1, 0, 0, -1], **OPTIONS)
    assert (rate.wins, rate.ties, rate.losses, rate.n) == (3, 2, 1, 6)
    assert rate.win_rate == pytest.approx(4 / 6)


def test_all_ties_give_one_half_and_an_empty_interval():
    rate = win_rate([0] * 50, **OPTIONS)
    assert (rate.win_rate, rate.low, rate.high) == (0.5, 0.5, 0.5)


def test_no_verdicts_give_no_win_rate():
    assert win_rate([], **OPTIONS) is None


def test_interval_matches_the_published_one():
    # 74 % of about 1050 articles without ties: plus or minus 2.65 points by the normal approximation.
    rate = win_rate([1] * 777 + [-1] * 273, **OPTIONS)
    assert rate.low == pytest.approx(0.74 - 0.0265, abs=0.003)
    assert rate.high == pytest.approx(0.74 + 0.0265, abs=0.003)


def test_interval_covers_the_true_rate_at_its_confidence():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(400):
        verdicts = rng.choice([1, 0, -1], size=200, p=[0.5, 0.2, 0.3]).tolist()
        rate = win_rate(verdicts, resamples=1000, confidence=0.95, seed=trial)
        covered += rate.low <= 0.6 <= rate.high
    assert 0.91 < covered / 400 < 0.98


def test_same_seed_gives_the_same_interval():
    assert win_rate([1, 0, -1] * 9, **OPTIONS) == win_rate([1, 0, -1] * 9, **OPTIONS)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (4, 0, 0.125),
        (6, 0, 0.03125),
        (0, 6, 0.03125),
        (9, 1, 0.021484375),
        (1000, 0, 2.0**-999),
    ],
)
def test_sign_test_by_hand(wins, losses, p):
    assert sign_test(wins, losses) == p


@pytest.mark.parametrize(
    ("wins", "ties", "losses", "better"),
    [
        (4, 26, 0, False),  # the bootstrap alone would call this better
        (5, 0, 0, False),
        (6, 0, 0, True),  # p = 0.03125
        (6, 24, 0, True),
        (0, 0, 6, False),
        (0, 30, 0, False),
        (60, 0, 40, False),
        (65, 0, 35, True),
        (1100, 0, 900, True),
        (1010, 0, 990, False),
    ],
)
def test_better_needs_the_interval_and_the_sign_test(wins, ties, losses, better):
    rate = win_rate([1] * wins + [0] * ties + [-1] * losses, **OPTIONS)
    assert rate.better is rate.as_dict()["better"] is better


def test_interval_of_four_wins_among_ties_lies_above_one_half():
    assert win_rate([1] * 4 + [0] * 26, **OPTIONS).low > 0.5
