"""Rates measured by earlier runs: what each stage kept, asked, wrote and took, summed over the records of its kind.

A record counts only if it is of the models that are planned with; nothing is guessed where there is none. Left out:
what is to be made (`plan.py`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from pipeline.config import Config, UserError
from pipeline.config.hardware import Hardware
from pipeline.stages.base import Stage
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import CONFIG

Kind = tuple[str, frozenset[str]]


@dataclass
class StageThroughput:
    """Records of one kind of stage, added up.

    Attributes:
        records: how many.
        rows: that came in; kept: that were kept.
        tally: of all of them, tokens among it.
        seconds: of all of them; started: those of them before engines and workers were ready.
        hardware: of the run that was last added.
    """

    records: int = 0
    rows: int = 0
    kept: int = 0
    tally: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    started: float = 0.0
    hardware: Hardware = field(default_factory=Hardware)

    def add(self, record: Mapping[str, Any], hardware: Hardware) -> None:
        self.records += 1
        self.rows += record.get("in", 0)
        self.kept += record.get("kept", 0)
        self.tally.update({k: v for k, v in record.get("tally", {}).items() if isinstance(v, int)})
        self.hardware = hardware
        # A table that was cut off has the seconds of its last making, in which it got the rows that were missing.
        whole = record["in"] / (record["in"] - record.get("resumed", 0)) if "in" in record else 1.0
        # Tables that were made as one pipeline have its seconds each: together they took them once. Pairs ask nobody.
        tables = 1 + sum(not address.endswith("/pairs") for address in record.get("together_with", ()))
        seconds = whole * record["seconds"] / tables
        self.seconds += seconds
        if training := record.get("training"):
            self.tally.update(tokens_in=training["tokens"], steps=training["steps"])
            self.started += max(0.0, seconds - training["seconds"])
        elif starts := record.get("tally", {}).get("engine starts"):
            # Replicas start together; where a stage has two engines that take turns, one start is left in the rate.
            self.started += min(seconds, record["tally"]["engine start ms"] / 1000 / starts / tables)

    @property
    def share_kept(self) -> float:
        return self.kept / max(1, self.rows)

    def each(self, what: str, per: str | None = None) -> float | None:
        """A count of the tally for each row that came in, or for each one of another count; None where unknown."""
        below = self.tally[per] if per else self.rows
        return self.tally[what] / below if below and what in self.tally else None

    @property
    def work(self) -> float:
        """Tokens that were computed; of a stage without tokens, rows."""
        return computed_tokens(self.tally) or self.rows

    def time(self, amount: float, width: float) -> float:
        """Seconds for so much work, where `width` is how many times as many engines there are."""
        start = self.started / self.records
        return start + (self.seconds - self.started) * amount / max(1, self.work) / width


def computed_tokens(tally: Mapping[str, float]) -> float:
    """Tokens that are computed: read but not found in a cache, or written."""
    return tally.get("tokens_in", 0) - tally.get("tokens_cached", 0) + tally.get("tokens_out", 0)


class Throughput:
    """Measured stages by kind: a stage's name, and the settings that it depends on.

    Args:
        ledgers: run folders; one without config.yaml has no records yet.
        config: that is planned; records of other models are left out.
    """

    def __init__(self, ledgers: Iterable[Ledger], config: Config):
        self.measured: dict[Kind, StageThroughput] = {}
        self.used: list[str] = []
        for ledger in ledgers:
            text = ledger.read(CONFIG)
            theirs = yaml.safe_load(text) if text else {}
            if isinstance(theirs.get("pairs"), dict) and self._add(ledger, theirs, config):
                self.used.append(ledger.root)

    def of(self, stage: Stage) -> StageThroughput | None:
        """What is known of a stage; None where nothing is."""
        return self.measured.get((stage.name, frozenset(stage.settings)))

    def _add(self, ledger: Ledger, theirs: dict[str, Any], ours: Config) -> int:
        hardware, added = Hardware.model_validate(theirs.get("hardware", {})), 0
        for record in records(ledger):
            recipe = record["recipe"]
            timed = "seconds" in record and record.get("in", -1) != record.get("resumed", 0)
            if timed and all(
                theirs.get(who) is None or _same(theirs[who], getattr(ours, who)) for who in _asked(recipe)
            ):
                kind = recipe["stage"], frozenset(recipe["settings"])
                self.measured.setdefault(kind, StageThroughput()).add(record, hardware)
                added += 1
        return added


def _asked(recipe: Mapping[str, Any]) -> set[str]:
    """The models on which a stage's rate depends, as the configuration's sections are called."""
    names = {name.split(".")[0] for name in recipe["settings"]} & {"policy", "judge", "second_judge"}
    return names | ({"policy"} if recipe["stage"] in ("policy", "references") else set())


def _same(theirs: Mapping[str, Any], ours: Any) -> bool:
    given = ours.model_dump(mode="json") if ours is not None else {}
    return all(theirs.get(name) == given.get(name) for name in ("model", "dtype", "kind", "served"))


def records(ledger: Ledger) -> list[dict[str, Any]]:
    """All finished records of a run.

    Raises:
        UserError: one is damaged.
    """
    return [
        artifact.record
        for artifact in ledger.artifacts()
        if isinstance(artifact.record["recipe"].get("settings"), dict)
    ]


def open_measured_run(folder: str) -> Ledger:
    """The ledger of a run that is to be measured by. Raises UserError if there is no run."""
    ledger = Ledger(folder)
    if ledger.read(CONFIG) is None:
        raise UserError(f"--rates {folder}: there is no run, that is no {CONFIG} in it")
    return ledger
