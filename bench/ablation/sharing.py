"""Copies finished artifacts of one run into the folder of a new run that would make them from the same recipe.

Nothing here knows which setting belongs to which stage: a dry run of the new settings over the old folder finds out.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Config
from pipeline.execution.dry_run import DryRun
from pipeline.execution.executor import Executor
from pipeline.execution.recipe import Change
from pipeline.round import rounds
from pipeline.stages.base import Stage
from pipeline.storage.ledger import RECORD, Artifact, Ledger


class _OtherSettings(DryRun):
    """A dry run over a folder with other settings. What these settings would make stale counts as unmade."""

    def refuse(self, stage: Stage, inputs: Sequence[Artifact], address: str, changes: Sequence[Change]) -> Artifact:
        return self.make(stage, inputs, address)


def shareable(config: Config, donor: Path) -> list[str]:
    """The addresses of the finished artifacts in `donor` that a run with these settings would reuse.

    Raises:
        UserError: a record or a table in `donor` is damaged, or exceeds a limit of the settings.
    """
    dry_run: Executor = _OtherSettings(config, Ledger(str(donor)))
    for _ in rounds(dry_run):
        pass
    assert isinstance(dry_run, _OtherSettings)
    return [address for address in dict.fromkeys(dry_run.visited) if address not in dry_run.unmade]


def share(config: Config, donor: Path, run: Path) -> list[str]:
    """Begin a run folder with the artifacts of `donor` that its settings allow. A folder that exists stays as it is.

    Files are hard links where the file system has them, because Rondo replaces files and never changes them.

    Returns:
        the addresses that were copied.
    """
    if run.exists():
        return []
    addresses = shareable(config, donor)
    begun = run.with_name(f"{run.name}.begun")  # a copy that was interrupted must not look like a run
    shutil.rmtree(begun, ignore_errors=True)
    begun.mkdir(parents=True)
    for address in addresses:
        shutil.copytree(donor / address, begun / address, copy_function=_link_or_copy, ignore=_keep_record_apart)
        record = json.loads((donor / address / RECORD).read_text(encoding="utf-8"))
        own_model = os.path.abspath(donor / address)
        if record.get("model") == own_model:  # a trained policy: its record names the folder that it lies in
            record["model"] = os.path.abspath(run / address)
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (begun / address / RECORD).write_text(text, encoding="utf-8")
    begun.rename(run)
    return addresses


def _keep_record_apart(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == RECORD]


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
