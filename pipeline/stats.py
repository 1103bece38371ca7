"""Win rates with intervals. Plain NumPy; what is compared, and by which rule, is decided elsewhere."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class WinRate:
    """(wins + ties / 2) / n, with a paired-bootstrap interval. All shares are 0 to 1."""

    win_rate: float
    low: float
    high: float
    n: int
    wins: int
    ties: int
    losses: int

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
    return WinRate((wins + ties / 2) / n, float(low), float(high), n, wins, ties, losses)
