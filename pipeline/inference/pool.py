"""Streams a dataset's rows through engines that a stage has borrowed.

The engines are Ray actors that live longer than the stage (`actors/`). What Ray Data runs is a client, which hands
each batch to the engine with the least to do. Ray restarts an engine that dies, and its rows run again; rows that may
have killed it run one at a time.
"""

import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray import cloudpickle
from ray.data import ActorPoolStrategy, Dataset

from pipeline.config import UserError
from pipeline.config.hardware import EngineHardware
from pipeline.inference.actors.engine_actor import Loan
from pipeline.inference.actors.residents import EngineActors, ResidentPools
from pipeline.inference.base import EngineFactory, EngineStep

_POLL_SECONDS = 0.1  # between two looks for an engine that has started, or for room for one more


@dataclass(frozen=True)
class EnginePool:
    """How to make an engine, how many to run, and on what hardware.

    Attributes:
        make_engine: called once in each actor. It may have a method `update(engine)`, which turns an engine that stayed
            from an earlier stage into the one that it would make, and returns False if it cannot.
        hardware: replicas, GPUs, CPUs and batch size.
        at_once: batches that an engine runs at the same time, each in its own thread: while the last samples of one
            batch finish, the next batch is already running. Use 1 for an engine that threads cannot share, or that
            does not get faster with more.
        role: the name of the engines. Stages with equal roles, hardware and kinds of engine share the same actors.
        residents: starts the actors, and keeps them for later stages until its `end`. By default, they are this pool's.
    """

    make_engine: EngineFactory
    hardware: EngineHardware
    at_once: int = 2
    role: str = "engine"
    residents: ResidentPools = field(default_factory=ResidentPools)

    def start_ahead(self) -> None:
        """Start the engines for a later `map`, if they fit beside all others. Returns at once."""
        self.residents.start_ahead(self.role, self.make_engine, self.hardware, self.at_once)

    def map(self, rows: Dataset, step: EngineStep, writes: Sequence[str]) -> Dataset:
        """Stream rows through the engines and add columns to them.

        Rows that are already skipped pass through unchanged. A row is skipped if an engine died `crash_log.TRIES` times
        while it ran this row.

        An engine counts as dead when its process ends, or when `step` raises a RuntimeError (torch's and CUDA's errors,
        `EngineDied`) or a MemoryError. Any other exception from `step` aborts the dataset's run. So does an engine that
        keeps dying before it finishes a batch.

        Args:
            rows: a dataset of articles.
            step: gets an engine and a batch of rows, and returns one outcome per row.
            writes: names of the columns that `step` adds.
        """
        actors = self.residents.borrow(self.role, self.make_engine, self.hardware, self.at_once)
        loan = Loan(uuid.uuid4().hex, cloudpickle.dumps(self.make_engine), cloudpickle.dumps((step, tuple(writes))))
        # The engines start while Ray Data starts its own processes, which takes seconds.
        starting = [(actor.prepare.remote(loan), actor) for actor in actors.handles]
        batches_at_once = self.hardware.replicas.max * self.at_once
        # One block is one call of one engine: with blocks of one batch, every replica gets work.
        return rows.repartition(target_num_rows_per_block=self.hardware.batch_size).map_batches(
            _Client,
            fn_constructor_args=(loan, actors, starting, self.hardware.replicas.max),
            batch_format="pyarrow",
            batch_size=self.hardware.batch_size,
            compute=ActorPoolStrategy(
                size=1, max_concurrent_calls_per_actor=batches_at_once, enable_true_multi_threading=True
            ),
            num_cpus=0,  # it only waits
        )


class _Client:
    """Hands batches to engines. Ray Data calls it from one thread for each batch that may run at the same time.

    If rows wait, it starts more engines, up to `max_engines`. These end with the client.

    Args:
        loan: what the stage wants of its engines.
        actors: the engines, and how to start more.
        starting: for each engine the call of `prepare` that returns when it is ready, and the engine.
        max_engines: how many engines there may be.
    """

    def __init__(self, loan: Loan, actors: EngineActors, starting: Sequence[tuple[Any, Any]], max_engines: int):
        self.loan, self.actors, self.max_engines = loan, actors, max_engines
        self.changed = threading.Condition()  # guards all that follows
        self.batches: dict[Any, int] = {}  # by engine that is ready: the batches that it has
        self.starting = dict(starting)
        self.next_look = 0.0

    def __call__(self, table: pa.Table) -> pa.Table:
        engine = self._take_engine()
        try:
            return _get(engine.serve.remote(self.loan, table))
        finally:
            with self.changed:
                self.batches[engine] -= 1
                self.changed.notify()

    def _take_engine(self) -> Any:
        """Wait for an engine with room for a batch, and note that it has one more."""
        with self.changed:
            while True:
                self._look_for_engines()
                free = [engine for engine, count in self.batches.items() if count < self.actors.at_once]
                if free:
                    engine = min(free, key=self.batches.__getitem__)
                    self.batches[engine] += 1
                    return engine
                self.changed.wait(timeout=_POLL_SECONDS)

    def _look_for_engines(self) -> None:
        """Note which engines are ready by now, and start one more if all are busy and there is room for it."""
        if self.starting:
            ready, _ = ray.wait(list(self.starting), timeout=0)
            for reference in ready:
                _get(reference)
                self.batches[self.starting.pop(reference)] = 0
        is_full = all(count >= self.actors.at_once for count in self.batches.values())
        can_grow = not self.starting and is_full and len(self.batches) < self.max_engines
        if can_grow and time.monotonic() >= self.next_look:
            self.next_look = time.monotonic() + 1.0
            if self.actors.has_room():
                engine, _ = self.actors.start_one()
                self.starting[engine.prepare.remote(self.loan)] = engine


def _get(reference: ray.ObjectRef) -> Any:
    """The result of a call. A UserError of the engine is raised as it is, any other error with its traceback."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
