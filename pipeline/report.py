"""The report: metrics.json for machines, a table for the terminal, report.md with one plot for people.

Written again after every round from the evaluations, so it is never older than the run. Left out: measuring anything,
and the plot (`plot.py`).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from rich.table import Table
from rich.text import Text

from pipeline import card
from pipeline.config import Config
from pipeline.config.run import JudgeSettings
from pipeline.config.sanitize import escape_markdown, printable
from pipeline.evaluation import agree, compare, describe, entrant, verdicts
from pipeline.exam import BASELINES
from pipeline.judging.preference import evaluation_rules
from pipeline.plot import draw
from pipeline.round import Round
from pipeline.storage import tables
from pipeline.storage.ledger import Ledger
from pipeline.storage.schema import Row

_FEW = 30  # articles under which a bootstrap interval is not to be trusted
_METRICS = (
    ("accuracy", "accuracy ≥{threshold}", "{:.1%}"),
    ("accuracy_above", "accuracy ≥{more}", "{:.1%}"),
    ("correct_mean", "right, mean", "{:.2f}"),
    ("questions_mean", "questions, mean", "{:.2f}"),
    ("words_median", "words, median", "{:.0f}"),
    ("compression_median", "compression, median", "{:.1%}"),
    ("compression_mean", "compression, mean", "{:.1%}"),
    ("too_long", "too long", "{:.1%}"),
    ("invalid_chars", "invalid characters", "{:.1%}"),
    ("cut_off", "cut off", "{:.1%}"),
    ("empty", "empty", "{:.1%}"),
)


def measure(played: Sequence[Round], config: Config, ledger: Ledger) -> dict[str, Any]:
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
        found = compare(ours, theirs, config.pairs, config.report, config.seed)
        return {rule: rate and rate.as_dict() for rule, rate in found.items()}

    first = tables.read_table(ledger, played[0].results)
    base = entrant(first, 0)
    baselines = {name: entrant(first, place) for place, name in enumerate(BASELINES, 1)}
    compared = {name: entrant(tables.read_table(ledger, results), 0) for name, results in played[0].compared.items()}
    last = played[-1]
    assert last.standing is not None, "what was played can be measured"
    opinions = _opinions(played, ledger)
    how = config.report, config.pairs.threshold
    metrics: dict[str, Any] = {
        "run": ledger.root,
        "threshold": config.pairs.threshold,
        "confidence": config.report.confidence,
        "base": describe(base, *how),
        "baselines": {
            name: describe(some, *how) | {"vs_base": against(some, base)} for name, some in baselines.items()
        },
        "compared": {name: describe(some, *how) | {"vs_base": against(some, base)} for name, some in compared.items()},
        "rounds": [],
        "champion": last.standing.champion,
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
        ours = entrant(tables.read_table(ledger, current.results), 0)
        training = current.policy.record["training"]
        metrics["rounds"].append(
            {
                "round": current.number,
                "previous": before,
                **describe(ours, *how),
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
    metrics["notes"] += card.notes(metrics["judge"])
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
    rates = compare(mine, others, config.pairs, config.report, config.seed)
    return {
        name: {
            "rate": (rate := rates[name]) and rate.as_dict(),
            "agreement": agree(verdicts(ours, theirs, config.pairs, rule), verdicts(mine, others, config.pairs, rule)),
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
    return card.measure(questions.record, judged, [*judged, *examined.values()], config.judge.options)


def _progress(current: Round) -> dict[str, Any]:
    """What a round started from, learned from and came to, beside its summaries.

    `kl` is of its writer to the base: see `drift.Drift`; None where the writer is the base, or nothing was measured.
    """
    assert current.pairs is not None and current.standing is not None, "a trained round has pairs and a standing"
    standing = current.standing
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
        f"By the {rule} rule the base's summaries cut to {shorten_to:.0%} of their words win {_rate(rate)} against "
        "the base. Under this rule a win may be mere shortness."
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
                f"By the strict rule round {values['round']} wins {_rate(first)} against the base, but {_rate(second)} "
                f"by the second judge, {metrics['second_judge']}: what was learned may be to please the first."
            )
    return said


def _rate(rate: dict[str, Any] | None) -> str:
    if rate is None:
        return "–"
    return f"{rate['win_rate']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]"


def _nats(value: float, error: float | None) -> str:
    return f"{value:.3g}" + (f" ± {error:.2g}" if error is not None else "")


def _writers(metrics: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    named = [("base", metrics["base"])] + [(f"round {r['round']}", r) for r in metrics["rounds"]]
    return named + list(metrics["compared"].items()) + list(metrics["baselines"].items())


def _quality(metrics: dict[str, Any]) -> list[list[str]]:
    """The table of the reference setting: a heading, then a line per metric with a cell per writer."""
    names, columns = zip(*_writers(metrics), strict=True)
    lines = [["", *names], ["articles", *(str(values["n"]) for values in columns)]]
    lines.append(["  with an answer unread", *(str(values["unread"]) for values in columns)])
    for key, name, shape in _METRICS:
        label = name.format(threshold=metrics["threshold"], more=metrics["threshold"] + 1)
        lines.append([label, *(shape.format(values[key]) if key in values else "–" for values in columns)])
    return lines


def _wins(metrics: dict[str, Any], second: bool) -> list[list[str]]:
    """A heading, then a line for each comparison by each rule, and with `second` one more by the second judge."""
    agree_too = ["agree"] if second else []
    lines = [["", "rule", "win rate", "interval", "win/tie/loss", "n", *agree_too]]
    for name, values in _writers(metrics):
        for against in ("base", "previous"):
            if against == "previous" and not values.get("previous"):
                continue  # the policy before the first is the base
            for rule, rate in values.get(f"vs_{against}", {}).items():
                who = f"{name} against " + ("base" if against == "base" else f"round {values['previous']}")
                lines.append([who, rule, *_cells(rate), *("" for _ in agree_too)])
                if agree_too and "second" in values:  # it judges no model at a server
                    other = values["second"][f"vs_{against}"][rule]
                    same = other["agreement"]["same"]
                    agreed = "–" if same is None else f"{same:.1%}"
                    lines.append([who, f"{rule}, 2nd judge", *_cells(other["rate"]), agreed])
    return lines


def _cells(rate: dict[str, Any] | None) -> list[str]:
    """Win rate, interval, counts and n."""
    if not rate:
        return ["–"] * 4
    interval = f"{rate['low'] * 100:.1f}–{rate['high']:.1%}"
    counts = "/".join(str(rate[kind]) for kind in ("wins", "ties", "losses"))
    return [f"{rate['win_rate']:.1%}", interval, counts, str(rate["n"])]


def results(metrics: dict[str, Any], second: bool = False) -> list[list[list[str]]]:
    """What came of the run in two tables: each writer's summaries, and who wins against whom.

    Args:
        second: with what the second judge found; a terminal has no room for it.
    """
    return [_quality(metrics), _wins(metrics, second)]


def shown(*tables: list[list[str]]) -> list[Table]:
    """Tables as the terminal shows them: a heading, then lines."""
    made = []
    for heading, *lines in tables:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in heading:
            table.add_column(
                Text(name), justify="left" if name in ("", "rule", "of") else "right", no_wrap=name != "of"
            )
        for line in lines:
            # What the run is about: a trained round, by the rule that training used.
            matters = line[0].startswith("round") and line[1].startswith("strict")
            table.add_row(*map(Text, line), style="bold green" if matters else None)
        made.append(table)
    return made


def environment() -> jinja2.Environment:
    """Where report.md.j2 is, and its filters: `text` for what anybody wrote, `code` for what stands in backquotes."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters |= {"text": escape_markdown, "code": lambda text: printable(text).replace("`", "'")}
    return made


def write(metrics: dict[str, Any], examples: list[dict[str, Any]], config: Config, ledger: Ledger) -> None:
    """Write metrics.json, report.md and report.png into the run's folder."""
    ledger.write("metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    ledger.write("report.png", draw(metrics, _writers(metrics)))
    text = (
        environment()
        .get_template("report.md.j2")
        .render(
            metrics=metrics,
            config=config,
            tables=results(metrics, second=bool(config.second_judge)),
            judge_card=card.lines(metrics["judge"]),
            examples=examples,
            rate=_rate,
            nats=_nats,
        )
    )
    ledger.write("report.md", text)
