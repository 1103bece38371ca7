"""Which rows an engine had when it died: what an actor must know of the process that it was before.

Ray starts a dead actor again and gives it the same rows, for ever. So rows are noted before an engine has them and
struck out after. A row that is noted already may have cost an engine its life: it then goes alone, and after `TRIES`
times it is given up. Left out: what runs the rows (`pool.py`).
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from pipeline.config.hardware import driver_node_options

TRIES = 3
_VAIN_STARTS = 9  # of an actor that brings no row to an end: its engine is to blame, and no row


class CrashLog:
    """The notes of a driver's pools. Plain Python; `kept` puts it into a Ray actor, which outlives the engines.

    Rows and actors are named by strings that no two pools share.
    """

    def __init__(self) -> None:
        self._times: dict[str, int] = {}  # by row: how often an engine had it and did not finish
        self._reasons: dict[str, str] = {}  # by row, or by actor: how the engine ended
        self._unready: Counter[str] = Counter()  # by actor: starts since it last had an engine
        self._vain: Counter[str] = Counter()  # by actor: starts since it last finished a row

    def start(self, actor: str) -> str | None:
        """Note that an actor is about to make an engine; says why it should not, where it often has in vain."""
        reason = self._reasons.get(actor, "its process was killed")
        for times, limit, what in (
            (self._unready, TRIES, "before it was ready"),
            (self._vain, _VAIN_STARTS, "and finished nothing between"),
        ):
            if times[actor] == limit:
                return f"the engine died {limit} times in a row {what}: {reason}"
            times[actor] += 1
        return None

    def ready(self, actor: str) -> None:
        """Note that the actor has its engine."""
        self._unready[actor] = 0

    def together(self, rows: Iterable[str]) -> dict[str, str | None]:
        """Note that an engine is given some rows, but for those that an engine had before and did not finish.

        Returns:
            These: None, if the row is to be given alone; or why it is given up.
        """
        before: dict[str, str | None] = {}
        for row in rows:
            if row not in self._times:
                self._times[row] = 1
            elif self._times[row] < TRIES:
                before[row] = None
            else:
                reason = self._reasons.get(row, "its process was killed")
                before[row] = f"engine failed {TRIES} times: {reason}"
        return before

    def alone(self, row: str) -> None:
        """Note that an engine is given this row, and no other at the time."""
        self._times[row] = self._times.get(row, 0) + 1  # 0 where the notes were lost meanwhile
        self._reasons.pop(row, None)

    def failed(self, actor: str, rows: Iterable[str], reason: str) -> None:
        """Note why the engine with these rows is about to end."""
        self._reasons.update(dict.fromkeys((actor, *rows), reason))

    def done(self, actor: str, rows: Iterable[str]) -> None:
        """Strike out rows that an engine has finished."""
        self._vain[actor] = 0
        for name in (actor, *rows):
            self._times.pop(name, None)
            self._reasons.pop(name, None)


_of_driver: dict[tuple[str, str], Any] = {}  # a handle that is held: without one Ray would end the actor


def crash_log_actor() -> Any:
    """The actor with the notes of this driver. It asks for no CPU, and goes when the driver does.

    Killed, it is started again, without notes.
    """
    import ray

    here = ray.get_runtime_context()
    driver = (here.gcs_address, here.get_job_id())
    if driver not in _of_driver:
        _of_driver.clear()
        _of_driver[driver] = ray.remote(CrashLog).options(**driver_node_options(), max_task_retries=-1).remote()
    return _of_driver[driver]
