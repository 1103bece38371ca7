"""A run: makes each artifact at its address, or finds it made, or refuses to serve a stale one.

Between the page that says what is played (`round.py`) and the folder that keeps it (`ledger.py`): the recipe of a
stage, what it is given, what its record says. Left out: how rows are stored (`tables.py`) and what the stages do.
"""

import time
import uuid
from collections.abc import Iterable
from typing import Any

from pipeline import tables
from pipeline.config import Config, UserError
from pipeline.equipment import equip
from pipeline.ledger import Artifact, Ledger, differences, now
from pipeline.progress import Display, summary
from pipeline.stage import Stage
from pipeline.versions import commit, packages

STAGES = ("articles", "questions", "summaries", "scores", "pairs", "references", "policy", "evaluation")
LIMITS = ("max_skipped", "max_unread")


class Run:
    """Everything that `play` needs to make things.

    Args:
        config: what decides the result, and the hardware.
        ledger: the run's folder.
        display: what the person sees.
        remake: a stage to make again although it is there, with what follows from it.
    """

    def __init__(self, config: Config, ledger: Ledger, display: Display, remake: str | None = None):
        self.config, self.ledger, self.display, self.remake = config, ledger, display, remake
        self.remaking = False

    def produce(self, stage: Stage, *inputs: Artifact, into: str = "") -> Artifact:
        """The artifact of a stage and its inputs: found, or made.

        Raises:
            UserError: one is there by another recipe, or too many rows were skipped or unread.
        """
        address = f"{into}/{stage.name}".lstrip("/")
        recipe = self.recipe(stage, inputs)
        found = self.ledger.find(address)
        self.remaking = self.remaking or stage.name == self.remake
        if found is not None:
            changed = differences(found.record["recipe"], recipe)
            if not changed and stage.name != self.remake:
                self.display.line(address, f"reused  {summary(found.record)}", style="dim")
                return found
            if changed and not self.remaking:
                raise UserError(
                    f"{self.ledger.root}/{address} was made by another recipe:\n"
                    + "\n".join(f"  {line}" for line in changed)
                    + f"\nMake it and what follows again with --remake {stage.name}, or give the run a new name: run=…"
                )
        return self._make(stage, inputs, address, recipe)

    def check_remake(self) -> None:
        """Raises UserError if there is no such stage to remake."""
        if self.remake is not None and self.remake not in STAGES:
            raise UserError(f"--remake {self.remake}: there is no such stage; there are {', '.join(STAGES)}")

    def recipe(self, stage: Stage, inputs: Iterable[Artifact]) -> dict[str, Any]:
        """What decides a stage's result. Inputs are named by build: making one again is not making it equal."""
        return {
            "stage": stage.name,
            "version": stage.version,
            "settings": {name: _without_limits(_plain(self._setting(name))) for name in stage.settings},
            "inputs": {artifact.address: artifact.build for artifact in inputs},
        }

    def _make(self, stage: Stage, inputs: tuple[Artifact, ...], address: str, recipe: dict[str, Any]) -> Artifact:
        self.ledger.clear(address)
        build, began = uuid.uuid4().hex[:12], time.monotonic()
        total = next((_count(artifact, stage.split) for artifact in inputs if "kept" in artifact.record), None)
        files = not stage.writes
        with self.display.working(address, None if files else total, "steps" if files else "rows") as tick:
            # Of no rows come no rows, and no engine need start to say so.
            given = [] if total == 0 else [self._give(stage, artifact) for artifact in inputs]
            settings = {name.rsplit(".", 1)[-1]: self._setting(name) for name in stage.settings}
            equipment = equip(stage.uses, self.config, inputs, f"{self.ledger.root}/{address}", tick)
            made: Any = () if total == 0 else stage(*given, **settings, **equipment)
            said: dict[str, Any] = made if files else tables.write(made, f"{self.ledger.root}/{address}", tick.advance)
        record = {
            "build": build,
            "recipe": recipe,
            **said,
            "made": now(),
            "seconds": round(time.monotonic() - began, 2),
            "writer": next((artifact.build for artifact in inputs if "model" in artifact.record), None),
            "judge": self.config.judge.model or self.config.judge.kind,
            "packages": packages(),
            "commit": commit(),
        }
        self._check_limits(stage, address, record)
        artifact = self.ledger.finish(address, record)
        self.display.line(address, summary(record))
        return artifact

    def _setting(self, name: str) -> Any:
        value: Any = self.config
        for part in name.split("."):
            value = getattr(value, part)
        return value

    # What a stage is given

    def _give(self, stage: Stage, artifact: Artifact) -> Any:
        """A table's rows as a dataset; of a policy what the stage knows it by."""
        if not stage.writes:
            return artifact
        if "model" in artifact.record:
            return artifact.record["digest"] if stage.name == "references" else artifact.build
        return tables.rows(self.ledger, artifact.address, stage.split)

    def _check_limits(self, stage: Stage, address: str, record: dict[str, Any]) -> None:
        for name in stage.limits:
            limit = self._setting(name)
            if name.endswith("max_skipped"):
                share, what = sum(record["skipped"].values()) / max(1, record["in"]), "rows were skipped"
            else:
                tally = record["tally"]
                share, what = tally.get("unread", 0) / max(1, tally.get("answers", 0)), "answers could not be read"
            if share > limit:
                reasons = "".join(f"\n  {count:,} {reason}" for reason, count in record["skipped"].items())
                raise UserError(
                    f"{address}: {share:.1%} of {what}, and {name} allows {limit:.1%}{reasons}\n"
                    f"Look at {self.ledger.root}/{address}/, mend the cause, or set {name}="
                )


def _count(table: Artifact, split: str | None) -> int:
    return table.record["kept"] if split is None else table.record["tally"].get(split, 0)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _without_limits(value: Any) -> Any:
    """A limit stops a run and changes no row: raising one must not make anything stale."""
    return {k: v for k, v in value.items() if k not in LIMITS} if isinstance(value, dict) else value
