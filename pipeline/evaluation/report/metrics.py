"""The report: metrics.json for machines, a table for the terminal, report.md with one plot for people.

Written again after every round from the evaluations, so it is never older than the run. Left out: measuring anything,
and the plot (`plot.py`).
"""

from collections.abc import Sequence
from typing import Any

from pipeline.config import Config
from pipeline.config.run import JudgeSettings
from pipeline.evaluation import judge_card
from pipeline.evaluation.comparison import (
    compare_writers,
    describe_writer,
    judge_agreement,
    single_summary_rows,
    verdicts,
)
from pipeline.evaluation.round_result import Round
from pipeline.judging.preference import evaluation_rules
from pipeline.stages.summaries import BASELINES
from pipeline.storage import tables
from pipeline.storage.ledger import Ledger
from pipeline.storage.schema import Row

_FEW = 30  # articles under which a bootstrap interval is not to be trusted


def collect_metrics(played: Sequence[Round], config: Config, ledger: Ledger) -> dict[str, Any]:
    """What metrics.json says.

    Args:
        played: round 0 (the base) and each round after it.

    Returns:
        `base`, `baselines`, `compared` (models at servers), `judge` (its card: see `card.measure`), and `rounds`: one
        entry per trained round, with `vs_base` and `vs_previous`, each by the rules `strict` and `reference`. With a
        second judge also `second`, in each round and baseline: the same with its `rate`, and its `agreement` with the
        first (`evaluation.agree`). `champion` is the number of the round whose policy it is; `stopped` says why the
        run stopped, or is None.
    """

    def against(ours: list[Row], theirs: list[Row]) -> dict[str, Any]:
        found = compare_writers(ours, theirs, config.pairs, config.report, config.seed)
        return {rule: rate and rate.as_dict() for rule, rate in found.items()}

    first = tables.read_table(ledger, played[0].results)
    base = single_summary_rows(first, 0)
    baselines = {name: single_summary_rows(first, place) for place, name in enumerate(BASELINES, 1)}
    compared = {
        name: single_summary_rows(tables.read_table(ledger, results), 0) for name, results in played[0].compared.items()
    }
    last = played[-1]
    assert last.assessment is not None, "what was played can be measured"
    opinions = _opinions(played, ledger)
    how = config.report, config.pairs.threshold
    metrics: dict[str, Any] = {
        "run": ledger.root,
        "threshold": config.pairs.threshold,
        "confidence": config.report.confidence,
        "base": describe_writer(base, *how),
        "baselines": {
            name: describe_writer(some, *how) | {"vs_base": against(some, base)} for name, some in baselines.items()
        },
        "compared": {
            name: describe_writer(some, *how) | {"vs_base": against(some, base)} for name, some in compared.items()
        },
        "rounds": [],
        "champion": last.assessment.champion,
        "stopped": last.ended,
        "second_judge": _name(config.second_judge) if config.second_judge else None,
        "judge": _card(played, config, ledger),
        "notes": [],
    }
    if config.second_judge:
        for name, some in baselines.items():
            metrics["baselines"][name]["second"] = {"vs_base": _second(some, base, config, opinions)}
    previous, before = base, 0
    for current in played[1:]:
        if not current.learned:
            if current.pairs:
                metrics["notes"].append(f"Round {current.number} gave no pairs, and there was nothing to learn from.")
            continue
        ours = single_summary_rows(tables.read_table(ledger, current.results), 0)
        training = current.policy.record["training"]
        metrics["rounds"].append(
            {
                "round": current.number,
                "previous": before,
                **describe_writer(ours, *how),
                "vs_base": against(ours, base),
                "vs_previous": against(ours, previous),
                **_progress(current),
                "training": training,
            }
        )
        if config.second_judge:
            metrics["rounds"][-1]["second"] = {
                "vs_base": _second(ours, base, config, opinions),
                "vs_previous": _second(ours, previous, config, opinions),
            }
        metrics["notes"] += [f"Round {current.number}: {warning}." for warning in training["warnings"]]
        previous, before = ours, current.number
    if metrics["base"]["n"] < _FEW:
        metrics["notes"].append(
            f"Only {metrics['base']['n']} held-out articles could be compared: an interval of so few says little."
        )
    if last.ended:
        metrics["notes"].append(f"{last.ended}.")
    metrics["notes"] += judge_card.card_notes(metrics["judge"])
    metrics["notes"] += _unconfirmed(metrics)
    metrics["notes"] += _gamed(metrics, config.baselines.shorten_to)
    return metrics


def _name(judge: JudgeSettings) -> str:
    return judge.model or judge.kind


def _opinions(played: Sequence[Round], ledger: Ledger) -> dict[tuple[str, str], list[Row]]:
    """Scores by the second judge, aligned with summaries, by article id and writer; of what it had questions about."""
    found = {current.second.build: current.second for current in played if current.second}
    rows = [row for table in found.values() for row in tables.read_table(ledger, table)]
    return {(row["article_id"], row["writer"]): row["second_scores"] for row in rows if row["second_questions"]}


def _second(
    ours: list[Row], theirs: list[Row], config: Config, opinions: dict[tuple[str, str], list[Row]]
) -> dict[str, Any]:
    """By each rule, the win rate by the second judge, and how far it agrees with the first on who wins."""
    mine, others = (
        [
            row | {"scores": [opinions[key][row["place"]]]}
            for row in some
            if (key := (row["article_id"], row["writer"])) in opinions
        ]
        for some in (ours, theirs)
    )
    rates = compare_writers(mine, others, config.pairs, config.report, config.seed)
    return {
        name: {
            "rate": (rate := rates[name]) and rate.as_dict(),
            "agreement": judge_agreement(
                verdicts(ours, theirs, config.pairs, rule), verdicts(mine, others, config.pairs, rule)
            ),
        }
        for name, rule in evaluation_rules(config.pairs).items()
    }


def _card(played: Sequence[Round], config: Config, ledger: Ledger) -> dict[str, Any]:
    scores = [ledger.find(f"round-{current.number:02d}/scores") for current in played[1:]]
    judged = [table.record for table in scores if table]
    # The last round's evaluation is that of the one before where a round gave no pairs.
    examined = {current.results.build: current.results.record for current in played}
    questions = ledger.find("questions")
    assert questions is not None, "what was judged has questions"
    return judge_card.measure_card(questions.record, judged, [*judged, *examined.values()], config.judge.options)


def _progress(current: Round) -> dict[str, Any]:
    """What a round started from, learned from and came to, beside its summaries.

    `kl` is of its writer to the base: see `drift.Drift`; None where the writer is the base, or nothing was measured.
    """
    assert current.pairs is not None and current.assessment is not None, "a trained round has pairs and a standing"
    standing = current.assessment
    assert standing.figures is not None, "a trained round has figures"
    counts = current.pairs.record["tally"]
    replayed = current.replayed.record["tally"] if current.replayed else {}
    return {
        "start": current.start,
        "articles": current.pairs.record["in"],
        "articles_with_pairs": current.pairs.record["kept"],
        "yield": standing.figures.pair_yield,
        "pairs": counts["pairs"],
        "pairs_against_base": counts.get("pairs against the base", 0),
        "replayed_pairs": replayed.get("replayed pairs", 0),
        "kl": standing.drift and vars(standing.drift),
        "vs_start": {"strict": standing.figures.gained and standing.figures.gained.as_dict()},
        "vs_champion": {"strict": standing.challenge and standing.challenge.as_dict()},
        "became_champion": standing.champion == current.number,
    }


def _gamed(metrics: dict[str, Any], shorten_to: float) -> list[str]:
    """Say so where a rule prefers the base's own summaries cut short."""
    rates = metrics["baselines"][BASELINES[1]]["vs_base"]
    return [
        f"By the {rule} rule the base's summaries cut to {shorten_to:.0%} of their words win {format_rate(rate)} "
        "against the base. Under this rule a win may be mere shortness."
        for rule, rate in rates.items()
        if rate and rate["better"] and rate["n"] >= _FEW
    ]


def _unconfirmed(metrics: dict[str, Any]) -> list[str]:
    """Say so where training pleased the judge that it learned from, and not the second."""
    said = []
    for values in metrics["rounds"] if metrics["second_judge"] else ():
        first, second = values["vs_base"]["strict"], values["second"]["vs_base"]["strict"]["rate"]
        if first and second and first["better"] and not second["better"]:
            said.append(
                f"By the strict rule round {values['round']} wins {format_rate(first)} against the base, but "
                f"{format_rate(second)} by the second judge, {metrics['second_judge']}: what was learned may be to "
                "please the first."
            )
    return said


def format_rate(rate: dict[str, Any] | None) -> str:
    if rate is None:
        return "–"
    return f"{rate['win_rate']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]"
