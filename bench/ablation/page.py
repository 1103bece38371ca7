"""Writes the page of one or more studies: tables, plots, and sentences that follow from the figures by rule."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.ablation.figures import STEPS
from bench.ablation.plots import draw_choices, draw_hours, draw_win_rates
from bench.ablation.pooling import INTERVAL
from bench.ablation.summary import Summary, format_rate, summarize, worth

_HEAD = """# Results: what each choice was worth

`bench/study.py` wrote this page from the records of its runs; change it there, not here. Every arm is a run of one
configuration that differs from another arm in one setting. Arms take over the stages that they have in common, so two
arms that differ in training have the same samples, scores and pairs.

- A win rate is (wins + ties / 2) / n on held-out articles, by the strict rule of
  [how wins are counted](judge/preferences.md#how-wins-are-counted). {interval}.
- "Better" and "worse" need an interval that excludes 50 % and a sign test over articles that agrees. Many arms are
  compared: of twenty that change nothing, about one is called better or worse by chance.
- A setting is worth what these pages say for this configuration, with all other settings as they are. A loss with
  another beta, or SFT with another learning rate, may do better.
"""
_QUALITY_NOTE = """Win rates are against the base. Words are the median. Copied is the share of 8-grams that are the
article's, repeated the share of words that a summary said before, off topic the share of summaries whose end leaves the
topic, and cut off the share that the token limit ended. Figures without an interval are means over seeds.
"""
_TEST_NOTE = """The test articles chose nothing within a run. Whoever chooses an arm by this column has used them up.
"""
_COST_NOTE = f"""Means over seeds. Pairs, steps and all figures up to KL are those of the round that trained the policy.
Reward accuracy, chosen and rejected (the change of their log-probability, in nats per summary) and KL are measured on
pairs that training held out, against the policy that the round started from. KL before is the divergence of that policy
from the base. Hours are those of {", ".join(STEPS)}, with the stages that the arm took over from another; own hours are
without them. Tokens are those that policies wrote, that judges read and wrote, and that were trained on: each token of
a packed article once per epoch.
"""


def write_page(studies: Sequence[Mapping[str, Any]], page: Path) -> None:
    """Write the page, and its plots into a folder beside it that has the page's name.

    Args:
        studies: the contents of each study's results.json.
        page: a Markdown file.
    """
    plots = page.with_suffix("")
    plots.mkdir(parents=True, exist_ok=True)
    text = [_HEAD.format(interval=INTERVAL)]
    for number, study in enumerate(studies, 1):
        stem = Path(study["config"]).stem
        is_again = any(Path(other["config"]).stem == stem for other in studies[: number - 1])
        text.append(_section(study, f"{stem}-{number}" if is_again else stem, plots))
    _write(page, "\n".join(text).encode())


def _section(study: Mapping[str, Any], name: str, folder: Path) -> str:
    arms = summarize(study)
    by_name = {arm.name: arm for arm in arms}
    played = [arm for arm in arms if arm.name in study["arms"]]
    for suffix, plot in (
        ("win-rates", draw_win_rates(arms)),
        ("choices", draw_choices(arms, study["settings"])),
        ("hours", draw_hours(arms)),
    ):
        _write(folder / f"{name}-{suffix}.svg", plot)
    image = f"{folder.name}/{name}"
    return "\n".join(
        [
            f"## {study['config']}\n",
            _conditions(study, arms),
            f"![Strict win rate of every arm against the base]({image}-win-rates.svg)\n",
            "### What each choice was worth\n",
            *(f"- {_without_folders(worth(arm, by_name))}" for arm in played),
            "",
            f"![Win rate against the base by the values of each choice]({image}-choices.svg)\n",
            "### What the summaries are like\n",
            _quality_table(arms),
            "### What training did, and what it cost\n",
            _cost_table(arms),
            f"![Hours of every arm by step]({image}-hours.svg)\n",
            *_incidents(played),
        ]
    )


def _conditions(study: Mapping[str, Any], arms: Sequence[Summary]) -> str:
    """What was run, where, when and with which versions."""
    settings, machine = study["settings"], study["machine"]
    judges = [settings["judge"]] + ([settings["second_judge"]] if settings["second_judge"] else [])
    names = [f"`{judge['kind']}`{_model(judge['model'])}" for judge in judges]
    entries = [entry for arm in study["arms"].values() for entry in arm["seeds"].values()]
    days = sorted({entry["made"][:10] for entry in entries})
    commits = sorted({entry["commit"] for entry in entries if entry.get("commit")})
    spent = sum(entry.get("wall", 0.0) for entry in entries) / 3600
    rates = [arm.vs_base for arm in arms if arm.vs_base]
    versions = ", ".join(f"{package} {version}" for package, version in machine["packages"].items())
    counts = max((rate["n"], rate["seeds"]) for rate in rates) if rates else (0, 0)
    return (
        f"```\n.venv/bin/python -m bench.study {_without_folders(' '.join(study['command']))}\n```\n\n"
        f"Policy{_model(settings['policy']['model'])}, judge {names[0]}"
        f"{f', second judge {names[1]}' if names[1:] else ''}; {counts[0]:,} held-out articles, {counts[1]} "
        f"seed{'s' * (counts[1] != 1)}. {' to '.join(dict.fromkeys((days[0], days[-1]))) if days else ''}, "
        f"{machine['cores']} cores ({machine['device']}), Python {machine['python']}, {versions}, commit "
        f"{', '.join(commits) or 'unknown'}. All runs together took {spent:.1f} hours.\n"
    )


def _model(place: str | None) -> str:
    return f" {_without_folders(place)}" if place else ""


def _without_folders(text: str) -> str:
    """The text with only the last part of absolute paths, which say nothing on another machine."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/]+/)+", "", text)


def _quality_table(arms: Sequence[Summary]) -> str:
    judged = "value_mean" if any("value_mean" in arm.figures for arm in arms) else "accuracy"
    has_second, has_test = any(arm.second_vs_base for arm in arms), any(arm.test_vs_base for arm in arms)
    rows = []
    for arm in arms:
        figures = arm.figures
        row = {
            "arm": arm.name,
            "setting": f"`{arm.choice}`" if arm.choice else "",
            "win rate": format_rate(arm.vs_base),
        }
        if has_second:
            row["second judge"] = format_rate(arm.second_vs_base)
        row |= {
            "score" if judged == "value_mean" else "accuracy": _number(figures.get(judged), judged == "accuracy"),
            "words": _number(figures.get("words_median"), digits=0),
            "copied": _number(figures.get("copied"), True),
            "repeated": _number(figures.get("repeated"), True),
            "off topic": _number(figures.get("off_topic_end"), True),
            "cut off": _number(figures.get("cut_off"), True),
        }
        if has_test:
            row["test articles"] = format_rate(arm.test_vs_base)
        rows.append(row)
    return f"{_table(rows)}\n{_QUALITY_NOTE}{_TEST_NOTE if has_test else ''}\n"


def _cost_table(arms: Sequence[Summary]) -> str:
    rows = []
    for arm in arms:
        if not arm.hours:
            continue
        figures = arm.figures
        rows.append(
            {
                "arm": arm.name,
                "pairs": _number(figures.get("pairs"), digits=0),
                "steps": _number(figures.get("steps"), digits=0),
                "reward accuracy": _number(figures.get("eval_accuracy"), True),
                "chosen": _number(figures.get("chosen_change"), digits=1, sign=True),
                "rejected": _number(figures.get("rejected_change"), digits=1, sign=True),
                "KL": _number(figures.get("kl"), digits=1),
                "KL before": _number(figures.get("kl_before"), digits=1),
                "hours": _number(sum(arm.hours.values())),
                "own hours": _number(arm.own_hours),
                "sampled": _tokens(arm.tokens.get("sampled")),
                "judged": _tokens(arm.tokens.get("judged")),
                "trained": _tokens(arm.tokens.get("trained")),
            }
        )
    return f"{_table(rows)}\n{_COST_NOTE}\n"


def _incidents(arms: Sequence[Summary]) -> list[str]:
    """Arms that failed or ended early."""
    found = [
        f"- `{arm.name}`, seed {seed}, failed: {_without_folders(error)}"
        for arm in arms
        for seed, error in arm.errors.items()
    ]
    found += [f"- `{arm.name}`, seed {seed}: {why}" for arm in arms for seed, why in arm.stopped.items()]
    return ["### What failed or ended early\n", *found, ""] if found else []


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return ""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * 2 + "---:|" * (len(rows[0]) - 2)]
    return "\n".join([*lines, *("| " + " | ".join(row.values()) + " |" for row in rows)]) + "\n"


def _number(value: float | None, percent: bool = False, digits: int = 2, sign: bool = False) -> str:
    if value is None:
        return "–"
    if percent:
        return f"{100 * value:.1f} %"
    return f"{value:{'+' if sign else ''},.{digits}f}"


def _tokens(count: float | None) -> str:
    if count is None:
        return "–"
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
