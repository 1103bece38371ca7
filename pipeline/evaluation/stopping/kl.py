"""Estimates the KL divergence of a policy from the base, from the rows of a `drift` table."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.storage.schema import Row, unscored_tokens


@dataclass(frozen=True)
class KlEstimate:
    """The KL divergence of a policy from the base in nats, with standard errors (None for a single article).

    Attributes:
        articles: number of articles in the sample.
        per_summary, per_summary_error: the mean over summaries of log policy - log base.
        per_token, per_token_error: the sum of these differences over the number of tokens.
    """

    articles: int
    per_summary: float
    per_summary_error: float | None
    per_token: float
    per_token_error: float | None


def estimate_kl(rows: Sequence[Row]) -> KlEstimate | None:
    """The estimate from the rows of a `drift` table; None if there are no rows.

    The unit of the sample is the article, because its summaries answer the same prompt and are not independent. The
    standard errors are those of a ratio of means over articles (Cochran, 1977, chapter 6).
    """
    if not rows:
        return None
    differences, tokens, summaries = np.array(
        [
            (
                sum(policy - base for policy, base in zip(row["policy_logps"], row["base_logps"], strict=True)),
                sum(_sampled_tokens(summary) for summary in row["summaries"]),
                len(row["summaries"]),
            )
            for row in rows
        ],
        dtype=float,
    ).T
    per_summary, per_summary_error = _ratio(differences, summaries)
    per_token, per_token_error = _ratio(differences, tokens)
    return KlEstimate(len(rows), per_summary, per_summary_error, per_token, per_token_error)


def _sampled_tokens(summary: Row) -> int:
    start, end = unscored_tokens(summary)
    return len(summary["token_ids"]) - (end - start)


def _ratio(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float | None]:
    """sum(numerators) / sum(denominators), both of shape (articles,), and the standard error of this ratio."""
    n, ratio = len(numerators), float(numerators.sum() / denominators.sum())
    if n < 2:
        return ratio, None
    deviation = float(np.sqrt(((numerators - ratio * denominators) ** 2).sum() / (n - 1)))
    return ratio, deviation / float(np.sqrt(n) * denominators.mean())
