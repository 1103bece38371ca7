"""`rondo judge-card`: tries a judge without a policy, and shows how far its scores can be trusted."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import Config, UserError
from pipeline.config.loader import combine_config, load_config
from pipeline.execution.dry_run import DryRun
from pipeline.execution.preflight import (
    check_engines,
    check_judges,
    check_servers,
    open_run_folder,
    warn_of_removed_folders,
)
from pipeline.execution.progress import Display
from pipeline.execution.recipe import Change
from pipeline.stages.articles import check_corpus
from pipeline.stages.base import Stage
from pipeline.storage.ledger import Artifact

# A card is most useful for a judge with bad questions, or with answers that cannot be parsed. So the limits are off.
_NO_LIMITS = {"questions": {"max_skipped": 1}, "scores": {"max_unread": 1}}


class _CardDryRun(DryRun):
    """A dry run that suggests another folder, not --remake: a card is no reason to remake a run's artifacts."""

    def refuse(self, stage: Stage, inputs: Sequence[Artifact], address: str, changes: Sequence[Change]) -> Artifact:
        raise UserError(
            f"{self.ledger.root}/{address} was made by another recipe ({'; '.join(map(str, changes))}): give the card "
            f"a folder of its own, such as run={self.ledger.root}-card"
        )


def make_judge_card(path: str, overrides: Sequence[str]) -> None:
    """Make the card of a configuration's judge, print it, and write judge_card.json into the run folder.

    Raises:
        UserError: as `judge_card`.
    """
    _make_card(load_config(path, overrides))


def judge_card(
    config: str | os.PathLike[str] | Config | Mapping[str, Any] | None = None, **settings: Any
) -> dict[str, Any]:
    """Try a judge without a policy: `rondo judge-card` from Python.

        judge_card("configs/demo.yaml", run="runs/card", judge={"questions": 7})

    Args:
        config: as for `run`.
        settings: as for `run`.

    Returns:
        the content of judge_card.json: costs, biases, and how far the score can be trusted.

    Raises:
        UserError: the settings are wrong, or name a corpus, a model, a server or a folder that cannot be used.
    """
    return _make_card(combine_config(config, **settings))


def _make_card(settings: Config) -> dict[str, Any]:
    settings = combine_config(settings, **_NO_LIMITS)
    check_judges(settings, ["judge"])
    check_engines(settings, ["judge"])
    check_corpus(settings.articles)
    display = Display()
    warn_of_removed_folders(settings, display)
    ledger = open_run_folder(settings)
    from pipeline.evaluation.judge_card import card_lines, card_notes, measure_card, measure_members
    from pipeline.evaluation.reliability import measure_table
    from pipeline.evaluation.report.render import terminal_tables
    from pipeline.execution.ray_cluster import connected_ray
    from pipeline.execution.runner import Runner
    from pipeline.round import judge_only

    dry_run = _CardDryRun(settings, ledger)
    judge_only(dry_run)  # anything that the run would refuse is refused here, before Ray starts
    check_servers(settings, dry_run.unmade)
    with ledger.lock(display.warn):
        with connected_ray(settings.hardware) as hardware:
            on_hardware = settings.model_copy(update={"hardware": hardware})
            with Runner(on_hardware, ledger, display, unmade=dry_run.unmade) as runner:
                questions, extracts = judge_only(runner)
        reliability = measure_table(extracts, settings, ledger, start=1)  # the lead is no random extract
        records = questions.record, [extracts.record], [extracts.record]
        card = measure_card(*records, settings.judge.options, reliability) | measure_members(*records, settings.judge)
        ledger.write("judge_card.json", json.dumps(card, indent=2) + "\n")
    for table in terminal_tables(card_lines(card)):
        display.say("")
        display.console.print(table)
    display.say("")
    for note in card_notes(card):
        display.warn(note)
    display.say(f"Card: {ledger.root}/judge_card.json", style="bold")
    return card
