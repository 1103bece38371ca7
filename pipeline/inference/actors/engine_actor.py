"""A Ray actor that holds one engine, and runs batches on it for the stage that has borrowed it.

The actor outlives the stage. The next stage may want another engine: then the factory changes the engine in place if it
can, such as by loading new weights, and the actor makes another engine if it cannot. Ray restarts an actor whose engine
dies and repeats its calls, and every call says which engine it needs.
"""

import gc
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import pyarrow as pa
import ray
from ray import cloudpickle

from judges.base import Skip
from pipeline.config import UserError
from pipeline.config.messages import one_line
from pipeline.inference.base import (
    ENGINE_LOADS,
    ENGINE_MS,
    ENGINE_START_MS,
    ENGINE_STARTS,
    EngineDied,
    EngineFactory,
    EngineStep,
)
from pipeline.storage.schema import Outcome, Row, apply_step

# New objects between two garbage collections. Python's default of 700 costs a fifth of the time that vLLM's or torch's
# imports take: they make a million objects, and none of them is garbage.
_GC_THRESHOLD = 50_000
_KEPT_WORK = 8  # loans whose work stays in memory: those of the stages that run now, and more


@dataclass(frozen=True)
class Loan:
    """What a stage wants of the engines that it borrows.

    Attributes:
        loan_id: unique, for the crash log.
        make_engine: the pickled factory of the engine.
        work: the pickled step, and the names of the columns that it adds.
    """

    loan_id: str
    make_engine: bytes
    work: bytes


@dataclass
class _Work:
    """The work of a loan in this process: the step may keep state from batch to batch."""

    step: EngineStep
    writes: tuple[str, ...]
    counts: Counter[str] = field(default_factory=Counter)  # for the record, not yet attached to an outcome


class EngineActor:
    """Holds one engine. Ray calls it from several threads, `at_once` of which may use the engine.

    Args:
        at_once: batches that the engine runs at the same time.
        crash_log: the handle of the driver's crash log.
    """

    def __init__(self, at_once: int, crash_log: Any):
        gc.set_threshold(_GC_THRESHOLD)
        self.at_once, self.crash_log = at_once, crash_log
        self.actor_id = ray.get_runtime_context().get_actor_id()
        self.batch_slots = threading.Semaphore(at_once)
        self.exclusive_lock = threading.Lock()  # held by the one thread that collects all the slots
        self.counts_lock = threading.Lock()
        self.busy_clock = _BusyClock()
        self.work: dict[str, _Work] = {}
        self.engine: Any = None
        self.is_asleep = False
        self.factory: EngineFactory | None = None  # of the engine
        self.pickled_factory: bytes | None = None  # None: there is no engine, or it sleeps

    def prepare(self, loan: Loan) -> None:
        """Make the engine that a loan needs, or load its weights. Returns when the engine can run batches."""
        with self._slot(loan):
            pass

    def serve(self, loan: Loan, table: pa.Table) -> pa.Table:
        """Run a batch of rows. Raises UserError if the engine died too often."""
        work = self._work_of(loan)
        return apply_step(table, lambda rows: self._run_rows(loan, work, rows), work.writes)

    def sleep(self) -> None:
        """Give up the engine's GPU memory, once no batch runs. An engine that cannot sleep is dropped.

        The process stays, with all that it has imported.
        """
        with self._all_batch_slots():
            self.pickled_factory = None
            if not hasattr(self.engine, "sleep"):
                self._drop_engine()
            elif not self.is_asleep:
                self.engine.sleep()
                self.is_asleep = True

    def _work_of(self, loan: Loan) -> _Work:
        with self.counts_lock:
            if loan.loan_id not in self.work:
                for loan_id in list(self.work)[:-_KEPT_WORK]:
                    del self.work[loan_id]
                self.work[loan.loan_id] = _Work(*cloudpickle.loads(loan.work))
            return self.work[loan.loan_id]

    # The engine

    @contextmanager
    def _slot(self, loan: Loan) -> Iterator[None]:
        """Hold one of the slots for batches, with the loan's engine. The engine cannot change meanwhile."""
        while True:
            with self.batch_slots:
                if self.pickled_factory == loan.make_engine:
                    yield
                    return
            with self._all_batch_slots():
                self._change_engine(loan)

    @contextmanager
    def _all_batch_slots(self) -> Iterator[None]:
        with self.exclusive_lock:  # two threads that each held a part of the slots would wait for ever
            for _ in range(self.at_once):
                self.batch_slots.acquire()
            try:
                yield
            finally:
                self.batch_slots.release(self.at_once)

    def _change_engine(self, loan: Loan) -> None:
        """Make the loan's engine the engine of this actor. The caller must hold all slots."""
        if self.pickled_factory == loan.make_engine:
            return
        factory, started_at = cloudpickle.loads(loan.make_engine), time.monotonic()
        if self.engine is not None and not self.is_asleep and _are_equal(factory, self.factory):
            self.pickled_factory = loan.make_engine
            return
        self.pickled_factory = None  # until the change has succeeded
        if self.engine is not None and (hasattr(factory, "update") or _are_equal(factory, self.factory)):
            self._update_engine(factory, loan)
            counts = {ENGINE_LOADS: 1}
        else:
            self._drop_engine()
            self._make_engine(factory, loan)
            counts = {ENGINE_STARTS: 1}
        self.factory, self.pickled_factory = factory, loan.make_engine
        # Recorded apart from ENGINE_MS: a rate measured on few rows would otherwise be mostly the start.
        start_ms = round(1000 * (time.monotonic() - started_at))
        work = self._work_of(loan)
        with self.counts_lock:
            work.counts.update({**counts, ENGINE_START_MS: start_ms})

    def _update_engine(self, factory: Any, loan: Loan) -> None:
        """Turn this actor's engine into the one that the factory would make."""
        old_factory, self.factory = self.factory, None  # if this fails, nobody knows which weights the engine holds
        try:
            if self.is_asleep:
                self.engine.wake_up()
                self.is_asleep = False
            if not _are_equal(factory, old_factory):
                factory.update(self.engine)
        except (RuntimeError, MemoryError) as error:
            self._die(self._actor_name(loan), [], error)

    def _make_engine(self, factory: EngineFactory, loan: Loan) -> None:
        name = self._actor_name(loan)
        give_up_reason = ray.get(self.crash_log.start_engine.remote(name))
        if give_up_reason is not None:
            raise UserError(give_up_reason)
        try:
            self.engine = factory()
        except EngineDied as error:
            self._die(name, [], error)
        ray.get(self.crash_log.engine_ready.remote(name))

    def _drop_engine(self) -> None:
        if self.engine is None:
            return
        if hasattr(self.engine, "close"):  # else what it holds outside of this process would be there for a while
            self.engine.close()
        self.engine, self.factory, self.is_asleep = None, None, False
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _actor_name(self, loan: Loan) -> str:
        return f"{loan.loan_id}/{self.actor_id}"

    # Rows

    def _run_rows(self, loan: Loan, work: _Work, rows: list[Row]) -> Sequence[Outcome]:
        """Run new rows together, and then rows that an engine did not finish before, one at a time."""
        names = [f"{loan.loan_id}/{row.get('article_id')}/{row.get('writer')}" for row in rows]
        outcomes, left_out = self._run_new_rows(loan, work, names, rows)
        for i, name in enumerate(names):
            if name in left_out:
                give_up_reason = left_out[name]
                outcomes[i] = Skip(give_up_reason) if give_up_reason else self._run_single(loan, work, name, rows[i])
        return [outcomes[i] for i in range(len(rows))]

    def _run_new_rows(
        self, loan: Loan, work: _Work, names: list[str], rows: list[Row]
    ) -> tuple[dict[int, Outcome], dict[str, str | None]]:
        """Run the rows that no engine has tried before.

        Returns:
            Their outcomes by index in `rows`; and the other rows, as `CrashLog.begin_batch` returns them.
        """
        with self._slot(loan):
            left_out = ray.get(self.crash_log.begin_batch.remote(names))
            new = [i for i, name in enumerate(names) if name not in left_out]
            if not new:
                return {}, left_out
            outcomes = self._run(loan, work, [names[i] for i in new], [rows[i] for i in new])
        return dict(zip(new, outcomes, strict=True)), left_out

    def _run_single(self, loan: Loan, work: _Work, name: str, row: Row) -> Outcome:
        """Run one row while the engine runs no other, so that this row is to blame if the engine dies."""
        with self._all_batch_slots():
            self._change_engine(loan)
            ray.get(self.crash_log.begin_single.remote(name))
            (outcome,) = self._run(loan, work, [name], [row])
        return outcome

    def _run(self, loan: Loan, work: _Work, names: list[str], rows: list[Row]) -> Sequence[Outcome]:
        with self.counts_lock:
            self.busy_clock.enter()
        try:
            outcomes = work.step(self.engine, rows)
        except (RuntimeError, MemoryError) as error:
            self._die(self._actor_name(loan), names, error)
        except BaseException:
            with self.counts_lock:
                self.busy_clock.leave()
            raise
        self.crash_log.rows_done.remote(self._actor_name(loan), names)
        self._attach_counts(work, outcomes)
        return outcomes

    def _die(self, actor: str, names: list[str], error: BaseException) -> NoReturn:
        """End this process and all that the engine holds. Ray restarts the actor and repeats its calls."""
        traceback.print_exc()
        sys.stderr.flush()
        ray.get(self.crash_log.rows_failed.remote(actor, names, _reason(error)))
        os._exit(1)

    def _attach_counts(self, work: _Work, outcomes: Sequence[Outcome]) -> None:
        """Add the pending counts to the tally of the first outcome that is not skipped, if there is one."""
        first_kept = next((outcome for outcome in outcomes if not isinstance(outcome, Skip)), None)
        with self.counts_lock:
            work.counts[ENGINE_MS] += self.busy_clock.leave()
            if first_kept is not None:
                first_kept["tally"] = {**first_kept.get("tally", {}), **work.counts}
                work.counts.clear()


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


def _are_equal(factory: Any, other: Any) -> bool:
    """Whether two factories make the same engine. Partial functions are equal if all their parts are."""
    if isinstance(factory, partial) and isinstance(other, partial):
        return (factory.func, factory.args, factory.keywords) == (other.func, other.args, other.keywords)
    return bool(factory == other)


def _reason(error: BaseException) -> str:
    error = error.__cause__ or error
    # Cut without "…": skipped rows are counted by this text, and records on disk hold it in this form.
    return f"{type(error).__name__}: {one_line(str(error))[:80]}".rstrip(": ")
