"""The report: metrics.json for machines, a table for the terminal, report.md with one plot for people.

Written again after every round from the evaluations, so it is never older than the run. Left out: measuring anything.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from rich.table import Table

from pipeline import tables
from pipeline.config import Config
from pipeline.evaluation import LEAD, SHORTEN, compare, describe
from pipeline.ledger import Ledger
from pipeline.round import Round
from pipeline.rows import Row

_METRICS = (
    ("accuracy_ge_3", "accuracy ≥3", "{:.1%}"),
    ("accuracy_ge_4", "accuracy ≥4", "{:.1%}"),
    ("correct_mean", "right, mean", "{:.2f}"),
    ("words_median", "words, median", "{:.0f}"),
    ("compression_median", "compression, median", "{:.1%}"),
    ("compression_mean", "compression, mean", "{:.1%}"),
    ("too_long", "too long", "{:.1%}"),
    ("invalid_chars", "invalid characters", "{:.1%}"),
)


def measure(played: Sequence[Round], config: Config, ledger: Ledger) -> dict[str, Any]:
    """What metrics.json says.

    Args:
        played: round 0 (the base) and each round after it.

    Returns:
        `base`, `baselines`, and `rounds`: one entry per trained round, with `vs_base` and `vs_previous`, each by the
        rules `strict` and `reference`.
    """

    def rows(number: int, writer: str | None = None) -> list[Row]:
        build = writer or played[number].policy.build
        return [row for row in tables.read(ledger, played[number].results.address) if row["writer"] == build]

    def against(ours: list[Row], theirs: list[Row]) -> dict[str, Any]:
        found = compare(ours, theirs, config.pairs, config.evaluation, config.seed)
        return {rule: rate and rate.as_dict() for rule, rate in found.items()}

    base = rows(0)
    baselines = {name: rows(0, name) for name in (LEAD, SHORTEN)}
    metrics: dict[str, Any] = {
        "run": ledger.root,
        "confidence": config.evaluation.confidence,
        "base": describe(base, config.evaluation),
        "baselines": {
            name: describe(some, config.evaluation) | {"vs_base": against(some, base)}
            for name, some in baselines.items()
        },
        "rounds": [],
        "notes": [],
    }
    previous = base
    for current in played[1:]:
        if current.policy is played[current.number - 1].policy:
            metrics["notes"].append(
                f"Round {current.number} gave no pairs ({_reasons(current)}): there was nothing to learn from, and "
                "the run ended with the policy it had."
            )
            break
        ours = rows(current.number)
        assert current.pairs is not None, "a trained round has pairs"
        training = current.policy.record["training"]
        metrics["rounds"].append(
            {
                "round": current.number,
                **describe(ours, config.evaluation),
                "vs_base": against(ours, base),
                "vs_previous": against(ours, previous),
                "articles": current.pairs.record["in"],
                "articles_with_pairs": current.pairs.record["kept"],
                "pairs": current.pairs.record["tally"]["pairs"],
                "training": training,
            }
        )
        if training["chosen_fell"] > 0.5:
            metrics["notes"].append(
                f"Round {current.number}: the chosen summary became less likely in {training['chosen_fell']:.0%} of "
                "pairs (displacement)."
            )
        previous = ours
    metrics["notes"] += _gamed(metrics, config.evaluation.shorten_to)
    return metrics


def _reasons(current: Round) -> str:
    assert current.pairs is not None, "a round that was played has pairs"
    return ", ".join(f"{reason}: {n}" for reason, n in current.pairs.record["skipped"].items()) or "no summaries"


def _gamed(metrics: dict[str, Any], shorten_to: float) -> list[str]:
    """Say so where a rule prefers the base's own summaries cut short."""
    rates = metrics["baselines"][SHORTEN]["vs_base"]
    return [
        f"By the {rule} rule the base's summaries cut to {shorten_to:.0%} of their words win {_rate(rate)} against "
        "the base. Under this rule a win may be mere shortness."
        for rule, rate in rates.items()
        if rate and rate["low"] > 0.5
    ]


def _rate(rate: dict[str, Any] | None) -> str:
    if rate is None:
        return "–"
    return f"{rate['win_rate']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]"


def _columns(metrics: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    named = [("base", metrics["base"])] + [(f"round {r['round']}", r) for r in metrics["rounds"]]
    return named + list(metrics["baselines"].items())


def _lines(metrics: dict[str, Any]) -> list[list[str]]:
    """The table of the reference setting: a line per metric, a column per writer."""
    columns = [values for _, values in _columns(metrics)]
    lines = [["articles", *(str(values["n"]) for values in columns)]]
    for key, label, shape in _METRICS:
        lines.append([label, *(shape.format(values[key]) if key in values else "–" for values in columns)])
    for against in ("vs_base", "vs_previous"):
        for rule in ("strict", "reference"):
            cells = [values.get(against, {}).get(rule) for values in columns]
            if any(cells):
                lines.append([f"win rate {against.replace('_', ' ')}, {rule}", *map(_rate, cells)])
                lines.append(["  wins / ties / losses", *map(_counts, cells)])
    return lines


def _counts(rate: dict[str, Any] | None) -> str:
    return f"{rate['wins']} / {rate['ties']} / {rate['losses']}" if rate else "–"


def table(metrics: dict[str, Any]) -> Table:
    """The table as the terminal shows it."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("")
    for name, _ in _columns(metrics):
        shown.add_column(name, justify="right")
    for line in _lines(metrics):
        shown.add_row(*line, style="bold green" if line[0] == "win rate vs base, strict" else None)
    return shown


def write(metrics: dict[str, Any], examples: list[dict[str, Any]], config: Config, ledger: Ledger) -> None:
    """Write metrics.json, report.md and report.png into the run's folder."""
    ledger.write("metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    with ledger.fs.open_output_stream(ledger.path("report.png")) as stream:
        stream.write(_plot(metrics))
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = Path(__file__).with_name("report.md.j2").read_text(encoding="utf-8")
    text = environment.from_string(template).render(
        metrics=metrics,
        config=config,
        names=[name for name, _ in _columns(metrics)],
        lines=_lines(metrics),
        examples=examples,
        rate=_rate,
    )
    ledger.write("report.md", text)


def examples(played: Sequence[Round], ledger: Ledger, count: int = 1) -> list[dict[str, Any]]:
    """Held-out articles with the base's summary and the last policy's: those on which most questions were gained."""
    before, after = played[0], played[-1]
    old = {
        r["article_id"]: r for r in tables.read(ledger, before.results.address) if r["writer"] == before.policy.build
    }
    new = {r["article_id"]: r for r in tables.read(ledger, after.results.address) if r["writer"] == after.policy.build}
    both = sorted(set(old) & set(new), key=lambda i: (-_right(new[i]) + _right(old[i]), i))
    # The median article, not the best: a report shows what is typical.
    start = max(0, (len(both) - count) // 2)
    return [
        {
            "id": i,
            "article": old[i]["article"],
            "questions": old[i]["questions"],
            "before": old[i]["summaries"][0]["text"].strip(),
            "after": new[i]["summaries"][0]["text"].strip(),
            "before_score": old[i]["scores"][0],
            "after_score": new[i]["scores"][0],
        }
        for i in both[start : start + count]
    ]


def _right(row: Row) -> int:
    return row["scores"][0]["correct"]


def _plot(metrics: dict[str, Any]) -> bytes:
    """Win rate by round with its interval, and accuracy over compression: PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import PercentFormatter

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for rule, colour, offset in (("strict", "#0b6e4f", -0.03), ("reference", "#d98324", 0.03)):
        points = [(r["round"], r["vs_base"][rule]) for r in metrics["rounds"] if r["vs_base"][rule]]
        if points:
            x = [number + offset for number, _ in points]
            y = [rate["win_rate"] for _, rate in points]
            error = [
                [rate["win_rate"] - rate["low"] for _, rate in points],
                [rate["high"] - rate["win_rate"] for _, rate in points],
            ]
            left.errorbar(x, y, yerr=error, marker="o", capsize=4, color=colour, label=f"{rule} rule")
    left.axhline(0.5, color="grey", linewidth=1, linestyle=":")
    left.set(title=f"Win rate against the base, {metrics['confidence']:.0%} interval", xlabel="round", ylim=(0, 1))
    left.set_xticks([r["round"] for r in metrics["rounds"]])
    left.yaxis.set_major_formatter(PercentFormatter(1))
    if metrics["rounds"]:
        left.legend(loc="lower right", frameon=False)
    for name, values in _columns(metrics):
        if "accuracy_ge_3" in values:
            colour = "#0b6e4f" if name.startswith("round") else "#555555"
            right.scatter(values["compression_median"], values["accuracy_ge_3"], color=colour)
            right.annotate(
                name, (values["compression_median"], values["accuracy_ge_3"]), xytext=(6, 4), textcoords="offset points"
            )
    right.set(title="Accuracy ≥3 over length", xlabel="compression, median", ylim=(-0.05, 1.05))
    right.margins(x=0.2)
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    plt.close(figure)
    return stream.getvalue()
