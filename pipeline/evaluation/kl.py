"""KL of a policy to the base, estimated from the rows of the `drift` table."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.storage.schema import Row


@dataclass(frozen=True)
class KlEstimate:
    """KL of a policy to the base, in nats, each with its standard error (None of a single article).

    Attributes:
        articles: that were looked at.
        per_summary, per_summary_error: the mean over summaries of log policy - log base.
        per_token, per_token_error: its sum over all summaries, by their tokens.
    """

    articles: int
    per_summary: float
    per_summary_error: float | None
    per_token: float
    per_token_error: float | None


def estimate_kl(rows: Sequence[Row]) -> KlEstimate | None:
    """The estimate from rows of the `drift` table; None where there are none.

    The article is the unit: its summaries answer one prompt and are not independent. Errors are of means over
    articles, and of a ratio of such means (Cochran, 1977, chapter 6).
    """
    if not rows:
        return None
    gaps, tokens, counts = np.array(
        [
            (
                sum(ours - base for ours, base in zip(row["policy_logps"], row["base_logps"], strict=True)),
                sum(len(s["token_ids"]) for s in row["summaries"]),
                len(row["summaries"]),
            )
            for row in rows
        ],
        dtype=float,
    ).T
    summary, summary_error = _ratio(gaps, counts)
    token, token_error = _ratio(gaps, tokens)
    return KlEstimate(len(rows), summary, summary_error, token, token_error)


def _ratio(above: np.ndarray, below: np.ndarray) -> tuple[float, float | None]:
    """sum(above) / sum(below) of (articles,) values, and its standard error."""
    n, ratio = len(above), float(above.sum() / below.sum())
    if n < 2:
        return ratio, None
    spread = float(np.sqrt(((above - ratio * below) ** 2).sum() / (n - 1)))
    return ratio, spread / float(np.sqrt(n) * below.mean())
