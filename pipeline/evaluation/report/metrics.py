"""Collects the figures of a run for metrics.json, from which the tables, report.md and the plot are made.

It runs again after every round and reads the evaluations again, so the report is never older than the run.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.config import Config
from pipeline.evaluation import judge_card
from pipeline.evaluation.comparison import (
    CountingSettings,
    compare_writers,
    describe_writer,
    judge_agreement,
    single_summary_rows,
    verdicts_by_article,
)
from pipeline.evaluation.fault_figures import FAULTS, clear_rises
from pipeline.evaluation.reliability import measure_table
from pipeline.evaluation.report.looks import read_looks
from pipeline.evaluation.round_result import Round
from pipeline.judging.preference import Rule, ScoreKind
from pipeline.judging.remedies import few_pairs_note, why_no_pairs
from pipeline.judging.tallies import PAIRS, PAIRS_AGAINST_BASE, REPLAYED_PAIRS, describe_unusable
from pipeline.stages.summaries import BASELINES
from pipeline.storage import tables
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import round_folder
from pipeline.storage.schema import Row

_FEW_ARTICLES = 30  # with fewer articles a bootstrap interval is not reliable

# The second judge's scores, aligned with a row's summaries, by article id and writer.
SecondScores = Mapping[tuple[str, str], list[Row]]


def collect_metrics(rounds_so_far: Sequence[Round], config: Config, ledger: Ledger) -> dict[str, Any]:
    """The content of metrics.json.

    Args:
        rounds_so_far: round 0 (the base policy) and each round after it.

    Returns:
        `base`, `baselines` and `compared` (models at servers) describe writers that the run does not train; see
        `comparison.describe_writer`. `judge` is the judge card; see `judge_card.measure_card`. `rounds` has one entry
        per trained round, with its win rates `vs_base` and `vs_previous`, each by the rules `strict` and `reference`.
        With a second judge, each round and baseline also has `second`: the same win rates by that judge as `rate`, and
        its `agreement` with the first judge (`comparison.judge_agreement`). `fault_rises` of a round are the faults of
        the text that it has clearly more often than the base (`fault_figures.clear_rises`), and `unusable` says why
        summaries could not be paired. `test` has the figures of the test articles, see `_test_metrics`; None before the
        end of a run, and without test articles. `champion` is the number of the round whose policy is champion.
        `stopped` says why the run stopped early, or is None. `notes` are sentences for the reader.
    """
    last = rounds_so_far[-1]
    assert last.assessment is not None, "a finished round has an assessment"
    counting = CountingSettings.from_config(config)
    second_scores = _read_second_scores(rounds_so_far, counting.second_judge, ledger) if config.second_judge else None
    evaluation = tables.read_table(ledger, rounds_so_far[0].results)
    base = single_summary_rows(evaluation, 0)
    metrics: dict[str, Any] = {
        "run": ledger.root,
        "threshold": counting.threshold,
        "confidence": counting.report.confidence,
        "base": describe_writer(base, counting),
        "baselines": _baseline_metrics(evaluation, base, counting, second_scores),
        "compared": _compared_metrics(rounds_so_far[0], base, counting, ledger),
        "rounds": _round_metrics(rounds_so_far, base, counting, second_scores, ledger),
        "test": _test_metrics(last, counting, second_scores, ledger),
        "champion": last.assessment.champion,
        "stopped": last.ended,
        "second_judge": config.second_judge.name if config.second_judge else None,
        "judge": _measure_judge(rounds_so_far, config, ledger),
    }
    metrics["notes"] = _notes(rounds_so_far, metrics, config)
    return metrics


def _baseline_metrics(
    evaluation: Sequence[Row], base: list[Row], counting: CountingSettings, second_scores: SecondScores | None
) -> dict[str, Any]:
    """Each baseline by name. Its summaries come after the base policy's in the rows of round 0's evaluation."""
    metrics = {}
    for place, name in enumerate(BASELINES, 1):
        rows = single_summary_rows(evaluation, place)
        metrics[name] = describe_writer(rows, counting) | {"vs_base": _win_rates(rows, base, counting)}
        if second_scores is not None:
            metrics[name]["second"] = {"vs_base": compare_by_second_judge(rows, base, counting, second_scores)}
    return metrics


def _test_metrics(
    last: Round, counting: CountingSettings, second_scores: SecondScores | None, ledger: Ledger
) -> dict[str, Any] | None:
    """The figures of the test articles: those of `base`, `baselines`, and of the `policy` of round `round`.

    `looks` are the tests so far, with this one: see `looks.read_looks`.
    """
    if last.test is None:
        return None
    first, tested = last.test
    evaluation = tables.read_table(ledger, first.results)
    base = single_summary_rows(evaluation, 0)
    rows = single_summary_rows(tables.read_table(ledger, tested.results), 0)
    policy = describe_writer(rows, counting) | {"vs_base": _win_rates(rows, base, counting)}
    if second_scores is not None:
        policy["second"] = {"vs_base": compare_by_second_judge(rows, base, counting, second_scores)}
    return {
        "round": tested.number,
        "looks": read_looks(ledger),
        "base": describe_writer(base, counting),
        "baselines": _baseline_metrics(evaluation, base, counting, second_scores),
        "policy": policy | {"fault_rises": clear_rises(rows, base)},
    }


def _compared_metrics(first: Round, base: Sequence[Row], counting: CountingSettings, ledger: Ledger) -> dict[str, Any]:
    """Each model of the setting `compare` by name."""
    metrics = {}
    for name, results in first.compared.items():
        rows = single_summary_rows(tables.read_table(ledger, results), 0)
        metrics[name] = describe_writer(rows, counting) | {"vs_base": _win_rates(rows, base, counting)}
    return metrics


def _round_metrics(
    rounds_so_far: Sequence[Round],
    base: list[Row],
    counting: CountingSettings,
    second_scores: SecondScores | None,
    ledger: Ledger,
) -> list[dict[str, Any]]:
    """An entry for each trained round."""
    entries = []
    previous, previous_number = base, 0
    for current in rounds_so_far[1:]:
        if not current.trained:
            continue
        rows = single_summary_rows(tables.read_table(ledger, current.results), 0)
        entry = {
            "round": current.number,
            "previous": previous_number,
            **describe_writer(rows, counting),
            "vs_base": _win_rates(rows, base, counting),
            "vs_previous": _win_rates(rows, previous, counting),
            **_round_progress(current),
            "fault_rises": clear_rises(rows, base),
            "training": current.policy.record["training"],
        }
        if second_scores is not None:
            entry["second"] = {
                "vs_base": compare_by_second_judge(rows, base, counting, second_scores),
                "vs_previous": compare_by_second_judge(rows, previous, counting, second_scores),
            }
        entries.append(entry)
        previous, previous_number = rows, current.number
    return entries


def _round_progress(current: Round) -> dict[str, Any]:
    """Which policy a round started from, on which pairs it trained, and whether its policy became champion.

    `kl` is the KL divergence of the round's writer from the base (`kl.KlEstimate`); None if the writer is the base, or
    if there was nothing to measure.
    """
    assert current.pairs is not None and current.assessment is not None, "a trained round has pairs and an assessment"
    assessment = current.assessment
    assert assessment.figures is not None, "a trained round has figures"
    tally = current.pairs.record["tally"]
    replay_tally = current.replayed.record["tally"] if current.replayed else {}
    return {
        "start": current.start,
        "articles": current.pairs.record["in"],
        "articles_with_pairs": current.pairs.record["kept"],
        "yield": assessment.figures.pair_yield,
        "pairs": tally[PAIRS],
        "pairs_against_base": tally.get(PAIRS_AGAINST_BASE, 0),
        "unusable": describe_unusable(tally),
        "replayed_pairs": replay_tally.get(REPLAYED_PAIRS, 0),
        "kl": assessment.drift and vars(assessment.drift),
        "vs_start": {"strict": assessment.figures.gained and assessment.figures.gained.as_dict()},
        "vs_champion": {"strict": assessment.challenge and assessment.challenge.as_dict()},
        "became_champion": assessment.champion == current.number,
    }


def _win_rates(
    ours: Sequence[Row],
    theirs: Sequence[Row],
    counting: CountingSettings,
    rules: Mapping[str, Rule] | None = None,
) -> dict[str, Any]:
    rates = compare_writers(ours, theirs, counting, rules)
    return {rule: rate and rate.as_dict() for rule, rate in rates.items()}


def _read_second_scores(rounds_so_far: Sequence[Round], kind: ScoreKind, ledger: Ledger) -> SecondScores:
    """The second judge's scores of all evaluations. Articles are left out for which a judge with questions has none."""
    # A round without training has the evaluation of the round before.
    evaluations = {
        current.second_results.build: current.second_results
        for current in (*rounds_so_far, *(rounds_so_far[-1].test or ()))
        if current.second_results
    }
    rows = [row for table in evaluations.values() for row in tables.read_table(ledger, table)]
    return {
        (row["article_id"], row["writer"]): row["second_scores"]
        for row in rows
        if kind != "answers" or row["second_questions"]
    }


def compare_by_second_judge(
    ours: list[Row], theirs: list[Row], counting: CountingSettings, second_scores: SecondScores
) -> dict[str, Any]:
    """For each rule the win rate by the second judge (`rate`), and how often both judges agree (`agreement`).

    A rule that does not fit the second judge's kind of scores is left out, or replaced by the nearest one
    (`preference.second_judge_rules`).

    Args:
        ours, theirs: rows of `comparison.single_summary_rows`, with the first judge's scores.
    """
    our_rescored, their_rescored = _rescore(ours, second_scores), _rescore(theirs, second_scores)
    second_counting = replace(counting, pairs=counting.second_pairs)
    rates = _win_rates(our_rescored, their_rescored, second_counting, counting.second_rules)
    return {
        name: {
            "rate": rates[name],
            "agreement": judge_agreement(
                verdicts_by_article(ours, theirs, counting.pairs, counting.rules[name]),
                verdicts_by_article(our_rescored, their_rescored, second_counting.pairs, rule),
            ),
        }
        for name, rule in counting.second_rules.items()
    }


def _rescore(rows: Sequence[Row], second_scores: SecondScores) -> list[Row]:
    """The rows that the second judge scored, with its scores."""
    keys = [(row["article_id"], row["writer"]) for row in rows]
    return [
        row | {"scores": [second_scores[key][row["place"]]]}
        for row, key in zip(rows, keys, strict=True)
        if key in second_scores
    ]


def _measure_judge(rounds_so_far: Sequence[Round], config: Config, ledger: Ledger) -> dict[str, Any]:
    """The judge card of the run."""
    scores = [ledger.find(f"{round_folder(current.number)}/scores") for current in rounds_so_far[1:]]
    scoring_records = [table.record for table in scores if table]
    # A round without training has the evaluation of the round before: count it once.
    evaluations = {current.results.build: current.results.record for current in rounds_so_far}
    questions = ledger.find("questions")
    assert questions is not None, "judged summaries have questions"
    all_records = [*scoring_records, *evaluations.values()]
    first = ledger.find(f"{round_folder(1)}/scores") if rounds_so_far[1:] else None
    reliability = measure_table(first, config, ledger) if first else None
    records = questions.record, scoring_records, all_records
    card = judge_card.measure_card(*records, config.judge.options, reliability)
    return card | judge_card.measure_members(*records, config.judge)


def _notes(rounds_so_far: Sequence[Round], metrics: dict[str, Any], config: Config) -> list[str]:
    """Sentences about the figures that a reader should know."""
    notes = _worse_rounds(metrics) + _training_warnings(rounds_so_far)
    for current in rounds_so_far[1:]:
        if current.trained and current.pairs and (note := few_pairs_note(current.pairs.record, config)):
            notes.append(f"Round {current.number}: {note}.")
        elif not current.trained and current.pairs:
            unusable = describe_unusable(current.pairs.record["tally"])
            no_pairs = f"gave no pairs{f' ({unusable})' if unusable else ''}, so nothing was trained"
            why = why_no_pairs(current.pairs.record, config)
            notes.append(f"Round {current.number} {no_pairs}. {f'{why}.' if why else ''}".rstrip())
    if metrics["base"]["n"] < _FEW_ARTICLES:
        notes.append(
            f"Only {metrics['base']['n']} held-out articles could be compared. With so few, intervals are not reliable."
        )
    if metrics["stopped"]:
        notes.append(f"{metrics['stopped']}.")
    notes += judge_card.card_notes(metrics["judge"])
    notes += risen_faults(metrics)
    notes += unconfirmed_wins(metrics)
    notes += _test_notes(metrics)
    notes += _wins_by_shortening(metrics, config.baselines.shorten_to)
    return notes


def _worse_rounds(metrics: dict[str, Any]) -> list[str]:
    """A note for each round that is worse than the one before."""
    notes = []
    for entry in metrics["rounds"]:
        rate = (entry.get("vs_previous") or {}).get("strict")
        if rate and rate["high"] < 0.5:
            ours, theirs = entry["round"], entry["previous"]
            notes.append(f"Round {ours} is worse than round {theirs}: it wins {format_rate(rate)} against it.")
    return notes


def _training_warnings(rounds_so_far: Sequence[Round]) -> list[str]:
    """The warnings about trainings. One that several rounds have stands once, with the figures of the last of them."""
    by_kind: dict[str, dict[int, str]] = {}
    for current in rounds_so_far[1:]:
        for warning in current.policy.record["training"]["warnings"] if current.trained else ():
            by_kind.setdefault(re.sub(r"[\d.]+", "", warning), {})[current.number] = warning
    notes = []
    for warnings in by_kind.values():
        *others, last = warnings
        also = f" The same holds for round{'s' * (len(others) > 1)} {', '.join(map(str, others))}." if others else ""
        notes.append(f"Round {last}: {warnings[last]}.{also}")
    return notes


def unconfirmed_wins(metrics: dict[str, Any]) -> list[str]:
    """A note for each round that wins by the judge that it was trained on, and does not win by the second judge."""
    notes = []
    for entry in metrics["rounds"] if metrics["second_judge"] else ():
        first, second = entry["vs_base"]["strict"], entry["second"]["vs_base"]["strict"]["rate"]
        if first and second and first["better"] and not second["better"]:
            notes.append(
                f"By the strict rule, round {entry['round']} wins {format_rate(first)} against the base, but only "
                f"{format_rate(second)} by the second judge, {metrics['second_judge']}: the policy may have learned to "
                "please the first judge."
            )
    return notes


def risen_faults(metrics: dict[str, Any]) -> list[str]:
    """A note for each round and fault that training has clearly made more frequent than it is in the base's summaries.

    The judge does not see these faults, so a round can win by its rules and be worse for a reader.
    """
    return [
        f"Round {entry['round']} {FAULTS[name]}: {ours:.1%}, and the base {base:.1%} on the same articles."
        for entry in metrics["rounds"]
        for name, (ours, base) in entry["fault_rises"].items()
    ]


def _test_notes(metrics: dict[str, Any]) -> list[str]:
    """Notes for the test: few articles, a win that the test does not confirm, faults that have risen."""
    if (test := metrics["test"]) is None:
        return []
    policy = test["policy"]
    notes = []
    if test["base"]["n"] < _FEW_ARTICLES:
        notes.append(
            f"Only {test['base']['n']} test articles could be compared. With so few, intervals are not reliable."
        )
    heldout, rate = tested_round(metrics)["vs_base"]["strict"], policy["vs_base"]["strict"]
    if heldout and rate and heldout["better"] and not rate["better"]:
        notes.append(
            f"By the strict rule, round {test['round']} wins {format_rate(heldout)} against the base on held-out "
            f"articles, but only {format_rate(rate)} on the test articles: the gain is not confirmed."
        )
    return notes + [
        f"On the test articles, round {test['round']} {FAULTS[name]}: {ours:.1%}, and the base {base:.1%}."
        for name, (ours, base) in policy["fault_rises"].items()
    ]


def tested_round(metrics: dict[str, Any]) -> dict[str, Any]:
    """The entry in `rounds` of the policy that was tested."""
    return next(entry for entry in metrics["rounds"] if entry["round"] == metrics["test"]["round"])


def _wins_by_shortening(metrics: dict[str, Any], shorten_to: float) -> list[str]:
    """A note for each rule by which the base policy's own summaries, cut short, beat the full ones."""
    rates = metrics["baselines"][BASELINES[1]]["vs_base"]
    return [
        f"By the {rule} rule, the base's summaries cut to {shorten_to:.0%} of their words win {format_rate(rate)} "
        "against the full ones: a win by this rule may come from shorter summaries alone."
        for rule, rate in rates.items()
        if rate and rate["better"] and rate["n"] >= _FEW_ARTICLES
    ]


def format_rate(rate: dict[str, Any] | None) -> str:
    """A win rate with its interval: `62.5% [55.0%, 70.0%]`."""
    if rate is None:
        return "–"
    return f"{rate['win_rate']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]"
