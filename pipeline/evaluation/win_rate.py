"""Win rates with intervals. Plain NumPy; what is compared, and by which rule, is decided elsewhere."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


def homogeneity_p(one: Sequence[int], other: Sequence[int]) -> float | None:
    """How likely two sets of counts differ so much where both have the same shares; None where one has none.

    The p-value of Pearson's chi-square test of homogeneity. Its survival function by recurrence in the degrees of
    freedom: Q(x | d + 2) = Q(x | d) + (x / 2)^(d / 2) exp(-x / 2) / Gamma(d / 2 + 1) (Abramowitz and Stegun, 26.4.8).
    """
    totals = sum(one), sum(other)
    if not all(totals):
        return None
    found = [pair for pair in zip(one, other, strict=True) if any(pair)]
    half = 0.0
    for pair in found:
        for count, total in zip(pair, totals, strict=True):
            expected = sum(pair) * total / sum(totals)
            half += (count - expected) ** 2 / expected / 2
    if half == 0 or len(found) == 1:
        return 1.0
    freedom = 1 if len(found) % 2 == 0 else 2
    q = math.erfc(math.sqrt(half)) if freedom == 1 else math.exp(-half)
    for d in range(freedom, len(found) - 1, 2):
        q += math.exp(d / 2 * math.log(half) - half - math.lgamma(d / 2 + 1))
    return min(1.0, q)


@dataclass(frozen=True)
class WinRate:
    """(wins + ties / 2) / n, with a paired-bootstrap interval. All shares are 0 to 1.

    `better`: shown to win, at the interval's confidence. The interval lies above 0.5, and an exact sign test of wins
    and losses says so too: a bootstrap that has seen no loss draws none.
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
    """The win rate of paired verdicts, or None where there are none.

    The unit that is resampled is the article, with both of its summaries: the pairing stays whole. With three kinds
    of verdict, n draws with replacement are one multinomial draw of (wins, ties, losses), so a resample costs the
    same for a hundred articles and for a million. Percentile interval (Efron and Tibshirani, 1993, chapter 13).

    Args:
        verdicts: for each article 1 (win), 0 (tie) or -1 (loss).
        resamples: how many bootstrap samples.
        confidence: 0.95 for a 95 % interval.
        seed: of the draws.
    """
    n = len(verdicts)
    if n == 0:
        return None
    counts = np.array([sum(v == kind for v in verdicts) for kind in (1, 0, -1)])
    assert counts.sum() == n, "verdicts are 1, 0 or -1"
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    rates = (drawn[:, 0] + drawn[:, 1] / 2) / n
    tail = (1 - confidence) / 2
    low, high = np.quantile(rates, [tail, 1 - tail])
    wins, ties, losses = map(int, counts)
    # Of more decided articles the interval knows enough by itself, and the exact sum would be long.
    better = bool(low > 0.5) and (wins + losses > 1000 or sign_test(wins, losses) <= 1 - confidence)
    return WinRate((wins + ties / 2) / n, float(low), float(high), n, wins, ties, losses, better)


def sign_test(wins: int, losses: int) -> float:
    """How likely so uneven a count of wins and losses is where both are as likely: the exact two-sided p-value."""
    n = wins + losses
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(max(wins, losses), n + 1)) / 2**n)
