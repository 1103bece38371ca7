"""Remembers which rows an engine was working on when it died, for the actor that replaces it.

Ray restarts a dead actor and gives it the same rows again, without end. So the pool (`pool.py`) records rows here
before an engine gets them, and removes them when they are finished. A row that is already recorded may have killed an
engine: it then runs alone, and after `TRIES` tries it is given up.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from pipeline.config.hardware import driver_node_options

TRIES = 3
_MAX_FRUITLESS_STARTS = 9  # starts of an actor that finishes no row: then the engine is the problem, not a row
_UNKNOWN_REASON = "its process was killed"


class CrashLog:
    """The crash log of all pools of one driver.

    A plain Python class. `crash_log_actor` runs it in a Ray actor, which outlives the engines. Rows and actors are
    named by strings that are unique across pools.
    """

    def __init__(self) -> None:
        self._tries: dict[str, int] = {}  # by row: how often an engine started it and did not finish
        self._reasons: dict[str, str] = {}  # by row or actor: why its last engine died
        self._starts_before_ready: Counter[str] = Counter()  # by actor: since it last had a working engine
        self._starts_without_result: Counter[str] = Counter()  # by actor: since it last finished a row

    def start_engine(self, actor: str) -> str | None:
        """Record that an actor is about to start its engine.

        Returns:
            The reason to give up, if the actor's engine has died too often; else None.
        """
        for starts, limit, when in (
            (self._starts_before_ready, TRIES, "before it was ready"),
            (self._starts_without_result, _MAX_FRUITLESS_STARTS, "and finished no batch in between"),
        ):
            if starts[actor] == limit:
                return f"the engine died {limit} times in a row {when}: {self._reason(actor)}"
            starts[actor] += 1
        return None

    def engine_ready(self, actor: str) -> None:
        """Record that the actor's engine has started."""
        self._starts_before_ready[actor] = 0

    def begin_batch(self, rows: Iterable[str]) -> dict[str, str | None]:
        """Record that an engine starts these rows together. Rows that an engine did not finish before are left out.

        Returns:
            The rows left out. Value None: run the row alone. Value a text: give the row up, for this reason.
        """
        left_out: dict[str, str | None] = {}
        for row in rows:
            if row not in self._tries:
                self._tries[row] = 1
            elif self._tries[row] < TRIES:
                left_out[row] = None
            else:
                left_out[row] = f"engine failed {TRIES} times: {self._reason(row)}"
        return left_out

    def begin_single(self, row: str) -> None:
        """Record that an engine starts this row, and runs no other row meanwhile."""
        self._tries[row] = self._tries.get(row, 0) + 1  # 0 if this log was lost and started again
        self._reasons.pop(row, None)

    def rows_failed(self, actor: str, rows: Iterable[str], reason: str) -> None:
        """Record why the actor's engine is about to die while it runs these rows."""
        self._reasons.update(dict.fromkeys((actor, *rows), reason))

    def rows_done(self, actor: str, rows: Iterable[str]) -> None:
        """Remove rows that the actor's engine has finished."""
        self._starts_without_result[actor] = 0
        for name in (actor, *rows):
            self._tries.pop(name, None)
            self._reasons.pop(name, None)

    def _reason(self, name: str) -> str:
        return self._reasons.get(name, _UNKNOWN_REASON)


# By driver: the actor's handle. Without a handle to it, Ray would stop the actor.
_actors: dict[tuple[str, str], Any] = {}


def crash_log_actor() -> Any:
    """Get this driver's crash log actor, started if need be. It asks for no CPU and ends with the driver.

    Ray restarts it if it is killed; its records are then lost.
    """
    import ray

    context = ray.get_runtime_context()
    driver = (context.gcs_address, context.get_job_id())
    if driver not in _actors:
        _actors.clear()
        _actors[driver] = ray.remote(CrashLog).options(**driver_node_options(), max_task_retries=-1).remote()
    return _actors[driver]
