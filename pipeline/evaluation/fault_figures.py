"""Sums up the faults of a writer's summaries, and finds those that training has made more frequent.

The faults of a single summary are measured in `judging/scoring/text_faults.py`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.win_rate import mean_share
from pipeline.judging.scoring.text_faults import OFF_TOPIC
from pipeline.storage.schema import Row

# Each figure of `mean_faults`, and what the policy does if the figure has risen.
FAULTS = {
    "repeated": "says more of its words twice",
    "copied": "copies more from the article",
    "lead_copied": "copies more from the article's lead",
    "off_topic_end": "ends off topic more often",
    "other_language": "writes in another language than the article's more often",
}
_CLEAR_RISE = 0.05  # of a share; a smaller rise is not worth a warning
_STANDARD_ERRORS = 2.0  # a rise must be as many of its own standard errors


def mean_faults(rows: Sequence[Row]) -> dict[str, float]:
    """The faults of the first summary of each row, from 0 to 1. A figure that no row has is left out.

    Returns:
        `repeated`, `copied` and `lead_copied`: means of the shares; `off_topic_end` and `other_language`: the shares of
        summaries that end off topic (`text_faults.OFF_TOPIC`), and that are in another language than their article.
    """
    values = [_values(row) for row in rows]
    known = {name: [value[name] for value in values if name in value] for name in FAULTS}
    return {name: float(np.mean(numbers)) for name, numbers in known.items() if numbers}


def fault_intervals(rows: Sequence[Row], confidence: float) -> dict[str, dict[str, Any]]:
    """The figures of `mean_faults`, and `cut_off`, each with its interval (`win_rate.mean_share`)."""
    values = [{**_values(row), "cut_off": float(is_cut_off(row))} for row in rows]
    known = {name: [value[name] for value in values if name in value] for name in (*FAULTS, "cut_off")}
    return {name: mean_share(numbers, confidence) for name, numbers in known.items() if numbers}


def is_cut_off(row: Row) -> bool:
    """Whether the token limit cut off the first summary of a row."""
    return row["summaries"][0]["finish_reason"] == "length"


def clear_rises(ours: Sequence[Row], base: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """The faults that are clearly more frequent in `ours` than in the base's summaries of the same articles.

    A rise is clear if it is more than 5 percentage points, and more than two standard errors of the mean difference
    per article. Articles for which either figure is unknown are left out.

    Returns:
        for each such fault the figure of `ours` and that of the base, on the same articles.
    """
    base_values = {row["article_id"]: _values(row) for row in base}
    both = [(_values(row), base_values[row["article_id"]]) for row in ours if row["article_id"] in base_values]
    rises = {}
    for name in FAULTS:
        pairs = np.array([(one[name], other[name]) for one, other in both if name in one and name in other])
        if len(pairs) < 2:
            continue
        differences = pairs[:, 0] - pairs[:, 1]
        error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
        if differences.mean() > max(_CLEAR_RISE, _STANDARD_ERRORS * error):
            rises[name] = (float(pairs[:, 0].mean()), float(pairs[:, 1].mean()))
    return rises


def _values(row: Row) -> Mapping[str, float]:
    """The figures of a row's first summary. Those that are unknown are left out, and all of them for older tables."""
    if (faults := row["scores"][0].get("faults")) is None:
        return {}
    values = {name: faults[name] for name in ("repeated", "copied", "lead_copied") if faults[name] is not None}
    # A last sentence with too few words to tell is no ending off topic.
    off_topic = faults["off_topic_end"] is not None and faults["off_topic_end"] >= OFF_TOPIC
    return values | {"off_topic_end": float(off_topic), "other_language": float(faults["other_language"] is not None)}
