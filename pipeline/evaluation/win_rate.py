"""Computes win rates and means with confidence intervals, and two tests for counts, with NumPy alone.

`comparison.py` decides what is compared, and by which rule.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np


def homogeneity_p(first: Sequence[int], second: Sequence[int]) -> float | None:
    """The p-value of Pearson's chi-square test that two sets of counts have the same shares.

    The survival function of the chi-square distribution comes from a recurrence in the degrees of freedom d:
    Q(x | d + 2) = Q(x | d) + (x / 2)^(d / 2) exp(-x / 2) / Gamma(d / 2 + 1) (Abramowitz and Stegun, 26.4.8).

    Args:
        first, second: counts of the same kinds, in the same order.

    Returns:
        the probability of such a difference if the shares are the same; None if either set has no counts.
    """
    totals = sum(first), sum(second)
    if not all(totals):
        return None
    kinds = [counts for counts in zip(first, second, strict=True) if any(counts)]
    half_statistic = 0.0
    for counts in kinds:
        for count, total in zip(counts, totals, strict=True):
            expected = sum(counts) * total / sum(totals)
            half_statistic += (count - expected) ** 2 / expected / 2
    if half_statistic == 0 or len(kinds) == 1:
        return 1.0
    first_d = 1 if len(kinds) % 2 == 0 else 2  # the recurrence starts here, at the parity of the degrees of freedom
    q = math.erfc(math.sqrt(half_statistic)) if first_d == 1 else math.exp(-half_statistic)
    for d in range(first_d, len(kinds) - 1, 2):
        q += math.exp(d / 2 * math.log(half_statistic) - half_statistic - math.lgamma(d / 2 + 1))
    return min(1.0, q)


@dataclass(frozen=True)
class WinRate:
    """(wins + ties / 2) / n, with a paired-bootstrap interval. All shares are from 0 to 1.

    Attributes:
        low, high: the ends of the interval.
        n: number of articles.
        better: whether the win is shown at the interval's confidence. Two conditions must hold: the interval lies
            above 0.5, and an exact sign test of wins and losses agrees. The bootstrap alone is not enough: if there was
            no loss, no resample has one.
    """

    win_rate: float
    low: float
    high: float
    n: int
    wins: int
    ties: int
    losses: int
    better: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def win_rate(verdicts: Sequence[int], *, resamples: int, confidence: float, seed: int) -> WinRate | None:
    """The win rate of paired verdicts; None if there are none.

    The bootstrap resamples articles, each with both of its summaries, so the pairing stays intact. There are only three
    kinds of verdict, so n draws with replacement are one multinomial draw of (wins, ties, losses). A resample therefore
    costs the same for a hundred articles and for a million. The interval is the percentile interval (Efron and
    Tibshirani, 1993, chapter 13).

    Args:
        verdicts: for each article 1 (win), 0 (tie) or -1 (loss).
        resamples: number of bootstrap samples.
        confidence: 0.95 for a 95 % interval.
        seed: seed of the bootstrap.
    """
    n = len(verdicts)
    if n == 0:
        return None
    counts = np.array([sum(v == kind for v in verdicts) for kind in (1, 0, -1)])
    assert counts.sum() == n, "verdicts are 1, 0 or -1"
    samples = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    rates = (samples[:, 0] + samples[:, 1] / 2) / n
    tail = (1 - confidence) / 2
    low, high = np.quantile(rates, [tail, 1 - tail])
    wins, ties, losses = map(int, counts)
    # Above 1000 wins and losses the interval is reliable by itself, and the exact sum would take long.
    better = bool(low > 0.5) and (wins + losses > 1000 or sign_test(wins, losses) <= 1 - confidence)
    return WinRate((wins + ties / 2) / n, float(low), float(high), n, wins, ties, losses, better)


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided p-value: the probability of counts this uneven if wins and losses are equally likely."""
    n = wins + losses
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(max(wins, losses), n + 1)) / 2**n)


def mean_share(values: Sequence[float], confidence: float) -> dict[str, Any]:
    """The mean of values from 0 to 1, with Wilson's interval (1927).

    A bootstrap interval would be empty if all values are 0. Wilson's is for zeros and ones. Values between them vary
    less than zeros and ones of the same mean, so their interval is rather too wide.

    Args:
        values: the values, at least one.
        confidence: 0.95 for a 95 % interval.

    Returns:
        `mean`, the ends `low` and `high` of the interval, and `n`, the number of values.
    """
    p, n = float(np.mean(values)), len(values)
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return {"mean": p, "low": max(0.0, middle - half), "high": min(1.0, middle + half), "n": n}
