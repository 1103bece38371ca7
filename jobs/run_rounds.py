"""Play a configuration: check it, take the run's lock, start Ray if anything is to be made, play the rounds, report."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from jobs.plan import installed, refuse
from jobs.submitted import warn_of_what_ray_removes
from pipeline.config import Config
from pipeline.config.loader import load_config
from pipeline.execution.progress import Display
from pipeline.judging import preference
from pipeline.stages import articles
from pipeline.stages.base import Stage
from pipeline.storage import ledger, run_folder
from pipeline.storage.model_files import hub
from pipeline.training import tracking

if TYPE_CHECKING:
    from pipeline.execution.dry_run import DryRun


def check(path: str, overrides: Sequence[str], display: Display) -> tuple[Config, ledger.Ledger]:
    """All that can be wrong with the settings, found before Ray starts.

    Returns:
        the settings, and the run's folder.

    Raises:
        UserError: see the modules that check: reading, articles, policy, ledger, folder.
    """
    settings = load_config(path, overrides)
    hub.check_model("policy.model", settings.policy.model)
    hub.check_lora(settings.policy.model, settings.training.lora)
    for name, judge in (("judge", settings.judge), ("second_judge", settings.second_judge)):
        if judge and judge.model and not judge.served:
            hub.check_model(f"{name}.model", judge.model)
    articles.check_corpus(settings.articles)
    preference.check_preference(settings.pairs, settings.judge.questions, settings.judge.logprobs)
    tracking.check_trackers(settings.report_to)
    refuse(settings, installed())
    warn_of_what_ray_removes(settings, display)
    book = ledger.Ledger(settings.run)
    run_folder.check_command(book, settings)
    return settings, book


def run_rounds(path: str, overrides: Sequence[str], remake: str | None) -> None:
    """Play all rounds of a configuration. Raises UserError as `check` does, and for a run that is made otherwise."""
    display = Display()
    settings, book = check(path, overrides, display)
    survey = _survey(settings, book, remake)
    check_servers(settings, survey.unmade)
    to_remake = survey.to_remake()
    with book.lock(display.warn):
        run_folder.write_settings(book, settings)
        display.say(f"{book.root}: {settings.rounds} round{'s' * (settings.rounds > 1)}", style="bold")
        from pipeline.execution.ray_cluster import connected_ray

        ray = connected_ray(settings.hardware) if survey.unmade else nullcontext(settings.hardware)
        with book.remaking(to_remake), ray as hardware:
            _play(settings.model_copy(update={"hardware": hardware}), book, display, remake)


def _survey(settings: Config, book: ledger.Ledger, remake: str | None) -> "DryRun":
    """Refuse what a run would refuse, before Ray starts and before anything of an earlier run is touched."""
    from pipeline.execution.dry_run import DryRun
    from pipeline.round import rounds

    survey = DryRun(settings, book, remake)
    for _ in rounds(survey):
        pass
    return survey


def check_servers(settings: Config, unmade: Mapping[str, Stage]) -> None:
    """See that each server that has something to do serves: a run that is finished needs none."""
    from pipeline.inference.server_check import check_server

    for name, engine in (("judge", "judge_engine"), ("second_judge", "second_engine")):
        judge = getattr(settings, name)
        if judge and judge.served and any(engine in stage.uses for stage in unmade.values()):
            check_server(name, judge.model, judge.served, settings.hardware, judge.logprobs)
    for name, other in settings.compare.items():
        if f"compare/{name}/evaluation" in unmade:
            check_server(f"compare.{name}", other.model, other, settings.hardware)


def _play(settings: Config, book: ledger.Ledger, display: Display, remake: str | None) -> None:
    from pipeline.evaluation.champion import write_champion
    from pipeline.evaluation.report.examples import choose_examples
    from pipeline.evaluation.report.metrics import collect_metrics
    from pipeline.evaluation.report.render import result_tables, terminal_tables, write_report
    from pipeline.evaluation.round_result import Round
    from pipeline.execution.runner import Runner
    from pipeline.round import rounds

    played: list[Round] = []
    for current in rounds(Runner(settings, book, display, remake)):
        played.append(current)
        metrics = collect_metrics(played, settings, book)
        examples = choose_examples(played, book, count=3)
        write_report(metrics, examples, settings, book)
        write_champion(played, book)
    for table in terminal_tables(*result_tables(metrics)):
        display.say("")
        display.console.print(table)
    display.say("")
    for note in metrics["notes"]:
        display.warn(note)
    if examples:
        example = examples[0]
        for name in ("before", "after"):
            score = example[f"{name}_score"]
            display.say(f"{example['id']} {name}: {score['correct']} right, {score['words']} words", style="bold")
            display.say(f"  {' '.join(example[name].split())}")
    champion = played[metrics["champion"]].policy
    display.say(f"\nChampion: {champion.record['model']} ({champion.address})", style="bold")
    display.say(f"Report: {book.root}/report.md", style="bold")
