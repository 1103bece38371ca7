"""Collects everything about a run that its page shows beside single articles, as one JSON value.

The figures are those of metrics.json and of the records. A run that has not finished a round has no figures yet, and a
run of an older version may lack some; the page then leaves them out.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import Alignment, Config, UserError
from pipeline.evaluation.benchmark.models import current_digests
from pipeline.evaluation.benchmark.table import benchmark_table, read_comparisons, up_to_date
from pipeline.evaluation.comparison import CountingSettings
from pipeline.evaluation.judge_card import card_lines
from pipeline.evaluation.report.metrics import tested_round
from pipeline.evaluation.report.tables import named_writers, result_tables
from pipeline.inference.base import MICRO_USD, TOKENS_CACHED, TOKENS_IN, TOKENS_OUT
from pipeline.judging.tallies import DROPPED_PREFIX, UNREAD, describe_unusable
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.run_folder import round_number

Json = dict[str, Any]

# The curves: title, the names in metrics.jsonl of the training batches and of the held-out pairs, and a line of help.
CURVES = (
    ("Loss", "loss", "eval_loss", "Falls while the policy learns the pairs."),
    ("Reward accuracy", "rewards/accuracies", "eval_rewards/accuracies", "Pairs whose chosen summary has more reward."),
    ("Reward margin", "rewards/margins", "eval_rewards/margins", "Reward of the chosen minus that of the rejected."),
    ("KL to the reference", "kl", "eval_kl", "In nats: how far the policy has moved."),
    ("Chosen fell", "logps/chosen_fell", "eval_logps/chosen_fell", "Pairs whose chosen summary became less likely."),
    ("Log-probability of the chosen", "logps/chosen", "eval_logps/chosen", "In nats, summed over a summary."),
)
_MOST_POINTS = 300  # of a curve: more than a screen shows


def read_metrics(ledger: Ledger) -> Json | None:
    """The content of metrics.json; None if no round is finished. Raises UserError if it is damaged."""
    text = ledger.read("metrics.json")
    if text is None:
        return None
    try:
        metrics = json.loads(text)
        if not isinstance(metrics["rounds"], list) or not isinstance(metrics["base"], dict):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{ledger.root}/metrics.json is damaged: remove it, and repeat the command of the run"
        ) from None
    # What older versions did not write.
    later: Json = {"baselines": {}, "compared": {}, "test": None, "notes": [], "stopped": None, "second_judge": None}
    return later | metrics


def collect_overview(metrics: Json | None, config: Config | Alignment, ledger: Ledger) -> Json:
    """Everything that the page shows above its articles.

    Args:
        metrics: see `metrics.collect_metrics`; None if there are none yet.
    """
    artifacts = sorted(ledger.artifacts(), key=lambda artifact: artifact.record.get("made", ""))
    overview: Json = {
        "run": ledger.root.rstrip("/").rsplit("/", 1)[-1],
        "policy": config.policy.model,
        "judge": config.judge.name if isinstance(config, Config) else None,
        "source": config.articles.path if isinstance(config, Config) else config.pairs,
        "rule": config.pairs.describe_preference() if isinstance(config, Config) else None,
        "counts_answers": isinstance(config, Config) and CountingSettings.from_config(config).judge == "answers",
        "training": _training_curves(artifacts, ledger),
        "stages": [_stage(artifact) for artifact in artifacts],
        "results": None,
    }
    if metrics is not None and isinstance(config, Config):
        overview["results"] = _results(metrics, ledger)
    return overview


def _results(metrics: Json, ledger: Ledger) -> Json:
    writers = named_writers(metrics)
    counts_answers = any("accuracy" in figures for _, figures in writers)
    key = "accuracy" if counts_answers else "value_mean"
    comparisons = up_to_date(read_comparisons(ledger), current_digests(ledger))
    return {
        "confidence": metrics.get("confidence", 0.95),
        "champion": metrics.get("champion"),
        "rounds": [entry["round"] for entry in metrics["rounds"]],
        "second_judge": metrics["second_judge"],
        "notes": metrics["notes"],
        "headline": _headline(metrics),
        "rates": _rates(metrics),
        "by_round": _rates_by_round(metrics),
        "looks": len(metrics["test"]["looks"]) if metrics["test"] else None,
        "points": {
            "name": f"Accuracy (≥ {metrics['threshold']} right)" if counts_answers else "Judge's score, mean",
            "is_share": counts_answers,
            "points": [
                {"name": name, "x": figures["compression_median"], "y": figures[key], "words": figures["words_median"]}
                for name, figures in writers
                if key in figures
            ],
        },
        "tables": result_tables(metrics, wide=True),
        "judge_card": card_lines(metrics["judge"]),
        "judge_unread": metrics["judge"].get("unread_reasons") or {},
        "benchmark": benchmark_table([line for entry in comparisons.values() for line in entry["lines"]]),
    }


def _headline(metrics: Json) -> Json | None:
    """The figure that matters most: the test if there is one, else the champion's or the last round's."""
    if metrics["test"]:
        number, rate = metrics["test"]["round"], metrics["test"]["policy"]["vs_base"]["strict"]
        name, held_out = tested_round(metrics)["round"], tested_round(metrics)["vs_base"]["strict"]
        return {"on": "test", "round": number, "rate": rate, "held_out": held_out if name == number else None}
    if not metrics["rounds"]:
        return None
    champion = metrics.get("champion")
    entry = next((entry for entry in metrics["rounds"] if entry["round"] == champion), metrics["rounds"][-1])
    return {"on": "held-out", "round": entry["round"], "rate": entry["vs_base"].get("strict"), "held_out": None}


def _rates(metrics: Json) -> list[Json]:
    """A line for each win rate against the base, the test articles first."""
    lines = []
    if test := metrics["test"]:
        writers = [(f"round {test['round']}", test["policy"]), *test["baselines"].items()]
        lines += [line for name, figures in writers for line in _rates_of("Test articles", name, figures)]
    for name, figures in named_writers(metrics):
        lines += _rates_of("Held-out articles", name, figures)
    return lines


def _rates_of(group: str, name: str, figures: Json) -> list[Json]:
    second = figures.get("second", {}).get("vs_base", {})
    lines = []
    for rule, rate in figures.get("vs_base", {}).items():
        lines.append({"group": group, "writer": name, "rule": rule, "rate": rate})
        if rule in second:
            lines.append({"group": group, "writer": name, "rule": f"{rule}, 2nd judge", "rate": second[rule]["rate"]})
    return lines


def _rates_by_round(metrics: Json) -> list[Json]:
    """The series of the plot: each a name and, by round, the win rate against the base."""
    lines = [(entry["round"], line) for entry in metrics["rounds"] for line in _rates_of("", "", entry)]
    names = list(dict.fromkeys(line["rule"] for _, line in lines))
    return [
        {"name": name, "points": [{"round": number, **line["rate"]} for number, line in lines if _is(line, name)]}
        for name in names
    ]


def _is(line: Json, rule: str) -> bool:
    return line["rule"] == rule and line["rate"] is not None


def _training_curves(artifacts: Sequence[Artifact], ledger: Ledger) -> list[Json]:
    """The curves of each policy that the run trained, from its metrics.jsonl."""
    policies = [artifact for artifact in artifacts if "training" in artifact.record]
    curves = []
    for policy in sorted(policies, key=lambda artifact: artifact.address):
        steps = _read_steps(ledger, policy.address)
        if not steps:
            continue
        number = round_number(policy.address.split("/")[0])
        series = {name: _points(steps, name) for _, *names, _ in CURVES for name in names}
        curves.append(
            {
                "name": f"round {number}" if number is not None else policy.address,
                "series": {name: points for name, points in series.items() if points},
            }
        )
    return curves


def _read_steps(ledger: Ledger, address: str) -> list[Json]:
    """The lines of metrics.jsonl; a last line that is not complete, of a training in progress, is left out."""
    steps = []
    for line in (ledger.read(f"{address}/metrics.jsonl") or "").splitlines():
        try:
            steps.append(json.loads(line))
        except ValueError:
            continue
    return [step for step in steps if isinstance(step, dict) and "step" in step]


def _points(steps: Sequence[Json], name: str) -> list[list[float]]:
    """Step and value, of at most `_MOST_POINTS` steps at equal distances. The first and the last are among them."""
    points = [[step["step"], step[name]] for step in steps if _is_number(step.get(name))]
    if len(points) <= _MOST_POINTS:
        return points
    places = [round(i * (len(points) - 1) / (_MOST_POINTS - 1)) for i in range(_MOST_POINTS)]
    return [points[place] for place in places]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")


def _stage(artifact: Artifact) -> Json:
    """What an artifact took, and what was skipped in it."""
    record: Mapping[str, Any] = artifact.record
    tally = record.get("tally", {})
    dropped = {name.removeprefix(DROPPED_PREFIX): n for name, n in tally.items() if name.startswith(DROPPED_PREFIX)}
    training = record.get("training", {})
    return {
        "address": artifact.address,
        "made": record.get("made"),
        "seconds": record.get("seconds"),
        "together_with": record.get("together_with", []),
        "in": record.get("in"),
        "kept": record.get("kept"),
        "skipped": record.get("skipped", {}),
        "dropped": dropped,
        "unusable": describe_unusable(tally),
        "unread": tally.get(UNREAD, 0),
        "tokens_in": tally.get(TOKENS_IN, training.get("tokens")),
        "tokens_cached": tally.get(TOKENS_CACHED),
        "tokens_out": tally.get(TOKENS_OUT),
        "usd": tally[MICRO_USD] / 1e6 if MICRO_USD in tally else None,
    }
