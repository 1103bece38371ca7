"""A thread that steps an engine for several callers: the next caller's requests run before the last one's have ended.

An engine that is given one batch after another drains at the end of each: while its slowest sample ends, there is room
for others and nothing to fill it. Left out: what a request is (`vllm.py`), and who calls (`pool.py`).
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import count
from typing import Any


class Stepper:
    """Makes an engine and steps it, in a thread of its own: some of what an engine has belongs to its thread.

    Args:
        make: gives an engine with vLLM's `add_request(name, **request)` and `step()`.
        refusals: what `add_request` raises of a request that it cannot serve; anything else is the engine's end.

    Attributes:
        engine: what `make` gave.

    Raises:
        whatever `make` raises.
    """

    def __init__(self, make: Callable[[], Any], refusals: tuple[type[Exception], ...]):
        self._refusals = refusals
        self._asked: deque[tuple[Future[Any], dict[str, Any]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._failed: BaseException | None = None
        made: Future[Any] = Future()
        self._thread = threading.Thread(target=self._run, args=(make, made), name="engine", daemon=True)
        self._thread.start()
        self.engine = made.result()

    def serve(self, requests: Sequence[dict[str, Any]]) -> list[Any]:
        """Serve some requests together with those of other threads, and wait for these.

        Returns:
            For each the output that the engine called finished, or the exception with which it was refused.

        Raises:
            whatever ended the engine, now or before.
        """
        asked: list[tuple[Future[Any], dict[str, Any]]] = [(Future(), request) for request in requests]
        with self._changed:
            if self._failed:
                raise self._failed
            self._asked.extend(asked)
            self._changed.notify()
        return [future.result() for future, _ in asked]

    def close(self) -> None:
        """End the thread and let go of the engine, once nothing is under way."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        del self.engine

    def _run(self, make: Callable[[], Any], made: Future[Any]) -> None:
        try:
            engine = make()
        except BaseException as error:
            made.set_exception(error)
            return
        made.set_result(engine)
        del made
        under_way: dict[str, Future[Any]] = {}
        numbers = count()
        try:
            while self._wait(under_way):
                while self._asked:
                    future, request = self._asked.popleft()
                    name = str(next(numbers))
                    under_way[name] = future
                    try:
                        engine.add_request(name, **request)
                    except self._refusals as refusal:
                        under_way.pop(name).set_result(refusal)
                if under_way:
                    for output in engine.step():
                        if output.finished:
                            under_way.pop(output.request_id).set_result(output)
        except BaseException as error:  # a caller that waits would wait for ever
            with self._changed:
                self._failed = error
                waiting = [*under_way.values(), *(future for future, _ in self._asked)]
            for future in waiting:
                future.set_exception(error)

    def _wait(self, under_way: dict[str, Any]) -> bool:
        """Wait for something to do; False where there is nothing and will be nothing."""
        with self._changed:
            while not (under_way or self._asked or self._closed):
                self._changed.wait()
            return bool(under_way or self._asked)
