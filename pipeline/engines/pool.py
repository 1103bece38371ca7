"""Engines under Ray Data: a pool of actors, one engine each, through which a dataset's rows stream."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
from ray.data import ActorPoolStrategy, Dataset

from judges.base import Skip
from pipeline.engines.base import Engine, EngineFactory
from pipeline.hardware import EngineHardware
from pipeline.rows import Outcome, Row, apply

Step = Callable[[Engine, list[Row]], Sequence[Outcome]]


@dataclass(frozen=True)
class Pool:
    """How to make an engine, and how many of them to run where.

    Attributes:
        make_engine: called once in each actor; it and `hardware` are all that travels there.
        hardware: replicas, GPUs, CPUs and batch size.
    """

    make_engine: EngineFactory
    hardware: EngineHardware

    def map(self, rows: Dataset, step: Step, writes: Sequence[str]) -> Dataset:
        """Stream rows through the engines: `step` is given an engine and some rows, and says what to add to each.

        Rows that are set aside pass by unseen.
        """
        # One block is one call of one actor: blocks of a batch each let every replica work.
        return rows.repartition(target_num_rows_per_block=self.hardware.batch_size).map_batches(
            _Actor,
            fn_constructor_args=(self.make_engine, step, tuple(writes)),
            batch_format="pyarrow",
            batch_size=self.hardware.batch_size,
            compute=ActorPoolStrategy(size=self.hardware.replicas),
            num_cpus=self.hardware.cpus_per_replica,
            num_gpus=self.hardware.gpus_per_replica,
        )


class _Actor:
    """An engine, and how long it took to start: a rate measured on few rows would else be that of the start."""

    def __init__(self, make_engine: EngineFactory, step: Step, writes: tuple[str, ...]):
        began = time.monotonic()
        self.step, self.writes = partial(step, make_engine()), writes
        self.untold = {"engine starts": 1, "engine start ms": round(1000 * (time.monotonic() - began))}

    def __call__(self, table: pa.Table) -> pa.Table:
        return apply(table, self._step, self.writes)

    def _step(self, rows: list[Row]) -> Sequence[Outcome]:
        """The outcomes; the first that can carry a tally tells of the start too."""
        outcomes = self.step(rows)
        for outcome in outcomes:
            if self.untold and not isinstance(outcome, Skip):
                outcome["tally"] = {**outcome.get("tally", {}), **self.untold}
                self.untold = {}
        return outcomes
