"""Measures the throughput of each kind of stage from the records of earlier runs: rows, tokens and seconds.

Only records of the same models count. Without such a record there is no rate, and none is guessed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from pipeline.config import Config, UserError
from pipeline.config.hardware import Hardware
from pipeline.execution.progress import start_seconds
from pipeline.inference.base import TOKENS_CACHED, TOKENS_IN, TOKENS_OUT
from pipeline.stages.base import JUDGE_ENGINES, Stage
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import CONFIG, read_raw_settings

Kind = tuple[str, frozenset[str]]  # the name of a stage, and the settings that it depends on

STEPS = "steps"  # in a tally: the steps of a training

# The settings of a model that change the throughput of a stage.
_MODEL_SETTINGS = ("model", "dtype", "kind", "served", "members", "thinking")


@dataclass
class StageThroughput:
    """The records of one kind of stage, added up.

    Attributes:
        records: the number of records.
        rows: rows that came in.
        kept: rows that were kept.
        tally: the sums of the tallies, including tokens.
        seconds: the sum of the seconds that the stages took.
        start_seconds: the part of `seconds` before engines and workers were ready.
        start_known: some record says how long its start took. It is 0 if the engines had stayed from earlier stages.
        hardware: the hardware of the run that was added last.
    """

    records: int = 0
    rows: int = 0
    kept: int = 0
    tally: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    start_seconds: float = 0.0
    start_known: bool = False
    hardware: Hardware = field(default_factory=Hardware)

    def add(self, record: Mapping[str, Any], hardware: Hardware) -> None:
        """Add a record."""
        self.records += 1
        self.rows += record.get("in", 0)
        self.kept += record.get("kept", 0)
        self.tally.update({name: count for name, count in record.get("tally", {}).items() if isinstance(count, int)})
        self.hardware = hardware
        seconds, tables = _seconds_of_table(record)
        self.seconds += seconds
        if training := record.get("training"):
            self.tally.update({TOKENS_IN: training["tokens"], STEPS: training["steps"]})
        if (start := start_seconds(record)) is not None:
            self.start_known = True
            # Where two engines of a stage take turns, one start stays in the rate.
            self.start_seconds += min(seconds, start / tables)

    @property
    def share_kept(self) -> float:
        return self.kept / max(1, self.rows)

    def each(self, count: str, per: str | None = None) -> float | None:
        """A count of the tally per row that came in, or per unit of another count `per`. None if it is unknown."""
        divisor = self.tally[per] if per else self.rows
        return self.tally[count] / divisor if divisor and count in self.tally else None

    @property
    def work(self) -> float:
        """The tokens that were computed; for a stage without tokens, rows."""
        return computed_tokens(self.tally) or self.rows

    def time(self, work: float, width: float) -> float:
        """The seconds that an amount of work takes.

        Args:
            work: tokens, or rows, as in the property `work`.
            width: the number of engines divided by the number that was measured.
        """
        start = self.start_seconds / self.records
        return start + (self.seconds - self.start_seconds) * work / max(1, self.work) / width


def _seconds_of_table(record: Mapping[str, Any]) -> tuple[float, int]:
    """The seconds that a table would have taken alone and uninterrupted, and the number of tables in its pipeline."""
    # An interrupted table has the seconds of its last attempt, which made only the rows that were missing.
    scale = record["in"] / (record["in"] - record.get("resumed", 0)) if "in" in record else 1.0
    # Tables of one pipeline each have the pipeline's seconds. The table of pairs uses no model.
    tables = 1 + sum(not address.endswith("/pairs") for address in record.get("together_with", ()))
    return scale * record["seconds"] / tables, tables


def computed_tokens(tally: Mapping[str, float]) -> float:
    """The tokens that are computed: those read and not found in a cache, and those written."""
    return tally.get(TOKENS_IN, 0) - tally.get(TOKENS_CACHED, 0) + tally.get(TOKENS_OUT, 0)


class Throughput:
    """Measured stages by kind.

    Args:
        ledgers: run folders. One without settings has no records yet.
        config: the planned run. Records of other models are left out.

    Attributes:
        measured: the throughput of each kind of stage.
        used: the run folders whose records count.
    """

    def __init__(self, ledgers: Iterable[Ledger], config: Config):
        self.measured: dict[Kind, StageThroughput] = {}
        self.used: list[str] = []
        for ledger in ledgers:
            settings = read_raw_settings(ledger) or {}
            if isinstance(settings.get("pairs"), dict) and self._add_run(ledger, settings, config):
                self.used.append(ledger.root)

    def of(self, stage: Stage) -> StageThroughput | None:
        """The measured throughput of a stage; None if it was not measured."""
        return self.measured.get((stage.name, frozenset(stage.settings)))

    def _add_run(self, ledger: Ledger, settings: Mapping[str, Any], planned: Config) -> int:
        """Add the records of a run. Returns how many were added."""
        try:
            hardware, added = Hardware.model_validate(settings.get("hardware", {})), 0
        except ValidationError as error:
            raise UserError(
                f"{ledger.root}/{CONFIG} has hardware settings that this version refuses: {error}"
            ) from None
        for record in (artifact.record for artifact in ledger.artifacts()):
            recipe = record["recipe"]
            if not isinstance(recipe.get("settings"), dict) or not _is_timed(record):
                continue
            sections = _model_sections(recipe)
            if all(_is_same_model(settings.get(section), getattr(planned, section)) for section in sections):
                kind = recipe["stage"], frozenset(recipe["settings"])
                self.measured.setdefault(kind, StageThroughput()).add(record, hardware)
                added += 1
        return added


def _is_timed(record: Mapping[str, Any]) -> bool:
    """Whether the seconds of a record measure anything: at least one row was made in its last attempt."""
    return "seconds" in record and record.get("in", -1) != record.get("resumed", 0)


def _model_sections(recipe: Mapping[str, Any]) -> set[str]:
    """The sections of the configuration whose models change a stage's throughput."""
    sections = {name.split(".")[0] for name in recipe["settings"]} & {"policy", *JUDGE_ENGINES}
    has_policy_input = any(address.endswith("/policy") for address in recipe["inputs"])
    return sections | ({"policy"} if has_policy_input else set())


def _is_same_model(measured: Mapping[str, Any] | None, planned: Any) -> bool:
    if measured is None:
        return True
    settings = planned.model_dump(mode="json") if planned is not None else {}
    # An older run lacks settings that came later, and has none of what they name.
    return all((measured.get(name) or None) == (settings.get(name) or None) for name in _MODEL_SETTINGS)


def open_measured_run(folder: str) -> Ledger:
    """Open a run whose records give rates. Raises UserError if the folder holds no run."""
    ledger = Ledger(folder)
    if ledger.read(CONFIG) is None:
        raise UserError(f"--rates {folder}: the folder holds no run, because it has no {CONFIG}")
    return ledger
