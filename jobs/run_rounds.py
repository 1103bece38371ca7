"""`rondo run`: checks the configuration, locks the run folder, runs the rounds, writes the report."""

from collections.abc import Sequence
from typing import Any

from pipeline.config.messages import one_line
from pipeline.execution.preflight import check_rounds, check_servers
from pipeline.execution.progress import Display


def run_rounds(path: str, overrides: Sequence[str], remake: str | None) -> None:
    """Run all rounds of a configuration.

    Args:
        path: the YAML file.
        overrides: settings that replace those of the file, such as `training.beta=0.05`.
        remake: the address of an artifact to make again, or a pattern.

    Raises:
        UserError: as `check_rounds`, or the run was made with other settings, or is in use.
    """
    display = Display()
    settings, ledger = check_rounds(path, overrides, display)
    from pipeline.evaluation.champion import write_champion
    from pipeline.evaluation.report.examples import choose_examples
    from pipeline.evaluation.report.looks import note_look
    from pipeline.evaluation.report.metrics import collect_metrics
    from pipeline.evaluation.report.render import write_report
    from pipeline.evaluation.round_result import Round
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
    with open_run(settings, ledger, display, dry_run, title) as runner:
        for current in rounds(runner):
            rounds_so_far[current.number :] = [current]  # the last round comes again, with the test
            if current.test:
                note_look(current, ledger)
            metrics = collect_metrics(rounds_so_far, settings, ledger)
            examples = choose_examples(rounds_so_far, ledger, count=3)
            write_report(metrics, examples, settings, ledger)
            write_champion(rounds_so_far, ledger)
    champion = rounds_so_far[metrics["champion"]].policy
    _show_results(metrics, examples, display)
    display.say(f"\nChampion: {champion.record['model']} ({champion.address})", style="bold")
    display.say(f"Report: {ledger.root}/report.md", style="bold")


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
