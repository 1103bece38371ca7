"""Steps an engine in its own thread, for several callers at once.

An engine that gets one batch after another is partly idle at the end of each batch: while the slowest sample finishes,
it has room for more sequences and no requests to fill it. Here the requests of the next caller start before those of
the last caller have finished. `vllm.py` makes the requests; the callers are the threads of `pool.py`.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import count
from typing import Any


class Stepper:
    """Makes an engine and steps it in its own thread, because some of an engine's state belongs to the thread.

    Args:
        make_engine: returns an engine with vLLM's `add_request(name, **request)` and `step()`.
        refusals: exceptions with which `add_request` refuses one request. Any other exception ends the engine.

    Attributes:
        engine: what `make_engine` returned.

    Raises:
        Exception: the one that `make_engine` raises.
    """

    def __init__(self, make_engine: Callable[[], Any], refusals: tuple[type[Exception], ...]):
        self._refusals = refusals
        self._queue: deque[tuple[Future[Any], dict[str, Any]]] = deque()  # requests that the engine does not have yet
        self._changed = threading.Condition()  # guards the queues and the two values below
        self._calls: deque[tuple[Future[Any], Callable[[Any], Any]]] = deque()  # for when the engine is idle
        self._closed = False
        self._error: BaseException | None = None  # what ended the engine
        started: Future[Any] = Future()
        self._thread = threading.Thread(target=self._run, args=(make_engine, started), name="engine", daemon=True)
        self._thread.start()
        self.engine = started.result()

    def serve(self, requests: Sequence[dict[str, Any]]) -> list[Any]:
        """Serve these requests together with those of other threads, and wait until these are done.

        Returns:
            For each request its finished output, or the exception with which the engine refused it.

        Raises:
            Exception: the one that ended the engine, during this call or before it.
        """
        entries: list[tuple[Future[Any], dict[str, Any]]] = [(Future(), request) for request in requests]
        with self._changed:
            if self._error:
                raise self._error
            self._queue.extend(entries)
            self._changed.notify()
        return [future.result() for future, _ in entries]

    def call(self, function: Callable[[Any], Any]) -> Any:
        """Call a function with the engine, in the engine's thread, once no request is running.

        Raises:
            Exception: what the function raises. The engine goes on; or the one that ended the engine before.
        """
        future: Future[Any] = Future()
        with self._changed:
            if self._error:
                raise self._error
            self._calls.append((future, function))
            self._changed.notify()
        return future.result()

    def close(self) -> None:
        """End the thread and release the engine, once no request is running."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        del self.engine

    def _run(self, make_engine: Callable[[], Any], started: Future[Any]) -> None:
        try:
            engine = make_engine()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(engine)
        del started  # it holds the engine, which `close` releases
        running: dict[str, Future[Any]] = {}
        numbers = count()
        try:
            while self._wait(running):
                while self._calls and not running:
                    _call(*self._calls.popleft(), engine)
                while self._queue and not self._calls:
                    future, request = self._queue.popleft()
                    name = str(next(numbers))
                    running[name] = future
                    try:
                        engine.add_request(name, **request)
                    except self._refusals as refusal:
                        running.pop(name).set_result(refusal)
                if running:
                    for output in engine.step():
                        if output.finished:
                            running.pop(output.request_id).set_result(output)
        except BaseException as error:  # without this, callers would wait for ever
            with self._changed:
                self._error = error
                waiting = [*running.values(), *(future for future, _ in (*self._queue, *self._calls))]
            for future in waiting:
                future.set_exception(error)

    def _wait(self, running: dict[str, Any]) -> bool:
        """Wait for work. Returns False once the stepper is closed and no request is left."""
        with self._changed:
            while not (running or self._queue or self._calls or self._closed):
                self._changed.wait()
            return bool(running or self._queue or self._calls)


def _call(future: Future[Any], function: Callable[[Any], Any], engine: Any) -> None:
    try:
        future.set_result(function(engine))
    except Exception as error:
        future.set_exception(error)
