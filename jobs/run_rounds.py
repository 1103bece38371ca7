"""`rondo run`, and `run` from Python: checks the settings, locks the run folder, runs the rounds, writes the report."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.config import Config, UserError
from pipeline.config.loader import combine_config, load_config
from pipeline.config.messages import one_line
from pipeline.execution.preflight import check_rounds, check_servers
from pipeline.execution.progress import Display
from pipeline.storage.ledger import Artifact, Ledger

if TYPE_CHECKING:
    from pipeline.evaluation.round_result import Round


class Report(str):
    """The text of report.md, which a notebook shows as Markdown."""

    def _repr_markdown_(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: its folder or URI.
        metrics: what the report is made from, the content of metrics.json.
        policy: folder or URI of the champion, a Hugging Face model or a LoRA adapter; if no round beat the base, the
            model that the run started from.
        evaluations: the table of held-out articles of each round, by number; 0 is the base.
    """

    folder: str
    metrics: dict[str, Any]
    policy: str
    evaluations: tuple[Artifact, ...]

    def report(self) -> Report:
        """The report, in Markdown."""
        return Report(Ledger(self.folder).read("report.md") or "")

    def samples(self, round: int | None = None, count: int | None = None) -> list[dict[str, Any]]:
        """Held-out articles, each with the summary of the base and that of a round's policy.

        Args:
            round: the round's number; None: the champion's.
            count: how many articles; None: all of them.

        Returns:
            rows of `article_id`, `article`, `questions`, `base` and `policy` (the summaries), `base_score` and
            `policy_score` (rows of the column `scores`), in order of the id.

        Raises:
            UserError: the run has no such round.
        """
        from pipeline.storage.tables import read_table

        number = self.metrics["champion"] if round is None else round
        if not 0 <= number < len(self.evaluations):
            raise UserError(f"round is {number}: {self.folder} has rounds 0 (the base) to {len(self.evaluations) - 1}")
        ledger = Ledger(self.folder)
        base = {row["article_id"]: row for row in read_table(ledger, self.evaluations[0])}
        rows = sorted(read_table(ledger, self.evaluations[number]), key=lambda row: row["article_id"])
        return [
            {name: row[name] for name in ("article_id", "article", "questions")}
            | {
                f"{writer}{suffix}": value
                for writer, written in (("base", base[row["article_id"]]), ("policy", row))
                for suffix, value in (("", written["summaries"][0]["text"]), ("_score", written["scores"][0]))
            }
            for row in rows
            if row["article_id"] in base
        ][:count]


def run(
    config: str | os.PathLike[str] | Config | Mapping[str, Any] | None = None,
    *,
    remake: str | None = None,
    **settings: Any,
) -> Run:
    """Run rounds: `rondo run` from Python. The same call resumes an interrupted run, and returns a finished one.

        run("configs/demo.yaml", run="runs/demo", rounds=2, training={"beta": 0.05})

    Args:
        config: the YAML file, a `Config`, or settings by name; None if `settings` has all of them.
        remake: the address of an artifact to make again, or a pattern.
        settings: settings that replace those of `config`; a dict replaces the named settings of its section.

    Raises:
        UserError: as `run_rounds`, or the settings are wrong.
    """
    return run_rounds(combine_config(config, **settings), remake)


def run_command(path: str, overrides: Sequence[str], remake: str | None) -> None:
    """Run all rounds of a configuration file, and print the results.

    Args:
        path: the YAML file.
        overrides: settings that replace those of the file, such as `training.beta=0.05`.
        remake: as for `run_rounds`.

    Raises:
        UserError: as `run_rounds`, or the settings are wrong.
    """
    run_rounds(load_config(path, overrides), remake)


def run_rounds(settings: Config, remake: str | None) -> Run:
    """Run all rounds, and print the results.

    Args:
        settings: the settings.
        remake: the address of an artifact to make again, or a pattern.

    Raises:
        UserError: as `check_rounds`, or the run was made with other settings, or is in use.
    """
    display = Display()
    ledger = check_rounds(settings, display)
    from pipeline.evaluation.champion import write_champion
    from pipeline.evaluation.report.examples import choose_examples
    from pipeline.evaluation.report.looks import note_look
    from pipeline.evaluation.report.metrics import collect_metrics
    from pipeline.evaluation.report.render import write_report
    from pipeline.evaluation.report.tracked import TrackedRun
    from pipeline.execution.dry_run import DryRun
    from pipeline.execution.runner import open_run
    from pipeline.round import rounds

    # Anything that the run would refuse is refused here, before Ray starts and before any artifact is changed.
    dry_run = DryRun(settings, ledger, remake)
    for _ in rounds(dry_run):
        pass
    check_servers(settings, dry_run.unmade)
    rounds_so_far: list[Round] = []
    title = f"{ledger.root}: {settings.rounds} round{'s' * (settings.rounds > 1)}"
    with (
        open_run(settings, ledger, display, dry_run, title) as runner,
        TrackedRun(settings, ledger, display.warn) as tracked,
    ):
        for current in rounds(runner):
            rounds_so_far[current.number :] = [current]  # the last round comes again, with the test
            if current.test:
                note_look(current, ledger)
            metrics = collect_metrics(rounds_so_far, settings, ledger)
            examples = choose_examples(rounds_so_far, ledger, count=3)
            write_report(metrics, examples, settings, ledger)
            write_champion(rounds_so_far, ledger)
            tracked.send_round(current, rounds_so_far[0], metrics)
        tracked.send_report()
    champion = rounds_so_far[metrics["champion"]].policy
    _show_results(metrics, examples, display)
    display.say(f"\nChampion: {champion.record['model']} ({champion.address})", style="bold")
    display.say(f"Report: {ledger.root}/report.md", style="bold")
    evaluations = tuple(each.results for each in rounds_so_far)
    return Run(ledger.root, metrics, champion.record["model"], evaluations)


def _show_results(metrics: dict[str, Any], examples: Sequence[dict[str, Any]], display: Display) -> None:
    """The tables of the report, its notes, and one article before and after."""
    from pipeline.evaluation.report.render import terminal_tables
    from pipeline.evaluation.report.tables import result_tables

    for table in terminal_tables(*result_tables(metrics)):
        display.say("")
        display.console.print(table)
    display.say("")
    for note in metrics["notes"]:
        display.warn(note)
    for example in examples[:1]:
        for name in ("before", "after"):
            display.say(f"{example['id']} {name}: {example[f'{name}_score']}", style="bold")
            display.say(f"  {one_line(example[name], limit=None)}")
