"""Walks a page such as `round.py`: for each artifact it decides whether to reuse it, to make it, or to refuse.

There are two kinds of executor: a dry run (`dry_run.py`) makes placeholders, and a runner (`runner.py`) makes the
artifacts.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from pipeline.config import Alignment, Config, UserError
from pipeline.execution.recipe import Change, Recipe, compare_recipes, get_setting, stage_recipe
from pipeline.judging.tallies import ANSWERS, UNREAD
from pipeline.stages.base import Stage
from pipeline.storage.ledger import Artifact, Ledger

NOT_MADE = "(to be made)"  # the build id of a placeholder


class Executor(ABC):
    """Gives a page its artifacts.

    Args:
        config: the settings of the run.
        ledger: the run folder.
        remake: the address of an artifact to make again although it is up to date, or a pattern such as `round-*/exam`.

    Attributes:
        visited: the addresses of all artifacts that the page asked for, in order.
    """

    def __init__(self, config: Config | Alignment, ledger: Ledger, remake: str | None = None):
        self.config, self.ledger, self.remake = config, ledger, remake
        self.visited: list[str] = []

    # What a page calls

    def setting(self, name: str) -> Any:
        """A section or a value of the configuration, by its dotted name. None within a section that is None."""
        return get_setting(self.config, name)

    def produce(self, stage: Stage, *inputs: Artifact, into: str = "") -> Artifact:
        """The artifact of a stage: the existing artifact if it is up to date, else a new one.

        Args:
            stage: the stage that makes it.
            inputs: the inputs of the stage.
            into: the folder within the run that will hold the artifact, such as `round-01`.

        Raises:
            UserError: the existing artifact was made by another recipe, and nobody asked to remake it.
        """
        address = address_of(stage, into)
        return self.resolve(stage, inputs, address) or self.make(stage, inputs, address)

    def produce_chain(self, *links: Sequence[Any], into: str = "") -> tuple[Artifact, ...]:
        """Make several tables, each from the table before it.

        Args:
            links: for each table, its stage and its inputs. The inputs of the first link begin with the table to start
                from. The other links leave out the table before, which becomes their first input.
            into: the folder within the run that will hold the tables.
        """
        artifacts: list[Artifact] = []
        for stage, *inputs in links:
            artifacts.append(self.produce(stage, *artifacts[-1:], *inputs, into=into))
        return tuple(artifacts)

    # What the kinds of executor decide

    @abstractmethod
    def make(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact:
        """Make an artifact that is missing or stale."""

    def reuse(self, artifact: Artifact) -> Artifact:
        """Use an existing artifact that is up to date."""
        return artifact

    def refuse(self, stage: Stage, inputs: Sequence[Artifact], address: str, changes: Sequence[Change]) -> Artifact:
        """Stop: an existing artifact was made by another recipe. Raises UserError."""
        lines = "\n".join(f"  {change}" for change in changes)
        state = "made" if self.ledger.find(address) else "begun"
        raise UserError(
            f"{self.ledger.root}/{address} was {state} by another recipe:\n{lines}\n"
            f"Make it and what follows again with --remake {address}, or give the run a new name: run=…"
        )

    # Reuse, make or refuse

    def resolve(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact | None:
        """The existing artifact if it is up to date; None if it must be made.

        Raises:
            UserError: as `produce`.
        """
        self.visited.append(address)
        existing = self.ledger.find(address)
        old_recipe = existing.record["recipe"] if existing else self._interrupted_recipe(stage, inputs, address)
        changes = compare_recipes(old_recipe, self.recipe(stage, inputs), self.config) if old_recipe else []
        if existing and not changes and not self._is_due_for_remake(stage, existing):
            self.check_limits(stage, existing)
            return self.reuse(existing)
        refused = self._changes_to_refuse(changes, inputs)
        # The user asked to make an input again. Then this artifact is made again too, even if its settings changed.
        follows_remake = existing is not None and any(change.is_new_build for change in changes)
        if refused and not follows_remake and not self.is_named_for_remake(address):
            return self.refuse(stage, inputs, address, refused)
        return None

    @staticmethod
    def _changes_to_refuse(changes: Sequence[Change], inputs: Sequence[Artifact]) -> Sequence[Change]:
        """The changes that the user must agree to.

        An input that changed is not refused, because it changed as a result of another change. There is one exception:
        a setting decides which policy a round starts from, so another policy is refused, once it is known which one.
        """
        other_policy_only = all(change.is_other_policy for change in changes)
        all_inputs_known = all(artifact.build != NOT_MADE for artifact in inputs)
        if other_policy_only and all_inputs_known:
            return changes
        return [change for change in changes if change.kind != "inputs"]

    def recipe(self, stage: Stage, inputs: Sequence[Artifact]) -> Recipe:
        """The recipe of a stage by the current settings and inputs."""
        return stage_recipe(stage, inputs, self.config)

    def _interrupted_recipe(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Recipe | None:
        """The recipe of an interrupted artifact that would be resumed; None if there is nothing to resume."""
        can_resume = stage.resumes or (stage.writes and inputs and stage.by_row)
        begun = self.ledger.begun(address) if can_resume else None
        return begun["recipe"] if begun and self.ledger.has_partial_files(address) else None

    # Remakes

    def addresses_to_remake(self) -> list[str]:
        """After a walk, the addresses that `remake` names. Raises UserError if it names none."""
        named = [address for address in self.visited if self.is_named_for_remake(address)]
        if self.remake is not None and not named:
            raise UserError(f"--remake {self.remake}: there is no such artifact; there are {', '.join(self.visited)}")
        return named

    def is_named_for_remake(self, address: str) -> bool:
        """Whether the user asked to make this artifact again."""
        return self.remake is not None and fnmatchcase(address, self.remake)

    def _is_due_for_remake(self, stage: Stage, existing: Artifact) -> bool:
        """Whether to remake an up-to-date artifact. It is remade once, however often the command is interrupted.

        If the new artifact exceeds its limits again, it may be remade again.
        """
        if not self.is_named_for_remake(existing.address):
            return False
        build_to_replace = self.ledger.build_to_replace(existing.address)
        return build_to_replace in (None, existing.build) or self._excess(stage, existing) is not None

    # Limits

    def check_limits(self, stage: Stage, artifact: Artifact) -> None:
        """Raise UserError if more rows were skipped, or more answers unread, than the settings allow."""
        if (message := self._excess(stage, artifact)) is not None:
            raise UserError(message)

    def _excess(self, stage: Stage, artifact: Artifact) -> str | None:
        """The message about the first limit that an artifact exceeds; None if it exceeds none."""
        record = artifact.record
        for name in stage.limits:
            limit = self.setting(name)
            if name.endswith("max_skipped"):
                share, what = sum(record["skipped"].values()) / max(1, record["in"]), "rows were skipped"
            else:
                tally = record["tally"]
                share, what = tally.get(UNREAD, 0) / max(1, tally.get(ANSWERS, 0)), "answers could not be read"
            if share > limit:
                reasons = "".join(f"\n  {count:,} {reason}" for reason, count in record["skipped"].items())
                card = "; rondo judge-card shows how good the judge is" if "judge_engine" in stage.uses else ""
                return (
                    f"{artifact.address}: {share:.1%} of {what}, and {name} allows {limit:.1%}{reasons}\n"
                    f"Look at {artifact.uri}/, remove the cause and --remake {artifact.address}, or go on with "
                    f"{name}=…{card}"
                )
        return None


def address_of(stage: Stage, into: str) -> str:
    """The address of a stage's artifact within the run."""
    return f"{into}/{stage.name}".lstrip("/")
