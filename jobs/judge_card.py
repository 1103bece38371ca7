"""A judge's card alone: asks about some articles, answers from their leads, and tells how far that can be trusted."""

import json
from collections.abc import Sequence

from jobs.play import check_servers
from jobs.submitted import warn_of_what_ray_removes
from pipeline import articles
from pipeline.config import UserError
from pipeline.config.loader import load_config
from pipeline.progress import Display
from pipeline.storage import ledger, run_folder
from pipeline.storage.ledger import Artifact
from pipeline.storage.model_files import hub
from pipeline.survey import Survey

# A judge whose questions no run would use, or whose answers nobody can read, is the very one to have a card of.
_NO_LIMITS = ("questions.max_skipped=1", "scores.max_unread=1")


class _Alone(Survey):
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
    articles.check(settings.articles)
    display = Display()
    warn_of_what_ray_removes(settings, display)
    book = ledger.Ledger(settings.run)
    run_folder.check_command(book, settings)
    from pipeline import card, report
    from pipeline.cluster import connected
    from pipeline.round import audition
    from pipeline.run import Run

    survey = _Alone(settings, book)
    audition(survey)  # what the run would refuse, before Ray starts
    check_servers(settings, survey.unmade)
    with book.lock(display.warn):
        with connected(settings.hardware) as hardware:
            questions, leads = audition(Run(settings.model_copy(update={"hardware": hardware}), book, display))
        found = card.measure(questions.record, [leads.record], [leads.record], settings.judge.options)
        book.write("judge_card.json", json.dumps(found, indent=2) + "\n")
    for table in report.shown(card.lines(found)):
        display.say("")
        display.console.print(table)
    display.say("")
    for note in card.notes(found):
        display.warn(note)
    display.say(f"Card: {book.root}/judge_card.json", style="bold")
