"""Streams a dataset's rows through a pool of Ray actors, one engine in each.

Ray restarts an engine that dies, and its rows run again; rows that may have killed it run one at a time.
`crash_log.py` keeps a record of such rows.
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
from typing import Any, NoReturn

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from judges.base import Skip
from pipeline.config import UserError
from pipeline.config.hardware import EngineHardware
from pipeline.config.messages import one_line
from pipeline.inference.base import ENGINE_MS, ENGINE_START_MS, ENGINE_STARTS, Engine, EngineFactory
from pipeline.inference.crash_log import crash_log_actor
from pipeline.storage.schema import Outcome, Row, apply_step

EngineStep = Callable[[Engine, list[Row]], Sequence[Outcome]]


@dataclass(frozen=True)
class EnginePool:
    """How to make an engine, how many to run, and on what hardware.

    Attributes:
        make_engine: called once in each actor.
        hardware: replicas, GPUs, CPUs and batch size.
        at_once: batches that an engine runs at the same time, each in its own thread: while the last samples of one
            batch finish, the next batch is already running. Use 1 for an engine that threads cannot share, or that
            does not get faster with more.
    """

    make_engine: EngineFactory
    hardware: EngineHardware
    at_once: int = 2

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
        replicas = self.hardware.replicas
        # One block is one call of one actor: with blocks of one batch, every replica gets work.
        return rows.repartition(target_num_rows_per_block=self.hardware.batch_size).map_batches(
            _EngineActor,
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


class _EngineActor:
    """Holds one engine and runs batches on it. Ray calls it from `at_once` threads."""

    def __init__(
        self,
        make_engine: EngineFactory,
        step: EngineStep,
        writes: tuple[str, ...],
        at_once: int,
        crash_log: Any,
        pool_id: str,
    ):
        self.step, self.writes, self.at_once = step, writes, at_once
        self.crash_log, self.pool_id = crash_log, pool_id
        self.name = f"{pool_id}/{ray.get_runtime_context().get_actor_id()}"
        self.batch_slots = threading.Semaphore(at_once)
        self.exclusive_lock = threading.Lock()  # held by the one thread that collects all the slots
        self.pending_counts: Counter[str] = Counter()  # for the record, not yet attached to an outcome
        self.counts_lock = threading.Lock()
        self.busy_clock = _BusyClock()
        # Raise on the first call, not here: an exception in `__init__` only restarts the actor.
        self.abort_reason: str | None = ray.get(crash_log.start_engine.remote(self.name))
        if self.abort_reason is None:
            self.engine = self._start_engine(make_engine)

    def __call__(self, table: pa.Table) -> pa.Table:
        if self.abort_reason is not None:
            raise UserError(self.abort_reason)
        return apply_step(table, self._serve, self.writes)

    def _start_engine(self, make_engine: EngineFactory) -> Engine:
        started_at = time.monotonic()
        engine = make_engine()
        start_ms = round(1000 * (time.monotonic() - started_at))
        # Recorded apart from ENGINE_MS: a rate measured on few rows would otherwise be mostly the start.
        self.pending_counts.update({ENGINE_STARTS: 1, ENGINE_START_MS: start_ms})
        ray.get(self.crash_log.engine_ready.remote(self.name))
        return engine

    def _serve(self, rows: list[Row]) -> Sequence[Outcome]:
        """Run new rows together, and then rows that an engine did not finish before, one at a time."""
        names = [self._row_name(row) for row in rows]
        outcomes, left_out = self._run_new_rows(names, rows)
        for i, name in enumerate(names):
            if name in left_out:
                give_up_reason = left_out[name]
                outcomes[i] = Skip(give_up_reason) if give_up_reason else self._run_single(name, rows[i])
        return [outcomes[i] for i in range(len(rows))]

    def _row_name(self, row: Row) -> str:
        return f"{self.pool_id}/{row.get('article_id')}/{row.get('writer')}"

    def _run_new_rows(self, names: list[str], rows: list[Row]) -> tuple[dict[int, Outcome], dict[str, str | None]]:
        """Run the rows that no engine has tried before.

        Returns:
            Their outcomes by index in `rows`; and the other rows, as `CrashLog.begin_batch` returns them.
        """
        with self.batch_slots:
            left_out = ray.get(self.crash_log.begin_batch.remote(names))
            new = [i for i, name in enumerate(names) if name not in left_out]
            if not new:
                return {}, left_out
            outcomes = self._run([names[i] for i in new], [rows[i] for i in new])
        return dict(zip(new, outcomes, strict=True)), left_out

    def _run_single(self, name: str, row: Row) -> Outcome:
        """Run one row while the engine runs no other, so that this row is to blame if the engine dies."""
        with self._all_batch_slots():
            ray.get(self.crash_log.begin_single.remote(name))
            (outcome,) = self._run([name], [row])
        return outcome

    @contextmanager
    def _all_batch_slots(self) -> Iterator[None]:
        with self.exclusive_lock:  # two threads that each held a part of the slots would wait for ever
            for _ in range(self.at_once):
                self.batch_slots.acquire()
            try:
                yield
            finally:
                self.batch_slots.release(self.at_once)

    def _run(self, names: list[str], rows: list[Row]) -> Sequence[Outcome]:
        with self.counts_lock:
            self.busy_clock.enter()
        try:
            outcomes = self.step(self.engine, rows)
        except (RuntimeError, MemoryError) as error:
            self._die(names, error)
        self.crash_log.rows_done.remote(self.name, names)
        self._attach_counts(outcomes)
        return outcomes

    def _die(self, names: list[str], error: BaseException) -> NoReturn:
        """End this process and all that the engine holds. Ray restarts the actor and retries its calls."""
        traceback.print_exc()
        sys.stderr.flush()
        ray.get(self.crash_log.rows_failed.remote(self.name, names, _reason(error)))
        os._exit(1)

    def _attach_counts(self, outcomes: Sequence[Outcome]) -> None:
        """Add the pending counts to the tally of the first outcome that is not skipped, if there is one."""
        first_kept = next((outcome for outcome in outcomes if not isinstance(outcome, Skip)), None)
        with self.counts_lock:
            self.pending_counts[ENGINE_MS] += self.busy_clock.leave()
            if first_kept is not None:
                first_kept["tally"] = {**first_kept.get("tally", {}), **self.pending_counts}
                self.pending_counts.clear()


class _BusyClock:
    """Measures how long at least one thread has been using the engine. The caller must hold a lock."""

    def __init__(self) -> None:
        self.threads, self.counted_until = 0, 0.0

    def enter(self) -> None:
        if not self.threads:
            self.counted_until = time.monotonic()
        self.threads += 1

    def leave(self) -> int:
        """Milliseconds since another thread left or, if none has, since the first thread entered."""
        self.threads -= 1
        counted_from, self.counted_until = self.counted_until, time.monotonic()
        return round(1000 * (self.counted_until - counted_from))


def _reason(error: BaseException) -> str:
    error = error.__cause__ or error
    # Cut without "…": skipped rows are counted by this text, and records on disk hold it in this form.
    return f"{type(error).__name__}: {one_line(str(error))[:80]}".rstrip(": ")
