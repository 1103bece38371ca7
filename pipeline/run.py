"""A run: makes each artifact at its address, or finds it made, or refuses to serve a stale one.

Between the page that says what is made (`round.py`, `alignment.py`) and the folder that keeps it (`ledger.py`): the
recipe of a stage, what it is given, what its record says. Left out: how rows are stored (`tables.py`) and what the
stages do.
"""

import re
import time
import uuid
from collections.abc import Sequence
from typing import Any

from pipeline import tables
from pipeline.config import Alignment, Config, UserError
from pipeline.contents import fingerprint
from pipeline.equipment import equip
from pipeline.ledger import Artifact, Ledger, differences, now
from pipeline.progress import Display, summary
from pipeline.stage import Stage
from pipeline.versions import commit, packages

UNMADE = "(to be made)"  # as a build: of what a survey finds is still to be made
_LIMITS = ("max_skipped", "max_unread", "check_articles", "max_difference")


class Survey:
    """Goes over a page such as `round.py` and makes nothing: says of each artifact what a run would do with it.

    Args:
        config: what decides the result, and the hardware.
        ledger: the run's folder.
        remake: the address of an artifact to make again although it is there.

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
        address = f"{into}/{stage.name}".lstrip("/")
        self.seen.append(address)
        found = self.ledger.find(address)
        changed = differences(found.record["recipe"], self.recipe(stage, inputs)) if found else []
        if found and not changed and not self._asked(address, found):
            self.check_limits(stage, found)
            return self.reuse(found)
        # Inputs differ alone where one was made again, which somebody asked for: what follows is made again unasked.
        # Not so where nothing but another policy is begun with: that is a setting's doing, once it is known which one.
        chosen = all(map(_other_policy, changed)) and all(artifact.build != UNMADE for artifact in inputs)
        settings = changed if chosen else [line for line in changed if not line.startswith("inputs.")]
        if settings and address != self.remake:
            return self.refuse(address, settings)
        return self.make(stage, inputs, address)

    def reuse(self, found: Artifact) -> Artifact:
        return found

    def refuse(self, address: str, changed: list[str]) -> Artifact:
        lines = "\n".join(f"  {line}" for line in changed)
        raise UserError(
            f"{self.ledger.root}/{address} was made by another recipe:\n{lines}\n"
            f"Make it and what follows again with --remake {address}, or give the run a new name: run=…"
        )

    def make(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact:
        self.unmade[address] = stage
        # What follows sees a build that no record names, and so is to be made too.
        return Artifact(self.ledger.root, address, {"build": UNMADE, "kept": 1})

    def check_remake(self) -> None:
        """After a walk: raises UserError if no artifact has the address that is to be remade."""
        if self.remake is not None and self.remake not in self.seen:
            raise UserError(f"--remake {self.remake}: there is no such artifact; there are {', '.join(self.seen)}")

    def _asked(self, address: str, found: Artifact) -> bool:
        """Whether it is to be remade although it is current: once, however often the command is cut off."""
        return address == self.remake and self.ledger.to_remake(address) in (None, found.build)

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
                raise UserError(
                    f"{artifact.address}: {share:.1%} of {what}, and {name} allows {limit:.1%}{reasons}\n"
                    f"Look at {artifact.uri}/, mend the cause and --remake {artifact.address}, or go on with {name}=…"
                )


class Run(Survey):
    """What `play` makes things with. Arguments as of `Survey`, and `display`, what the person sees."""

    def __init__(self, config: Config | Alignment, ledger: Ledger, display: Display, remake: str | None = None):
        super().__init__(config, ledger, remake)
        self.display = display

    def reuse(self, found: Artifact) -> Artifact:
        self.display.line(found.address, f"reused  {summary(found.record)}", style="dim")
        return found

    def make(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact:
        recipe = self.recipe(stage, inputs)
        if not (stage.resumes and self.ledger.begun(address) == recipe):
            self.ledger.clear(address)
            self.ledger.begin(address, recipe)
        build, began, uri = uuid.uuid4().hex[:12], time.monotonic(), f"{self.ledger.root}/{address}"
        total = next((_count(artifact, stage.split) for artifact in inputs if "kept" in artifact.record), None)
        files = not stage.writes
        with self.display.working(address, None if files else total, "steps" if files else "rows") as tick:
            # Of no rows come no rows, and no engine need start to say so.
            given = [] if total == 0 else [self._give(stage, artifact) for artifact in inputs]
            settings = {name.rsplit(".", 1)[-1]: self.setting(name) for name in stage.settings}
            equipment = equip(stage.uses, self.config, inputs, self.ledger.root, address, tick)
            made: Any = () if total == 0 else stage(*given, **settings, **equipment)
            said: dict[str, Any] = made if files else tables.write(made, uri, tick.advance)
        record = {
            "build": build,
            "recipe": recipe,
            **said,
            "made": now(),
            "seconds": round(time.monotonic() - began, 2),
            "writer": next((artifact.build for artifact in inputs if "model" in artifact.record), None),
            "judge": self.config.judge.model or self.config.judge.kind if isinstance(self.config, Config) else None,
            "packages": packages(),
            "commit": commit(),
        }
        artifact = self.ledger.finish(address, record)
        self.display.line(address, summary(record))
        self.check_limits(stage, artifact)
        return artifact

    def _give(self, stage: Stage, artifact: Artifact) -> Any:
        """A table's rows as a dataset; of a policy what the stage knows it by."""
        if not stage.writes:
            return artifact
        if "model" in artifact.record:
            return artifact.record["digest"] if stage.name == "references" else artifact.build
        return tables.rows(self.ledger, artifact, stage.split)


def _other_policy(line: str) -> bool:
    """Whether a difference between recipes is that the one or the other has no policy of this address."""
    return re.match(r"inputs\.\S*policy: (was null|.*, now null$)", line) is not None


def _count(table: Artifact, split: str | None) -> int:
    return table.record["kept"] if split is None else table.record["tally"].get(split, 0)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _without_limits(value: Any) -> Any:
    """A limit stops a run and changes no row: raising one must not make anything stale."""
    return {k: v for k, v in value.items() if k not in _LIMITS} if isinstance(value, dict) else value
