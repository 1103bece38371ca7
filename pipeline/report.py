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

from pipeline import card, tables
from pipeline.config import Config
from pipeline.evaluation import LEAD, SHORTEN, compare, describe
from pipeline.ledger import Ledger
from pipeline.round import Round
from pipeline.rows import Row

_FEW = 30  # articles under which a bootstrap interval is not to be trusted
_METRICS = (
    ("accuracy_ge_3", "accuracy ≥3", "{:.1%}"),
    ("accuracy_ge_4", "accuracy ≥4", "{:.1%}"),
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
        `base`, `baselines`, `judge` (its card: see `card.measure`), and `rounds`: one entry per trained round, with
        `vs_base` and `vs_previous`, each by the rules `strict` and `reference`.
    """

    def against(ours: list[Row], theirs: list[Row]) -> dict[str, Any]:
        found = compare(ours, theirs, config.pairs, config.report, config.seed)
        return {rule: rate and rate.as_dict() for rule, rate in found.items()}

    first = tables.read(ledger, played[0].results)
    base, *others = ([r for r in first if r["writer"] == w] for w in (played[0].policy.build, LEAD, SHORTEN))
    baselines = dict(zip((LEAD, SHORTEN), others, strict=True))
    metrics: dict[str, Any] = {
        "run": ledger.root,
        "confidence": config.report.confidence,
        "base": describe(base, config.report),
        "baselines": {
            name: describe(some, config.report) | {"vs_base": against(some, base)} for name, some in baselines.items()
        },
        "rounds": [],
        "judge": _card(played, config, ledger),
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
        ours = tables.read(ledger, current.results)
        assert current.pairs is not None, "a trained round has pairs"
        training = current.policy.record["training"]
        metrics["rounds"].append(
            {
                "round": current.number,
                **describe(ours, config.report),
                "vs_base": against(ours, base),
                "vs_previous": against(ours, previous),
                "articles": current.pairs.record["in"],
                "articles_with_pairs": current.pairs.record["kept"],
                "pairs": current.pairs.record["tally"]["pairs"],
                "training": training,
            }
        )
        metrics["notes"] += [f"Round {current.number}: {warning}." for warning in training["warnings"]]
        previous = ours
    if metrics["base"]["n"] < _FEW:
        metrics["notes"].append(
            f"Only {metrics['base']['n']} held-out articles could be compared: an interval of so few says little."
        )
    metrics["notes"] += card.notes(metrics["judge"])
    metrics["notes"] += _gamed(metrics, config.baselines.shorten_to)
    return metrics


def _card(played: Sequence[Round], config: Config, ledger: Ledger) -> dict[str, Any]:
    scores = [ledger.find(f"round-{current.number:02d}/scores") for current in played[1:]]
    judged = [table.record for table in scores if table]
    # The last round's evaluation is that of the one before where a round gave no pairs.
    examined = {current.results.build: current.results.record for current in played}
    questions = ledger.find("questions")
    assert questions is not None, "what was judged has questions"
    return card.measure(questions.record, judged, [*judged, *examined.values()], config.judge.options)


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
        if rate and rate["low"] > 0.5 and rate["n"] >= _FEW
    ]


def _rate(rate: dict[str, Any] | None) -> str:
    if rate is None:
        return "–"
    return f"{rate['win_rate']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]"


def _writers(metrics: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    named = [("base", metrics["base"])] + [(f"round {r['round']}", r) for r in metrics["rounds"]]
    return named + list(metrics["baselines"].items())


def _quality(metrics: dict[str, Any]) -> list[list[str]]:
    """The table of the reference setting: a heading, then a line per metric with a cell per writer."""
    names, columns = zip(*_writers(metrics), strict=True)
    lines = [["", *names], ["articles", *(str(values["n"]) for values in columns)]]
    lines.append(["  with an answer unread", *(str(values["unread"]) for values in columns)])
    for key, label, shape in _METRICS:
        lines.append([label, *(shape.format(values[key]) if key in values else "–" for values in columns)])
    return lines


def _wins(metrics: dict[str, Any]) -> list[list[str]]:
    """A heading, then a line for each comparison by each rule."""
    lines = [["", "rule", "win rate", "interval", "win/tie/loss", "n"]]
    for name, values in _writers(metrics):
        for against in ("base", "previous"):
            if against == "previous" and values.get("round") == 1:
                continue  # the round before the first is the base
            for rule, rate in values.get(f"vs_{against}", {}).items():
                against_what = "base" if against == "base" else f"round {values['round'] - 1}"
                cells = ["–"] * 4
                if rate:
                    interval = f"{rate['low'] * 100:.1f}–{rate['high']:.1%}"
                    counts = "/".join(str(rate[kind]) for kind in ("wins", "ties", "losses"))
                    cells = [f"{rate['win_rate']:.1%}", interval, counts, str(rate["n"])]
                lines.append([f"{name} against {against_what}", rule, *cells])
    return lines


def results(metrics: dict[str, Any]) -> list[list[list[str]]]:
    """What came of the run in two tables: each writer's summaries, and who wins against whom."""
    return [_quality(metrics), _wins(metrics)]


def shown(*tables: list[list[str]]) -> list[Table]:
    """Tables as the terminal shows them: a heading, then lines."""
    made = []
    for heading, *lines in tables:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in heading:
            table.add_column(name, justify="left" if name in ("", "rule", "of") else "right", no_wrap=name != "of")
        for line in lines:
            # What the run is about: a trained round, by the rule that training used.
            table.add_row(*line, style="bold green" if line[0].startswith("round") and line[1] == "strict" else None)
        made.append(table)
    return made


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
        tables=results(metrics),
        judge_card=card.lines(metrics["judge"]),
        examples=examples,
    )
    ledger.write("report.md", text)


def examples(played: Sequence[Round], ledger: Ledger, count: int = 1) -> list[dict[str, Any]]:
    """Held-out articles with the base's summary and the last policy's: those in the middle by questions gained."""
    before, after = played[0], played[-1]
    if after.policy is before.policy:
        return []  # nothing was trained
    old = {r["article_id"]: r for r in tables.read(ledger, before.results) if r["writer"] == before.policy.build}
    new = {r["article_id"]: r for r in tables.read(ledger, after.results)}
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
    left.set_xlim(0.5, max(1, len(metrics["rounds"])) + 0.5)
    left.yaxis.set_major_formatter(PercentFormatter(1))
    if metrics["rounds"]:
        left.legend(loc="lower right", frameon=False)
    for name, values in _writers(metrics):
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
