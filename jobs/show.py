"""Look at a run: what is made, and what is in it. Nothing is changed, and no Ray is started."""

import re
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from pipeline.config import Alignment, Config, UserError
from pipeline.config.sanitize import printable
from pipeline.execution.dry_run import UNMADE, DryRun
from pipeline.execution.progress import Display, summarize_record
from pipeline.stages.base import Stage
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.run_folder import CONFIG, read_settings


class _Told(DryRun):
    """A survey that says what it finds, and refuses nothing."""

    def __init__(self, config: Config | Alignment, ledger: Ledger, display: Display):
        super().__init__(config, ledger)
        self.display, self.next_told = display, False

    def reuse(self, found: Artifact) -> Artifact:
        self.display.line(found.address, f"made    {summarize_record(found.record)}")
        return found

    def refuse(self, address: str, changed: list[str]) -> Artifact:
        return self._to_make(address, f"stale   {'; '.join(changed)}", "red")

    def make(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact:
        if self.ledger.find(address):
            return self._to_make(address, "stale   its inputs are to be made again", "red")
        return self._to_make(address, "not made" if self.next_told else "not made: comes next", "yellow")

    def _to_make(self, address: str, text: str, style: str) -> Artifact:
        self.display.line(address, text, style=style)
        self.next_told = True
        return Artifact(self.ledger.root, address, {"build": UNMADE, "kept": 1})


def status(folder: str, overrides: Sequence[str]) -> None:
    """Say of every stage of a run whether it is made, stale or not made."""
    ledger = Ledger(folder)
    config = read_settings(ledger, overrides)
    display = Display()
    display.say(folder, style="bold")
    told = _Told(config, ledger, display)
    if isinstance(config, Alignment):
        from pipeline.execution.align import train_on_pairs

        train_on_pairs(told)
    else:
        from pipeline.round import rounds

        for current in rounds(told):
            if current.ended:
                display.say(current.ended)


def show(folder: str, stage: str, count: int, article: str | None) -> None:
    """Print a few rows of a table."""
    from pipeline.storage import tables

    ledger = Ledger(folder)
    table = _table(ledger, stage)
    rows, address = tables.read_table(ledger, table), table.address
    if article is not None:
        rows = [row for row in rows if row["article_id"] == article]
        if not rows:
            raise UserError(f"{address} has no kept row of article {article!r}")
    if not rows:
        raise UserError(f"{folder}/{address} holds no kept rows; look into {address}/record.json for the reasons")
    console = Console(highlight=False)
    for row in rows[:count]:
        _print(console, row)
    console.print(f"{min(count, len(rows))} of {len(rows):,} rows of {address}", style="dim", markup=False)


def _table(ledger: Ledger, stage: str) -> Artifact:
    """The table at an address as written, or the latest round's of that stage."""
    made = ledger.addresses()
    if not made:
        begun = "has nothing finished yet: rondo status says what comes next"
        raise UserError(f"{ledger.root} {'holds no run' if ledger.read(CONFIG) is None else begun}")
    matching = sorted(address for address in made if re.fullmatch(rf"(.*/)?{re.escape(stage)}", address))
    if not matching:
        raise UserError(f"{ledger.root} has no {stage!r}; it has {', '.join(sorted(made))}")
    found = ledger.find(matching[-1])
    assert found is not None, "it was listed by its record"
    if "parts" not in found.record:
        raise UserError(f"{found.address} is a model, not a table: look at its record.json and metrics.jsonl")
    return found


def _print(console: Console, row: dict[str, Any]) -> None:
    console.print(Text(printable(f"{row['article_id']}  ({row['split']})"), style="bold"))
    if row.get("article"):  # drift has none: it is about the summaries
        article = printable(" ".join(row["article"].split()))
        console.print(Padding(Text(article if len(article) < 900 else article[:900] + " …", style="dim"), (0, 2)))
    for number, question in enumerate(row.get("questions") or [], 1):
        line = Text(printable(f"Q{number} {question['question']} "))
        for i, option in enumerate(question["options"]):
            line.append(printable(f" {'ABCDEFGHIJ'[i]} {option} "), style="green" if i == question["answer"] else "")
        console.print(Padding(line, (0, 2)))
    scores = row.get("scores") or [None] * len(row.get("summaries") or [])
    for number, (written, score) in enumerate(zip(row.get("summaries") or [], scores, strict=True)):
        head = Text(f"summary {number}", style="cyan")
        if score:
            said = " ".join(answer or "unread" for answer in score["answers"])
            soft = "" if score.get("soft") is None else f", soft {score['soft']:.2f}"
            head.append(f"  {score['correct']} right ({said}){soft}, {score['words']} words", style="")
        for whose in ("reference", "policy", "base"):
            if row.get(f"{whose}_logps") and row[f"{whose}_logps"][number] is not None:
                head.append(f", {whose} logp {row[f'{whose}_logps'][number]:.2f}", style="")
        if written.get("writer"):
            head.append(f", written by {written['writer']}", style="yellow")
        if written["finish_reason"] != "stop":
            head.append(f", finish reason {written['finish_reason']}", style="yellow")
        console.print(Padding(head, (0, 2)))
        console.print(Padding(Text(printable(" ".join(written["text"].split()))), (0, 4)))
    for pair in row.get("pairs") or []:
        line = Text(
            printable(f"summary {pair['chosen']} over summary {pair['rejected']}: {pair['reason']}"), style="green"
        )
        console.print(Padding(line, (0, 2)))
    console.print()
