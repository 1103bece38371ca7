"""Assesses a round's policy and finds the champion: the last policy that beat the champion before it.

Each time a run walks over its rounds, the assessment is computed again from the evaluations, with the functions that
the report uses. It is not an artifact, so that the next round always follows from the tables that exist. The rules that
stop a run are in `stopping/rules.py`, and the steps of a round are in `pipeline/round.py`.
"""

import json
from collections.abc import Sequence

from pipeline.config import Config
from pipeline.evaluation.comparison import CountingSettings, compare_writers, describe_writer
from pipeline.evaluation.fault_figures import FAULTS
from pipeline.evaluation.round_result import Assessment, Round
from pipeline.evaluation.stopping.kl import estimate_kl
from pipeline.evaluation.stopping.rules import RoundFigures, bounds_exceeded
from pipeline.evaluation.win_rate import WinRate
from pipeline.storage import tables
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.run_folder import CHAMPION
from pipeline.storage.schema import Row


def assess_round(rounds_so_far: Sequence[Round], config: Config, ledger: Ledger) -> Assessment | None:
    """Assess the last of these rounds and decide which policy is champion now.

    The round's policy becomes champion if the evaluation shows that it beats the champion, and if its summaries are
    within the bounds of the setting `stop`.

    Args:
        rounds_so_far: round 0 and each round after it. All but the last have their assessment.
        config: settings of the run.
        ledger: the run folder with the tables.

    Returns:
        the assessment; None in a dry run if a table is not made yet.
    """
    current, before, base = rounds_so_far[-1], rounds_so_far[-2].assessment, rounds_so_far[0]
    if before is None or not _are_made(current.pairs, current.drift, *(each.results for each in rounds_so_far)):
        return None
    counting = CountingSettings.from_config(config)
    champion, start = rounds_so_far[before.champion], rounds_so_far[current.start]
    rows = {each.number: heldout_rows(each, ledger) for each in (base, champion, start, current)}

    def strict_win_rate(opponent: Round) -> WinRate | None:
        return compare_writers(rows[current.number], rows[opponent.number], counting)["strict"]

    description, base_description = (describe_writer(rows[number], counting) for number in (current.number, 0))
    drift = estimate_kl(tables.read_table(ledger, current.drift)) if current.drift else None
    assert current.pairs is not None, "a trained round has pairs"
    figures = RoundFigures(
        number=current.number,
        gained=strict_win_rate(start),
        pair_yield=current.pairs.record["kept"] / current.pairs.record["in"],
        kl=0.0 if current.start == 0 else drift.per_summary if drift else None,
        words=description.get("words_median"),
        base_words=base_description.get("words_median"),
        invalid_chars=description.get("invalid_chars"),
        base_copied=base_description.get("copied"),
        **{name: description.get(name) for name in FAULTS},
    )
    challenge = strict_win_rate(champion)
    if challenge is not None and challenge.better and not bounds_exceeded(config.stop, figures):
        return Assessment(current.number, champion.number, challenge, figures, drift, challenge)
    return Assessment(before.champion, before.beaten_round, before.win_rate, figures, drift, challenge)


def heldout_rows(current: Round, ledger: Ledger) -> list[Row]:
    """The rows of a round's evaluation that its own policy wrote."""
    return [row for row in tables.read_table(ledger, current.results) if row["writer"] == current.policy.build]


def _are_made(*artifacts: Artifact | None) -> bool:
    """Whether all these tables can be read. A dry run has placeholders for tables that do not exist yet."""
    return all(table is None or "parts" in table.record for table in artifacts)


def write_champion(rounds_so_far: Sequence[Round], ledger: Ledger) -> None:
    """Write champion.json: the best policy so far, and the champion that it beat."""
    assessment = rounds_so_far[-1].assessment
    assert assessment is not None, "a finished round has an assessment"
    champion = rounds_so_far[assessment.champion]
    beaten = None
    if assessment.beaten_round is not None:
        beaten = {"round": assessment.beaten_round, "strict": assessment.win_rate}
    content = {
        "round": champion.number,
        "address": champion.policy.address,
        "build": champion.policy.build,
        "model": champion.policy.record["model"],
        "digest": champion.policy.record["digest"],
        "beat": beaten,
    }
    ledger.write(CHAMPION, json.dumps(content, indent=2, ensure_ascii=False, default=vars) + "\n")
