"""A judge's card alone: asks about some articles, answers from their leads, and tells how far that can be trusted."""

import json
from collections.abc import Sequence

from jobs.run_rounds import check_servers
from jobs.submitted import warn_of_what_ray_removes
from pipeline.config import UserError
from pipeline.config.loader import load_config
from pipeline.execution.dry_run import DryRun
from pipeline.execution.progress import Display
from pipeline.stages import articles
from pipeline.storage import ledger, run_folder
from pipeline.storage.ledger import Artifact
from pipeline.storage.model_files import hub

# A judge whose questions no run would use, or whose answers nobody can read, is the very one to have a card of.
_NO_LIMITS = ("questions.max_skipped=1", "scores.max_unread=1")


class _Alone(DryRun):
    def refuse(self, address: str, changed: list[str]) -> Artifact:
        """A card is no reason to make anything of a run again."""
        raise UserError(
            f"{self.ledger.root}/{address} was made by another recipe ({'; '.join(changed)}): give the card a folder "
            f"of its own, such as run={self.ledger.root}-card"
        )


def examine(path: str, overrides: Sequence[str]) -> None:
    """Make the card of a configuration's judge, print it, and write judge_card.json into the run's folder.

    Raises:
        UserError: see the modules that check: reading, articles, models, ledger, folder, run.
    """
    settings = load_config(path, [*overrides, *_NO_LIMITS])
    if settings.judge.model and not settings.judge.served:
        hub.check_model("judge.model", settings.judge.model)
    articles.check_corpus(settings.articles)
    display = Display()
    warn_of_what_ray_removes(settings, display)
    book = ledger.Ledger(settings.run)
    run_folder.check_command(book, settings)
    from pipeline.evaluation import judge_card
    from pipeline.evaluation.report.render import terminal_tables
    from pipeline.execution.ray_cluster import connected_ray
    from pipeline.execution.runner import Runner
    from pipeline.round import audition

    survey = _Alone(settings, book)
    audition(survey)  # what the run would refuse, before Ray starts
    check_servers(settings, survey.unmade)
    with book.lock(display.warn):
        with connected_ray(settings.hardware) as hardware:
            questions, leads = audition(Runner(settings.model_copy(update={"hardware": hardware}), book, display))
        found = judge_card.measure_card(questions.record, [leads.record], [leads.record], settings.judge.options)
        book.write("judge_card.json", json.dumps(found, indent=2) + "\n")
    for table in terminal_tables(judge_card.card_lines(found)):
        display.say("")
        display.console.print(table)
    display.say("")
    for note in judge_card.card_notes(found):
        display.warn(note)
    display.say(f"Card: {book.root}/judge_card.json", style="bold")
