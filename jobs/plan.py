"""`rondo plan`: prints which artifacts a run would make, and their tokens, time, cost and memory. Nothing is made."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.config import Config, UserError
from pipeline.config.loader import load_config
from pipeline.config.messages import format_bytes
from pipeline.execution.planning import gpu_memory
from pipeline.execution.planning.estimator import Estimator
from pipeline.execution.planning.gpu_memory import GIB, MemoryNeed, PackedRow
from pipeline.execution.planning.stage_counts import StageEstimate
from pipeline.execution.planning.throughput import Throughput, open_measured_run
from pipeline.execution.planning.token_habits import habit_notes
from pipeline.execution.preflight import (
    check_engines,
    check_preference,
    memory_needs,
    open_run_folder,
)
from pipeline.execution.progress import format_duration
from pipeline.execution.ray_cluster import gpu_memory_here
from pipeline.inference.base import TOKENS_IN, TOKENS_OUT
from pipeline.judging.user_code.judge_trial import check_judge
from pipeline.stages.base import JUDGE_ENGINES
from pipeline.storage.model_files import hub

_NO_RATE = (
    "no rate yet: run a small round first, such as run=runs/small articles.limit=100 rounds=1, and name it by --rates"
)
# What to do if a model may not fit a GPU, by the use of the model.
_MEMORY_REMEDIES = {
    "training": "lower hardware.trainer.tokens_per_batch, or set hardware.trainer.gradient_checkpointing",
    "references": "lower hardware.trainer.tokens_per_batch, or raise hardware.trainer.workers",
}


def plan(
    path: str,
    overrides: Sequence[str],
    rates: Sequence[str] = (),
    price: float | None = None,
    gpu_gib: float | None = None,
    out: str | None = None,
) -> None:
    """Print which artifacts a run would make and reuse, and an estimate of their tokens, time, cost and memory.

    Args:
        path: the YAML file.
        overrides: settings that replace those of the file, such as `training.beta=0.05`.
        rates: folders of runs whose records give rates; empty: this run's own folder.
        price: dollars for an hour of a GPU.
        gpu_gib: GiB of one GPU; None: as in this machine's GPUs, if it has any.
        out: JSON file to write; None: no file.

    Raises:
        UserError: a run would refuse the settings, a model cannot fit, or a folder of `rates` has no run.
    """
    settings = load_config(path, overrides)
    hub.check_name("policy.model", settings.policy.model)
    for name, judge in settings.judges.items():
        if judge.model and not judge.served:
            hub.check_name(f"{name}.model", judge.model)
    for section in JUDGE_ENGINES:
        check_judge(getattr(settings, section), settings.seed, section)
    check_engines(settings)
    check_preference(settings)
    ledger = open_run_folder(settings)
    measured = [open_measured_run(name) for name in rates]
    throughput = Throughput(measured or [ledger], settings)
    estimator = Estimator(settings, ledger, throughput, price)
    from pipeline.round import rounds

    for _ in rounds(estimator):
        pass
    memory = gpu_gib * GIB if gpu_gib is not None else gpu_memory_here()
    needs, unknown = _memory_needs(settings, estimator, memory)
    notes = _articles_notes(estimator)
    if any(stage.workload == "sampling" for stage in estimator.unmade.values()):
        notes += habit_notes(settings, [ledger, *measured])
    notes += _notes(settings, estimator, needs, unknown, memory)
    run_plan = _Plan(settings.run, estimator.estimates, needs, notes, memory)
    if out is not None:
        try:
            text = json.dumps(run_plan.to_dict(), indent=1, ensure_ascii=False)
            Path(out).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--json is {out!r}, which cannot be written: {error.strerror}") from None
    _show(Console(highlight=False), run_plan)


@dataclass(frozen=True)
class _Plan:
    """The plan that is printed and written.

    Attributes:
        estimates: one for each artifact.
        needs: the memory that each model takes.
        gpu_memory: bytes of one GPU; None: unknown.
    """

    run: str
    estimates: Sequence[StageEstimate]
    needs: Sequence[MemoryNeed]
    notes: Sequence[str]
    gpu_memory: float | None

    def total(self) -> dict[str, Any]:
        return _total(self.estimates)

    def to_dict(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "stages": [asdict(estimate) | {"gpu_hours": estimate.gpu_hours} for estimate in self.estimates],
            "total": self.total(),
            "gpu_memory": self.gpu_memory,
            "memory": [asdict(need) | {"total": need.total} for need in self.needs],
            "notes": list(self.notes),
        }


def _memory_needs(settings: Config, estimator: Estimator, memory: float | None) -> tuple[list[MemoryNeed], list[str]]:
    """The memory that the models of the planned stages take. Raises UserError if a model cannot fit."""
    used = {use for stage in estimator.unmade.values() for use in stage.uses}
    lengths = estimator.counts.lengths
    completions = settings.summaries.n * (settings.summaries.max_tokens + estimator.counts.thought_budget)
    tokens = max(settings.hardware.trainer.tokens_per_batch, lengths.longest_prompt + completions)
    prompt = lengths.prompt or 0
    share_scored = completions / (completions + prompt)
    return memory_needs(settings, memory, PackedRow(tokens, int(tokens * share_scored), prompt), used)


def _total(estimates: Sequence[StageEstimate]) -> dict[str, Any]:
    new = [line for line in estimates if line.state != "made"]
    return {
        "make": len(new),
        "made": len(estimates) - len(new),
        "prompts": sum(line.prompts for line in new),
        "tokens_in": sum(line.tally.get(TOKENS_IN, 0) for line in new),
        "tokens_out": sum(line.tally.get(TOKENS_OUT, 0) for line in new),
        "seconds": sum(line.seconds or 0 for line in new),
        "gpu_hours": sum(line.gpu_hours or 0 for line in new),
        "dollars": sum(line.dollars or 0 for line in new),
        "untimed": [line.address for line in new if line.untimed],
    }


def _articles_notes(estimator: Estimator) -> list[str]:
    """How many articles are left, if there are far fewer than the settings ask for."""
    uses = {use for stage in estimator.unmade.values() for use in stage.uses}
    engines = {"policy": "policy_engine", "judge": "judge_engine"}
    too_long = [str(found) for section, found in estimator.too_long.items() if engines[section] in uses]
    return [f"articles: {note}" for note in (estimator.articles_note, *too_long) if note and estimator.unmade]


def _notes(
    settings: Config, estimator: Estimator, needs: Sequence[MemoryNeed], unknown: Sequence[str], memory: float | None
) -> list[str]:
    new = [line for line in estimator.estimates if line.state != "made"]
    notes = [f"{line.address}: {note}" for line in new for note in line.notes]
    if new and any(line.tally.get(TOKENS_IN) for line in new):
        notes.append(
            f"tokens are means of {estimator.counts.lengths.sample} articles, by the models' own tokenizers and chat "
            "templates"
        )
    if any(line.at_most for line in new):
        notes.append(
            "≤: the most that the settings allow; records of a small round would show how long replies really are"
        )
    if any(line.untimed for line in new):
        notes.append(_NO_RATE)
    if any(line.seconds is not None and not line.start_known for line in new):
        notes.append("some rates include the start of an engine: more rows will be faster than this")
    if estimator.throughput.used:
        notes.append(
            f"rates were measured in {', '.join(estimator.throughput.used)}; stages without a model are not timed"
        )
    if settings.rounds > 1 and len(new) > 1:
        notes.append(
            f"{settings.rounds} rounds are planned; a round without pairs, or a rule that stops, ends them sooner"
        )
    notes += [*unknown, *estimator.counts.lengths.notes]
    on_cpu = [need for need in needs if not need.gpus]
    if settings.hardware.keep_engines and len(on_cpu) > 1:
        total = sum(need.total for need in on_cpu)
        notes.append(
            f"engines stay while others work: this machine needs up to {format_bytes(total)} at once; "
            "hardware.keep_engines=false ends them with their stage"
        )
    if memory is None and any(need.gpus for need in needs):
        notes.append("the memory of the GPUs is unknown, so nothing is refused: give --gpu-memory GIB")
    if memory is not None:
        notes += [
            f"{need.use}: about {need.total / GIB:.1f} GiB may not fit a GPU's {memory / GIB:.0f}: "
            + _MEMORY_REMEDIES.get(need.use, "use a larger GPU or a smaller model")
            for need in needs
            if need.gpus and not need.token and need.total > memory
        ]
    return notes


def _show(console: Console, run_plan: _Plan) -> None:
    total = run_plan.total()
    console.print(f"{run_plan.run}: {total['make']} to make, {total['made']} reused", style="bold", soft_wrap=True)
    table = Table(box=None)
    # A narrow terminal then cuts the headings of figures before it cuts the addresses.
    table.add_column("", no_wrap=True, min_width=max(len(line.address) for line in run_plan.estimates))
    table.add_column("", no_wrap=True)
    for name in ("rows", "prompts", "tokens in", "tokens out", "time", "GPU hours", "cost"):
        table.add_column(name, justify="right")
    for line in run_plan.estimates:
        table.add_row(*_cells(line), style="dim" if line.state == "made" else "")
    table.add_section()
    gpus = f"{total['gpu_hours']:,.2f}" if total["gpu_hours"] else ""
    most = "≤ " if any(line.at_most for line in run_plan.estimates if line.state != "made") else ""
    tokens = [_number(total[name], most) for name in ("tokens_in", "tokens_out")]
    table.add_row(
        "to make in all", "", "", f"{total['prompts']:,}", *tokens,
        format_duration(total["seconds"]) if total["seconds"] else "", gpus,
        f"{most}${total['dollars']:,.2f}" if total["dollars"] else "", style="bold",
    )  # fmt: skip
    console.print(table)
    if run_plan.needs:
        console.print()
        console.print("Memory on each GPU (of the machine, on a CPU)", style="bold")
        console.print(_memory(run_plan.needs, run_plan.gpu_memory))
    console.print()
    for note in run_plan.notes:
        console.print(f"[yellow]note:[/] {note}", soft_wrap=True)


_STATES = {"made": "reused", "to make": "make", "stale": "make again"}


def _cells(line: StageEstimate) -> list[str]:
    most = "≤ " if line.at_most else ""
    tally = line.tally
    new = line.state != "made"
    return [
        line.address,
        _STATES[line.state],
        "" if line.rows is None else f"{line.rows:,}",
        f"{line.prompts:,}" if line.prompts else "",
        _number(tally.get(TOKENS_IN), most if new else ""),
        _number(tally.get(TOKENS_OUT), most if new else ""),
        format_duration(line.seconds) if line.seconds is not None else "",
        f"{line.gpu_hours:,.2f}" if line.gpu_hours else "",
        f"{most if new else ''}${line.dollars:,.2f}" if line.dollars else "",
    ]


def _number(count: float | None, most: str = "") -> str:
    if not count:
        return ""
    scaled, unit = next(((count / n, u) for n, u in ((1e9, "G"), (1e6, "M"), (1e4, "k")) if count >= n), (count, ""))
    if unit == "k":
        scaled = count / 1e3
    return f"{most}{scaled:,.1f}{unit}" if unit else f"{most}{count:,.0f}"


def _memory(needs: Sequence[MemoryNeed], memory: float | None) -> Table:
    table = Table(box=None)
    for name in ("", "parameters", "GPUs", "needs"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_column("of which")
    table.add_column("room for")
    for need in needs:
        parts = ", ".join(f"{what} {format_bytes(size)}" for what, size in (need.sure | need.about).items() if size)
        room = ""
        if need.token and need.gpus and memory is not None:
            room = f"{need.sequences(memory):,.1f} sequences of {need.longest:,} tokens"
        elif need.token:
            room = f"{format_bytes(need.token * need.longest)} a sequence of {need.longest:,} tokens"
        table.add_row(
            need.use, " ".join(filter(None, (gpu_memory.format_parameters(need.parameters), need.quantization))),
            f"{need.gpus:g}" if need.gpus else "CPU",
            format_bytes(need.total), parts, room,
        )  # fmt: skip
    return table
