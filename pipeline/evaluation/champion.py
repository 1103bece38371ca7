"""How the rounds stand: what each came to, and the champion, the last policy that beat the champion before it.

Measured anew from the evaluations on every walk, by the same functions as the report's, and never an artifact: what is
played next so always follows from what is there. Left out: when to stop (`stopping.py`), what to play (`round.py`).
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.config import Config
from pipeline.evaluation.comparison import compare_writers, describe_writer
from pipeline.evaluation.kl import estimate_kl
from pipeline.evaluation.round_result import Assessment
from pipeline.evaluation.stopping import RoundFigures, bounds_exceeded
from pipeline.evaluation.win_rate import WinRate
from pipeline.storage import tables
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.schema import Row

if TYPE_CHECKING:
    from pipeline.evaluation.round_result import Round

CHAMPION = "champion.json"


def assess_round(played: "Sequence[Round]", config: Config, ledger: Ledger) -> Assessment | None:
    """What the last of these rounds came to, and who is champion now.

    A policy whose summaries are out of the bounds of `stop` is no champion, whoever it beats.

    Args:
        played: round 0 and each after it, all but the last with their standing.

    Returns:
        None if it cannot be known yet: a survey walks over what is still to be made.
    """
    current, before, base = played[-1], played[-2].assessment, played[0]
    if before is None or not _is_made(current.pairs, current.drift, *(one.results for one in played)):
        return None
    champion, start = played[before.champion], played[current.start]
    rows = {one.number: heldout_rows(one, ledger) for one in (base, champion, start, current)}

    def against(other: "Round") -> WinRate | None:
        return compare_writers(rows[current.number], rows[other.number], config.pairs, config.report, config.seed)[
            "strict"
        ]

    how = config.report, config.pairs.threshold
    described = describe_writer(rows[current.number], *how)
    drift = estimate_kl(tables.read_table(ledger, current.drift)) if current.drift else None
    assert current.pairs is not None, "a trained round has pairs"
    figures = RoundFigures(
        number=current.number,
        gained=against(start),
        pair_yield=current.pairs.record["kept"] / current.pairs.record["in"],
        kl=0.0 if current.start == 0 else drift.per_summary if drift else None,
        words=described.get("words_median"),
        base_words=describe_writer(rows[0], *how).get("words_median"),
        invalid_chars=described.get("invalid_chars"),
    )
    challenge = against(champion)
    if challenge is not None and challenge.better and not bounds_exceeded(config.stop, figures):
        return Assessment(current.number, champion.number, challenge, figures, drift, challenge)
    return Assessment(before.champion, before.beat, before.won, figures, drift, challenge)


def heldout_rows(current: "Round", ledger: Ledger) -> list[Row]:
    """The rows of a round's evaluation that are its policy's own: beside the base's stand baselines."""
    return [row for row in tables.read_table(ledger, current.results) if row["writer"] == current.policy.build]


def _is_made(*found: Artifact | None) -> bool:
    """Whether these tables are there to be read: a survey has placeholders of those that are not."""
    return all(table is None or "parts" in table.record for table in found)


def write_champion(played: "Sequence[Round]", ledger: Ledger) -> None:
    """Write champion.json, which says where the best policy so far is, and whom it beat."""
    standing = played[-1].assessment
    assert standing is not None, "what was played can be measured"
    champion = played[standing.champion]
    found = {
        "round": champion.number,
        "address": champion.policy.address,
        "build": champion.policy.build,
        "model": champion.policy.record["model"],
        "digest": champion.policy.record["digest"],
        "beat": None if standing.beat is None else {"round": standing.beat, "strict": standing.won},
    }
    ledger.write(CHAMPION, json.dumps(found, indent=2, ensure_ascii=False, default=vars) + "\n")
