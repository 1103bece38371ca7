"""What a configuration would take, before anything starts: a table, and the same for machines. Nothing is made."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.config import Config, UserError
from pipeline.config.loader import load_config
from pipeline.execution.planning import gpu_memory
from pipeline.execution.planning.estimator import Estimator
from pipeline.execution.planning.gpu_memory import GIB, MemoryNeed, PackedRow
from pipeline.execution.planning.stage_counts import StageEstimate
from pipeline.execution.planning.throughput import Throughput, open_measured_run
from pipeline.execution.progress import format_duration
from pipeline.judging import preference
from pipeline.storage import run_folder
from pipeline.storage.ledger import Ledger
from pipeline.storage.model_files import hub, shapes

_SMALL = (
    "no rate yet: play a small round first, such as run=runs/small articles.limit=100 rounds=1, and name it by --rates"
)


def plan(
    path: str,
    overrides: Sequence[str],
    rates: Sequence[str] = (),
    price: float | None = None,
    gpu_memory: float | None = None,
    out: str | None = None,
) -> None:
    """Print what a run would make and reuse, and what that takes.

    Args:
        rates: folders of runs that measured; none: this run's own.
        price: dollars for an hour of a GPU.
        gpu_memory: GiB of one; None: of this machine's, if it has any.
        out: JSON file.

    Raises:
        UserError: settings that a run would refuse; a model that cannot fit; a rate's folder without a run.
    """
    settings = load_config(path, overrides)
    for name in ("policy", "judge", "second_judge"):
        asked = getattr(settings, name)
        if asked and asked.model and not getattr(asked, "served", None):
            hub.check_name(f"{name}.model", asked.model)
    preference.check_preference(settings.pairs, settings.judge.questions, settings.judge.logprobs)
    book = Ledger(settings.run)
    run_folder.check_command(book, settings)
    known = Throughput([open_measured_run(name) for name in rates] or [book], settings)
    made = Estimator(settings, book, known, price)
    from pipeline.round import rounds

    for _ in rounds(made):
        pass
    each = gpu_memory * GIB if gpu_memory is not None else installed()
    needs, unknown = _needs(settings, made, each)
    notes = _notes(settings, made, needs, unknown, each)
    estimate = _Estimate(settings.run, made.lines, needs, notes, each)
    if out is not None:
        try:
            Path(out).write_text(json.dumps(estimate.told(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--json is {out!r}, which cannot be written: {error.strerror}") from None
    _show(Console(highlight=False), estimate)


@dataclass(frozen=True)
class _Estimate:
    """What is shown and written: a line of each artifact, each model's needs, and `gpu_memory`, bytes of one GPU."""

    run: str
    lines: Sequence[StageEstimate]
    needs: Sequence[MemoryNeed]
    notes: Sequence[str]
    gpu_memory: float | None

    def total(self) -> dict[str, Any]:
        return _total(self.lines)

    def told(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "stages": [asdict(line) | {"gpu_hours": line.gpu_hours} for line in self.lines],
            "total": self.total(),
            "gpu_memory": self.gpu_memory,
            "memory": [asdict(need) | {"total": need.total} for need in self.needs],
            "notes": list(self.notes),
        }


def installed() -> float | None:
    """Bytes of the smallest GPU of this machine; None where there is none."""
    if not shutil.which("nvidia-smi"):
        return None
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    sizes = [float(line) * (1 << 20) for line in done.stdout.split() if line.isdigit()]
    return min(sizes) if sizes and done.returncode == 0 else None


def refuse(settings: Config, each: float | None) -> None:
    """Raise UserError where a model cannot fit on GPUs of so many bytes.

    Nothing is refused where they are unknown, or where a Ray is joined: its nodes may have others than this machine.
    """
    if each is not None and "RAY_ADDRESS" not in os.environ:
        _examined(settings, each, PackedRow(0, 0), [], [])


def _needs(settings: Config, made: Estimator, each: float | None) -> tuple[list[MemoryNeed], list[str]]:
    """What each model takes, and of which that is not known. Raises UserError where one cannot fit."""
    needs: list[MemoryNeed] = []
    unknown: list[str] = []
    stages = made.unmade.values()
    used = {use for stage in stages for use in stage.uses}
    lengths = made.counts.lengths
    completions = settings.summaries.n * settings.summaries.max_tokens
    tokens = max(settings.hardware.trainer.tokens_per_batch, lengths.longest + completions)
    share = completions / (completions + (lengths.prompt or 0))
    _examined(settings, each, PackedRow(tokens, int(tokens * share)), needs, unknown, used)
    return needs, unknown


def _examined(
    settings: Config,
    each: float | None,
    row: PackedRow,
    needs: list[MemoryNeed],
    unknown: list[str],
    used: set[str] | None = None,
) -> None:
    hardware = settings.hardware
    engines: list[tuple[str, str, Any, Any]] = [("policy", "policy_engine", settings.policy, hardware.policy)]
    for who, engine in (("judge", "judge_engine"), ("second_judge", "second_engine")):
        judge = getattr(settings, who)
        if judge and judge.model and not judge.served:
            engines.append((who, engine, judge, hardware.judge))
    refusals = []
    for who, engine, asked, place in engines:
        if used is not None and engine not in used:
            continue
        try:
            model = shapes.read_shapes(asked.model)
            needs.append(gpu_memory.engine_memory(who, model, asked.dtype, asked.max_model_len, place))
        except shapes.UnknownShapes as error:
            unknown.append(f"{who}: what {asked.model} takes is unknown ({error})")
            continue
        if each is not None and place.gpus_per_replica:
            refusals.append(gpu_memory.engine_refusal(who, model, asked.dtype, asked.max_model_len, place, each))
    trainer = hardware.trainer
    if used is None or "trainer" in used:
        try:
            model = shapes.read_shapes(settings.policy.model)
            needs.append(gpu_memory.training_memory(model, settings.policy, settings.training, trainer, row))
            if each is not None and trainer.gpus_per_worker:
                refusals.append(
                    gpu_memory.training_refusal(model, settings.policy, settings.training, trainer, row, each)
                )
        except shapes.UnknownShapes as error:
            unknown.append(f"training: what {settings.policy.model} takes is unknown ({error})")
    if any(refusals):
        raise UserError("\n".join(filter(None, refusals)))


def _total(lines: Sequence[StageEstimate]) -> dict[str, Any]:
    new = [line for line in lines if line.state != "made"]
    return {
        "make": len(new),
        "made": len(lines) - len(new),
        "prompts": sum(line.prompts for line in new),
        "tokens_in": sum(line.tally.get("tokens_in", 0) for line in new),
        "tokens_out": sum(line.tally.get("tokens_out", 0) for line in new),
        "seconds": sum(line.seconds or 0 for line in new),
        "gpu_hours": sum(line.gpu_hours or 0 for line in new),
        "dollars": sum(line.dollars or 0 for line in new),
        "untimed": [line.address for line in new if line.untimed],
    }


def _notes(
    settings: Config, made: Estimator, needs: Sequence[MemoryNeed], unknown: Sequence[str], each: float | None
) -> list[str]:
    new = [line for line in made.lines if line.state != "made"]
    notes = [f"{line.address}: {note}" for line in new for note in line.notes]
    if new and any(line.tally.get("tokens_in") for line in new):
        notes.append(
            f"tokens are means of {made.counts.lengths.sample} articles, by the models' own tokenizers and templates"
        )
    if any(line.at_most for line in new):
        notes.append(
            "≤: at most, by the settings' limits; records of a small round would tell what replies really take"
        )
    if any(line.untimed for line in new):
        notes.append(_SMALL)
    if any(line.seconds is not None and not line.start_known for line in new):
        notes.append("some rates have an engine's start in them: on more rows it will be faster than this")
    if made.rates.used:
        notes.append(f"rates were measured in {', '.join(made.rates.used)}; stages without a model are not timed")
    if settings.rounds > 1 and len(new) > 1:
        notes.append(
            f"{settings.rounds} rounds are planned; a round without pairs, or a rule that stops, ends them sooner"
        )
    notes += [*unknown, *made.counts.lengths.unknown]
    if each is None and any(need.gpus for need in needs):
        notes.append("the GPUs' memory is unknown, so nothing is refused: say --gpu-memory GIB")
    if each is not None:
        notes += [
            f"{need.use}: about {need.total / GIB:.1f} GiB may not fit a GPU's {each / GIB:.0f}: lower "
            "hardware.trainer.tokens_per_batch, or set hardware.trainer.gradient_checkpointing"
            for need in needs
            if need.gpus and not need.token and need.total > each
        ]
    return notes


def _show(console: Console, estimate: _Estimate) -> None:
    total = estimate.total()
    console.print(f"{estimate.run}: {total['make']} to make, {total['made']} reused", style="bold", soft_wrap=True)
    table = Table(box=None)
    # A narrow terminal cuts figures' headings before it cuts what a line is about.
    table.add_column("", no_wrap=True, min_width=max(len(line.address) for line in estimate.lines))
    table.add_column("", no_wrap=True)
    for name in ("rows", "prompts", "tokens in", "tokens out", "time", "GPU hours", "cost"):
        table.add_column(name, justify="right")
    for line in estimate.lines:
        table.add_row(*_cells(line), style="dim" if line.state == "made" else "")
    table.add_section()
    gpus = f"{total['gpu_hours']:,.2f}" if total["gpu_hours"] else ""
    most = "≤ " if any(line.at_most for line in estimate.lines if line.state != "made") else ""
    tokens = [_number(total[name], most) for name in ("tokens_in", "tokens_out")]
    table.add_row(
        "to make in all", "", "", f"{total['prompts']:,}", *tokens,
        format_duration(total["seconds"]) if total["seconds"] else "", gpus,
        f"{most}${total['dollars']:,.2f}" if total["dollars"] else "", style="bold",
    )  # fmt: skip
    console.print(table)
    if estimate.needs:
        console.print()
        console.print("Memory on each GPU (of the machine, on a CPU)", style="bold")
        console.print(_memory(estimate.needs, estimate.gpu_memory))
    console.print()
    for note in estimate.notes:
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
        _number(tally.get("tokens_in"), most if new else ""),
        _number(tally.get("tokens_out"), most if new else ""),
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


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / (1 << 20):.0f} MiB"


def _memory(needs: Sequence[MemoryNeed], each: float | None) -> Table:
    table = Table(box=None)
    for name in ("", "parameters", "GPUs", "needs"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_column("of which")
    table.add_column("room for")
    for need in needs:
        parts = ", ".join(f"{what} {_size(size)}" for what, size in (need.sure | need.about).items() if size)
        room = ""
        if need.token and need.gpus and each is not None:
            room = f"{need.sequences(each):,.1f} sequences of {need.longest:,} tokens"
        elif need.token:
            room = f"{_size(need.token * need.longest)} a sequence of {need.longest:,} tokens"
        table.add_row(
            need.use, gpu_memory.format_parameters(need.parameters), f"{need.gpus:g}" if need.gpus else "CPU",
            _size(need.total), parts, room,
        )  # fmt: skip
    return table
