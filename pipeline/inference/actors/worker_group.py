"""Runs an engine's work in several Ray actors, such as the shards of a model that no single GPU holds.

The engine's own actor starts these workers, one in each bundle of its placement group. They end together: with the
engine, with the process of the engine, or when a call fails on one of them, because the others may wait for that one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipeline.inference.base import EngineDied

_END_SECONDS = 30.0  # how long `close` waits for the processes to be gone


class WorkerGroup:
    """The workers of an engine. Only an actor in a placement group can make a group.

    Args:
        make_worker: called in each worker's process with the worker's rank. It must not wait for other workers.

    Raises:
        EngineDied, Exception: as `call`.
    """

    def __init__(self, make_worker: Callable[[int], Any]) -> None:
        group = ray.util.get_current_placement_group()
        assert group is not None, "hardware with workers has a placement group"
        self._actors = [
            ray.remote(_Worker)
            .options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            )
            .remote()
            for rank, bundle in enumerate(group.bundle_specs)
        ]
        self._wait([actor.make.remote(make_worker, rank) for rank, actor in enumerate(self._actors)])

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of all workers at the same time. Returns what it returned, by rank.

        Raises:
            EngineDied: the process of a worker ended.
            Exception: the method raised it on the worker that failed first. After an error all workers are ended.
        """
        shared = [ray.put(argument) for argument in arguments]
        return self._wait([actor.call.remote(method, *shared) for actor in self._actors])

    def call_first(self, method: str, *arguments: Any) -> Any:
        """Call a method of the worker with rank 0. Raises as `call`."""
        return self._wait([self._actors[0].call.remote(method, *arguments)])[0]

    def close(self) -> None:
        """End the workers, and wait until their processes are gone, with what they hold on a GPU."""
        for actor in self._actors:
            ray.kill(actor)
        ends = [actor.__ray_ready__.remote() for actor in self._actors]  # an error, once the actor is dead
        ray.wait(ends, num_returns=len(ends), timeout=_END_SECONDS)

    def _wait(self, results: Sequence[Any]) -> list[Any]:
        waiting = list(results)
        try:
            while waiting:  # not `ray.get`: the first result may be of a worker that waits for one that is dead
                done, waiting = ray.wait(waiting)
                ray.get(done)
        except ray.exceptions.RayTaskError as error:
            self.close()
            cause: BaseException = error.cause
            cause.add_note(str(error))  # the traceback on the worker
            raise cause from None
        except ray.exceptions.RayError as error:
            self.close()
            raise EngineDied(f"the process of a worker ended ({type(error).__name__})") from None
        return list(ray.get(list(results)))


class _Worker:
    """The actor of a worker."""

    def make(self, make_worker: Callable[[int], Any], rank: int) -> None:
        self.worker = make_worker(rank)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.worker, method)(*arguments)
