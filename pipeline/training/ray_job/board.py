"""The actor between a driver and the workers of its Ray Train job. It imports little, so that it starts at once."""

import asyncio
from contextlib import suppress
from typing import Any

Line = dict[str, Any]
Training = dict[str, Any]
Answer = dict[str, Any]


class Board:
    """Gives trainings to all workers, one at a time, and what they report to the driver.

    Attributes:
        number: how many trainings there were so far.
        starts: how often workers have started the last one. More than once: one of them died.
        lines: the lines of metrics that the driver has not read yet.
        answer: the answer of the last training; None: it runs, or there was none.
        workers: the handles of the workers' actors, by rank.
    """

    def __init__(self) -> None:
        self.number, self.starts = 0, 0
        self.training: Training = {}
        self.lines: list[Line] = []
        self.answer: Answer | None = None
        self.workers: dict[int, Any] = {}
        self.is_closed = False
        self.changed = asyncio.Condition()

    async def begin(self, training: Training) -> None:
        """Give the workers a training."""
        async with self.changed:
            self.number, self.starts = self.number + 1, 0
            self.training, self.lines, self.answer = training, [], None
            self.changed.notify_all()

    async def read(self, timeout: float) -> tuple[list[Line], Answer | None, int]:
        """The lines since the last call, the answer of the training if it is finished, and how often it started.

        Waits for a line or the answer, at most `timeout` seconds.
        """
        async with self.changed:
            with suppress(TimeoutError):
                news = self.changed.wait_for(lambda: self.lines or self.answer is not None)
                await asyncio.wait_for(news, timeout)
            lines, self.lines = self.lines, []
            return lines, self.answer, self.starts

    async def is_open(self) -> bool:
        """Whether there may be more trainings."""
        return not self.is_closed

    async def close(self) -> list[Any]:
        """Let the workers that wait end. Returns the workers that train."""
        async with self.changed:
            self.is_closed = True
            self.changed.notify_all()
            return list(self.workers.values()) if self.number and self.answer is None else []

    async def next_training(self, done: int, rank: int, worker: Any) -> tuple[int, Training] | None:
        """Wait for an unfinished training after number `done`. None if the board is closed.

        Args:
            done: the last training that the worker has finished, or 0.
            rank: the worker's number.
            worker: the handle of its actor.
        """
        async with self.changed:
            self.workers[rank] = worker
            await self.changed.wait_for(lambda: self.is_closed or (self.number > done and self.answer is None))
            if self.is_closed:
                return None
            self.starts += rank == 0
            return self.number, self.training

    async def send(self, line: Line) -> None:
        """Take a line of metrics from the worker of rank 0."""
        async with self.changed:
            self.lines.append(line)
            self.changed.notify_all()

    async def finish(self, answer: Answer) -> None:
        """Take the answer from the worker of rank 0."""
        async with self.changed:
            self.answer = answer
            self.changed.notify_all()
