"""Engines under Ray Data: a pool of actors, one engine each, through which a dataset's rows stream.

An engine that dies is started again by Ray, and its rows are done again: those that may have killed it one by one.
Left out: what is noted of them (`attempts.py`).
"""

import os
import sys
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from judges.base import Skip
from pipeline.config import UserError
from pipeline.config.hardware import EngineHardware
from pipeline.inference.base import Engine, EngineFactory
from pipeline.inference.crash_log import crash_log_actor
from pipeline.storage.schema import Outcome, Row, apply_step

EngineStep = Callable[[Engine, list[Row]], Sequence[Outcome]]


@dataclass(frozen=True)
class EnginePool:
    """How to make an engine, and how many of them to run where.

    Attributes:
        make_engine: called once in each actor; it and `hardware` are all that travels there.
        hardware: replicas, GPUs, CPUs and batch size.
        at_once: batches that an engine is given at a time, each by a thread of its own: while the last samples of one
            end, the next one's are under way. 1 for what threads cannot share, or gain nothing by sharing.
    """

    make_engine: EngineFactory
    hardware: EngineHardware
    at_once: int = 2

    def map(self, rows: Dataset, step: EngineStep, writes: Sequence[str]) -> Dataset:
        """Stream rows through the engines: `step` is given an engine and some rows, and says what to add to each.

        Rows that are set aside pass by unseen. A row that an engine had three times when it died is set aside.

        An engine has died when its process has, or when `step` raises a RuntimeError (torch's and CUDA's errors,
        `EngineDied`) or a MemoryError. Whatever else `step` raises ends the dataset's run, as does an engine that dies
        over and over and finishes nothing.
        """
        replicas = self.hardware.replicas
        # One block is one call of one actor: blocks of a batch each let every replica work.
        return rows.repartition(target_num_rows_per_block=self.hardware.batch_size).map_batches(
            _Actor,
            fn_constructor_args=(
                self.make_engine,
                step,
                tuple(writes),
                self.at_once,
                crash_log_actor(),
                uuid.uuid4().hex,
            ),
            batch_format="pyarrow",
            batch_size=self.hardware.batch_size,
            compute=ActorPoolStrategy(
                min_size=replicas.min,
                max_size=replicas.max,
                max_concurrent_calls_per_actor=self.at_once,
                enable_true_multi_threading=True,
            ),
            num_cpus=self.hardware.cpus_per_replica,
            num_gpus=self.hardware.gpus_per_replica,
        )


class _Actor:
    def __init__(
        self, make_engine: EngineFactory, step: EngineStep, writes: tuple[str, ...], at_once: int, notes: Any, pool: str
    ):
        self.step, self.writes, self.at_once, self.notes, self.pool = step, writes, at_once, notes, pool
        self.me = f"{pool}/{ray.get_runtime_context().get_actor_id()}"
        self.room = threading.Semaphore(at_once)
        self.taking_all_of_it = threading.Lock()
        # Said at the first call, where it is this row's error and ends the run. Here it would be one more dead actor.
        self.hopeless: str | None = ray.get(notes.start.remote(self.me))
        self.untold: Counter[str] = Counter()
        self.telling = threading.Lock()
        self.clock = _Clock()
        if not self.hopeless:
            began = time.monotonic()
            self.engine = make_engine()
            # Told with the first rows: a rate measured on few of them would else be that of the start.
            self.untold.update({"engine starts": 1, "engine start ms": round(1000 * (time.monotonic() - began))})
            ray.get(notes.ready.remote(self.me))

    def __call__(self, table: pa.Table) -> pa.Table:
        if self.hopeless:
            raise UserError(self.hopeless)
        return apply_step(table, self._serve, self.writes)

    def _serve(self, rows: list[Row]) -> Sequence[Outcome]:
        names = [f"{self.pool}/{row.get('article_id')}/{row.get('writer')}" for row in rows]
        outcomes: dict[int, Outcome] = {}
        with self.room:
            before = ray.get(self.notes.together.remote(names))
            fresh = [i for i, name in enumerate(names) if name not in before]
            if fresh:
                outcomes |= zip(fresh, self._run([names[i] for i in fresh], [rows[i] for i in fresh]), strict=True)
        for i, name in enumerate(names):
            if name in before:
                given_up = before[name]
                outcomes[i] = Skip(given_up) if given_up else self._run_alone(name, rows[i])
        return [outcomes[i] for i in range(len(rows))]

    def _run_alone(self, name: str, row: Row) -> Outcome:
        with self._all_the_room():
            ray.get(self.notes.alone.remote(name))
            (outcome,) = self._run([name], [row])
        return outcome

    @contextmanager
    def _all_the_room(self) -> Iterator[None]:
        """The engine to ourselves, so that it is this row's doing if it dies."""
        with self.taking_all_of_it:
            for _ in range(self.at_once):
                self.room.acquire()
            try:
                yield
            finally:
                self.room.release(self.at_once)

    def _run(self, names: list[str], rows: list[Row]) -> Sequence[Outcome]:
        with self.telling:
            self.clock.enter()
        try:
            outcomes = self.step(self.engine, rows)
        except (RuntimeError, MemoryError) as error:
            traceback.print_exc()
            sys.stderr.flush()
            ray.get(self.notes.failed.remote(self.me, names, _short(error)))
            os._exit(1)  # with the engine and whatever it holds: Ray starts this actor again, and retries its calls
        self.notes.done.remote(self.me, names)
        heir = next((outcome for outcome in outcomes if not isinstance(outcome, Skip)), None)
        with self.telling:
            self.untold["engine ms"] += self.clock.leave()
            if heir is not None:
                heir["tally"] = {**heir.get("tally", {}), **self.untold}
                self.untold.clear()
        return outcomes


class _Clock:
    """How long an engine has had something to do, whichever of its threads brought it. For one thread at a time."""

    def __init__(self) -> None:
        self.inside, self.seen = 0, 0.0

    def enter(self) -> None:
        if not self.inside:
            self.seen = time.monotonic()
        self.inside += 1

    def leave(self) -> int:
        """Milliseconds since another thread left, or since the first came."""
        self.inside -= 1
        before, self.seen = self.seen, time.monotonic()
        return round(1000 * (self.seen - before))


def _short(error: BaseException) -> str:
    error = error.__cause__ or error
    return f"{type(error).__name__}: {' '.join(str(error).split())[:80]}".rstrip(": ")
