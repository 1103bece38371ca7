"""Walks a page and makes nothing: finds which artifacts are up to date, which are stale and which are missing."""

from collections.abc import Sequence

from pipeline.config import Alignment, Config
from pipeline.execution.executor import NOT_MADE, Executor
from pipeline.stages.base import Stage
from pipeline.storage.ledger import Artifact, Ledger


class DryRun(Executor):
    """Finds what a run would make. Arguments as for `Executor`.

    Attributes:
        unmade: after a walk, the stages that would run, by the address of their artifact.
    """

    def __init__(self, config: Config | Alignment, ledger: Ledger, remake: str | None = None):
        super().__init__(config, ledger, remake)
        self.unmade: dict[str, Stage] = {}

    def make(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact:
        self.unmade[address] = stage
        # No record names this build, so artifacts with the placeholder as input count as unmade too.
        return Artifact(self.ledger.root, address, {"build": NOT_MADE, "kept": 1})
