"""`rondo status` and `rondo show`: print the state of a run's artifacts, and rows of its tables.

These commands change nothing and do not start Ray.
"""

import re
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from judges.base import LETTERS
from pipeline.config import Alignment, Config, UserError
from pipeline.config.messages import one_line, printable
from pipeline.execution.dry_run import DryRun
from pipeline.execution.progress import Display, summarize_record
from pipeline.execution.recipe import Change
from pipeline.judging.scoring.text_faults import describe_faults
from pipeline.judging.tallies import describe_unusable
from pipeline.stages.base import Stage
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.run_folder import CONFIG, TEST, read_settings

_ARTICLE_CHARACTERS = 900  # an article is cut after so many
_THOUGHT_CHARACTERS = 400  # and a thought after so many


class _Status(DryRun):
    """Prints the state of each artifact. A stale artifact does not stop it."""

    def __init__(self, config: Config | Alignment, ledger: Ledger, display: Display):
        super().__init__(config, ledger)
        self.display = display

    def reuse(self, artifact: Artifact) -> Artifact:
        self.display.line(artifact.address, f"made    {summarize_record(artifact.record)}")
        return artifact

    def refuse(self, stage: Stage, inputs: Sequence[Artifact], address: str, changes: Sequence[Change]) -> Artifact:
        self.display.line(address, f"stale   {'; '.join(map(str, changes))}", style="red")
        return super().make(stage, inputs, address)

    def make(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact:
        if self.ledger.find(address):
            self.display.line(address, "stale   its inputs must be made again", style="red")
        else:
            self.display.line(address, "not made" if self.unmade else "not made: comes next", style="yellow")
        return super().make(stage, inputs, address)


def show_status(folder: str, overrides: Sequence[str]) -> None:
    """Print for every artifact of a run whether it is made, stale or not made."""
    ledger = Ledger(folder)
    config = read_settings(ledger, overrides)
    display = Display()
    display.say(folder, style="bold")
    status = _Status(config, ledger, display)
    if isinstance(config, Alignment):
        from pipeline.execution.align import train_on_pairs

        train_on_pairs(status)
    else:
        from pipeline.round import rounds

        for current in rounds(status):
            if current.ended and not current.test:  # with its test, the last round comes again
                display.say(current.ended)


def show_rows(folder: str, stage_or_address: str, count: int, article_id: str | None) -> None:
    """Print rows of a table: the first `count`, or those of one article.

    Args:
        folder: the run folder.
        stage_or_address: an address such as round-01/scores, or the last part of addresses, such as scores. For a stage
            that several rounds have, the table of the latest round is used.
        count: the most rows to print.
        article_id: print only rows of this article; None: of all articles.

    Raises:
        UserError: there is no such table, or it has no such row.
    """
    from pipeline.storage import tables

    ledger = Ledger(folder)
    table = _find_table(ledger, stage_or_address)
    rows = tables.read_table(ledger, table)
    if article_id is not None:
        rows = [row for row in rows if row["article_id"] == article_id]
        if not rows:
            raise UserError(f"{table.address} has no kept row of article {article_id!r}")
    if not rows:
        raise UserError(
            f"{folder}/{table.address} holds no kept rows: {summarize_record(table.record).strip()}. The skipped rows "
            f"are in {table.address}/skipped/"
        )
    console = Console(highlight=False)
    for row in rows[:count]:
        _print_row(console, row)
    console.print(f"{min(count, len(rows))} of {len(rows):,} rows of {table.address}", style="dim", markup=False)
    if unusable := describe_unusable(table.record.get("tally", {})):
        console.print(unusable, style="dim", markup=False)


def _find_table(ledger: Ledger, stage_or_address: str) -> Artifact:
    """The table at this address, or the latest round's table of this stage, but none of the test articles."""
    addresses = ledger.addresses()
    if not addresses:
        unfinished = "has nothing finished yet: rondo status says what comes next"
        raise UserError(f"{ledger.root} {'holds no run' if ledger.read(CONFIG) is None else unfinished}")
    # Nobody should look at the test articles by chance, so their tables need their whole address.
    matching = [
        address
        for address in addresses
        if address == stage_or_address
        or (re.fullmatch(rf"(.*/)?{re.escape(stage_or_address)}", address) and not address.startswith(f"{TEST}/"))
    ]
    if not matching:
        raise UserError(f"{ledger.root} has no {stage_or_address!r}; it has {', '.join(addresses)}")
    table = ledger.find(matching[-1])
    assert table is not None, "it was listed by its record"
    if "parts" not in table.record:
        raise UserError(f"{table.address} is a model, not a table: look at its record.json and metrics.jsonl")
    return table


def _print_row(console: Console, row: dict[str, Any]) -> None:
    console.print(Text(printable(f"{row['article_id']}  ({row['split']})"), style="bold"))
    if row.get("article"):  # the table `drift` has no articles
        article = printable(one_line(row["article"], limit=_ARTICLE_CHARACTERS))
        console.print(Padding(Text(article, style="dim"), (0, 2)))
    for number, question in enumerate(row.get("questions") or [], 1):
        console.print(Padding(_question_line(number, question), (0, 2)))
    for number, summary in enumerate(row.get("summaries") or []):
        console.print(Padding(_summary_heading(number, summary, row), (0, 2)))
        if thought := summary.get("thought"):
            line = printable(one_line(thought, limit=_THOUGHT_CHARACTERS))
            console.print(Padding(Text(f"thought: {line}", style="dim italic"), (0, 4)))
        console.print(Padding(Text(printable(one_line(summary["text"], limit=None))), (0, 4)))
    for pair in row.get("pairs") or []:
        line = f"summary {pair['chosen']} over summary {pair['rejected']}: {pair['reason']}"
        console.print(Padding(Text(printable(line), style="green"), (0, 2)))
    console.print()


def _question_line(number: int, question: dict[str, Any]) -> Text:
    line = Text(printable(f"Q{number} {question['question']} "))
    for i, option in enumerate(question["options"]):
        line.append(printable(f" {LETTERS[i]} {option} "), style="green" if i == question["answer"] else "")
    return line


def _describe_score(score: dict[str, Any]) -> str:
    """The answers of a judge that asks questions, or the value of another judge with its items."""
    value, items = score.get("value"), score.get("items") or []
    by_questions = score["answers"] or (value is None and not score["unread"])
    if by_questions:
        answers = " ".join(answer or "unread" for answer in score["answers"])
        soft = "" if score.get("soft") is None else f", soft {score['soft']:.2f}"
        return f"{score['correct']} right ({answers}){soft}"
    parts = " ".join("–" if item is None else f"{item:.3g}" for item in items)
    return ("score unread" if value is None else f"score {value:.3g}") + (f" ({parts})" if parts else "")


def _summary_heading(number: int, summary: dict[str, Any], row: dict[str, Any]) -> Text:
    """The summary's number, its score, its log-probabilities, and what is unusual about it."""
    heading = Text(f"summary {number}", style="cyan")
    if scores := row.get("scores"):
        score = scores[number]
        heading.append(f"  {_describe_score(score)}, {score['words']} words", style="")
    for policy in ("reference", "policy", "base"):
        logps = row.get(f"{policy}_logps")
        if logps and logps[number] is not None:
            heading.append(f", {policy} logp {logps[number]:.2f}", style="")
    if summary.get("temperature") and len({other.get("temperature") for other in row["summaries"]}) > 1:
        heading.append(f", temperature {summary['temperature']:g}", style="")
    if summary.get("writer"):
        heading.append(f", written by {summary['writer']}", style="yellow")
    if summary.get("thought_tokens") is not None:
        cut = ", cut at its budget" if summary.get("forced_tokens") else ""
        heading.append(f", {summary['thought_tokens']} tokens of thought{cut}", style="")
    if summary["finish_reason"] != "stop":
        heading.append(f", finish reason {summary['finish_reason']}", style="yellow")
    for fault in describe_faults(scores[number].get("faults")) if scores else ():
        heading.append(f", {printable(fault)}", style="yellow")
    return heading
