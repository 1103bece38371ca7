"""A survey: goes over the page that says what is made, and finds what is there, what is stale and what is not made.

Between the page (`round.py`, `alignment.py`) and the folder that keeps it (`ledger.py`): the recipe of a stage, and
what follows from it. Left out: making anything (`run.py`).
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from pipeline.config import Alignment, Config, UserError
from pipeline.execution.recipe import fingerprint
from pipeline.stages.base import Stage
from pipeline.storage.ledger import Artifact, Ledger, differences

UNMADE = "(to be made)"  # as a build: of what a survey finds is still to be made
_LIMITS = ("max_skipped", "max_unread", "check_articles", "max_difference")


class DryRun:
    """Goes over a page such as `round.py` and makes nothing: says of each artifact what a run would do with it.

    Args:
        config: what decides the result, and the hardware.
        ledger: the run's folder.
        remake: the address of an artifact to make again although it is there, or a pattern such as `round-*/exam`.

    Attributes:
        unmade: after a walk, what is to be made, by address.
    """

    def __init__(self, config: Config | Alignment, ledger: Ledger, remake: str | None = None):
        self.config, self.ledger, self.remake = config, ledger, remake
        self.seen: list[str] = []
        self.unmade: dict[str, Stage] = {}

    def produce(self, stage: Stage, *inputs: Artifact, into: str = "") -> Artifact:
        """The artifact if it is made and current; else a placeholder for one that is to be made.

        Raises:
            UserError: it is there by another recipe, and nobody asked to remake it.
        """
        address = address_of(stage, into)
        return self.look(stage, inputs, address) or self.make(stage, inputs, address)

    def chain(self, *links: Sequence[Any], into: str = "") -> tuple[Artifact, ...]:
        """Tables of which each is made from the one before.

        Args:
            links: each a stage and what it is given. The first's inputs begin with the table that it is made from;
                the others' are what is given beside the table before.
        """
        made: list[Artifact] = []
        for stage, *inputs in links:
            made.append(self.produce(stage, *made[-1:], *inputs, into=into))
        return tuple(made)

    def look(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact | None:
        """What is there, if it is current; None if it is to be made. Raises UserError as `produce`."""
        self.seen.append(address)
        found = self.ledger.find(address)
        was = found.record["recipe"] if found else self._begun(stage, inputs, address)
        changed = differences(was, self.recipe(stage, inputs)) if was else []
        if found and not changed and not self._asked(stage, found):
            self.check_limits(stage, found)
            return self.reuse(found)
        # An input that was made again somebody asked for: what follows is made again unasked, whatever its settings.
        # Not so where nothing but another policy is begun with: that is a setting's doing, once it is known which one.
        chosen = all(map(_other_policy, changed)) and all(artifact.build != UNMADE for artifact in inputs)
        settings = changed if chosen else [line for line in changed if not line.startswith("inputs.")]
        if settings and not (found and any(map(_remade, changed))) and not self._named(address):
            return self.refuse(address, settings)
        return None

    def reuse(self, found: Artifact) -> Artifact:
        return found

    def refuse(self, address: str, changed: list[str]) -> Artifact:
        lines = "\n".join(f"  {line}" for line in changed)
        done = "made" if self.ledger.find(address) else "begun"
        raise UserError(
            f"{self.ledger.root}/{address} was {done} by another recipe:\n{lines}\n"
            f"Make it and what follows again with --remake {address}, or give the run a new name: run=…"
        )

    def make(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact:
        self.unmade[address] = stage
        # What follows sees a build that no record names, and so is to be made too.
        return Artifact(self.ledger.root, address, {"build": UNMADE, "kept": 1})

    def to_remake(self) -> list[str]:
        """After a walk: the addresses that are to be remade. Raises UserError if a remake was asked for and is none."""
        named = [address for address in self.seen if self._named(address)]
        if self.remake is not None and not named:
            raise UserError(f"--remake {self.remake}: there is no such artifact; there are {', '.join(self.seen)}")
        return named

    def _named(self, address: str) -> bool:
        return self.remake is not None and fnmatchcase(address, self.remake)

    def _asked(self, stage: Stage, found: Artifact) -> bool:
        """Whether it is to be remade although it is current: once, however often the command is cut off.

        One that was remade and is past its limits again may be remade again.
        """
        replaces = self.ledger.to_remake(found.address)
        return self._named(found.address) and (replaces in (None, found.build) or bool(self._excess(stage, found)))

    def _begun(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> dict[str, Any] | None:
        """The recipe of an unfinished artifact that would be gone on with; None where there is nothing to lose."""
        goes_on = stage.resumes or (stage.writes and inputs and not stage.whole)
        begun = self.ledger.begun(address) if goes_on else None
        return begun["recipe"] if begun and self.ledger.has_more(address) else None

    def recipe(self, stage: Stage, inputs: Sequence[Artifact]) -> dict[str, Any]:
        """What decides a stage's result. Inputs are named by build: making one again is not making it equal."""
        return {
            "stage": stage.name,
            "version": stage.version,
            "settings": {name: _without_limits(_plain(self.setting(name))) for name in stage.settings},
            "contents": {name: fingerprint(self.setting(name)) for name in stage.contents},
            "inputs": {artifact.address: artifact.build for artifact in inputs},
        }

    def setting(self, name: str) -> Any:
        """A section or a value of the configuration, by its dotted name; None of a section that is None."""
        value: Any = self.config
        for part in name.split("."):
            if value is not None:
                value = value[part] if isinstance(value, dict) else getattr(value, part)
        return value

    def check_limits(self, stage: Stage, artifact: Artifact) -> None:
        """Raises UserError if more rows were skipped, or answers unread, than the settings allow."""
        if excess := self._excess(stage, artifact):
            raise UserError(excess)

    def _excess(self, stage: Stage, artifact: Artifact) -> str | None:
        record = artifact.record
        for name in stage.limits:
            limit = self.setting(name)
            if name.endswith("max_skipped"):
                share, what = sum(record["skipped"].values()) / max(1, record["in"]), "rows were skipped"
            else:
                tally = record["tally"]
                share, what = tally.get("unread", 0) / max(1, tally.get("answers", 0)), "answers could not be read"
            if share > limit:
                reasons = "".join(f"\n  {count:,} {reason}" for reason, count in record["skipped"].items())
                card = "; rondo judge-card says how good the judge is" if "judge_engine" in stage.uses else ""
                return (
                    f"{artifact.address}: {share:.1%} of {what}, and {name} allows {limit:.1%}{reasons}\n"
                    f"Look at {artifact.uri}/, mend the cause and --remake {artifact.address}, or go on with {name}=…"
                    f"{card}"
                )
        return None


def address_of(stage: Stage, into: str) -> str:
    return f"{into}/{stage.name}".lstrip("/")


def _other_policy(line: str) -> bool:
    """Whether a difference between recipes is that the one or the other has no policy of this address."""
    return re.match(r"inputs\.\S*policy: (was null|.*, now null$)", line) is not None


def _remade(line: str) -> bool:
    """Whether a difference between recipes is another build of an input that both have."""
    return re.match(r'inputs\.\S+: was "[^"]*", now "[^"]*"$', line) is not None


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _without_limits(value: Any) -> Any:
    """A limit stops a run and changes no row: raising one must not make anything stale."""
    return {k: v for k, v in value.items() if k not in _LIMITS} if isinstance(value, dict) else value
