"""Starts the actors of engines, keeps them from stage to stage, and ends them when something else needs their place.

The driver owns the actors: they end with its last handle to them, or with the driver. An idle engine keeps its CPUs and
GPUs. So before a stage borrows engines, or a training starts, idle actors end if both do not fit. On a single GPU that
policy, judge and trainer use in turn, engines sleep instead: they give up the GPU's memory and keep their processes.

An engine can be started ahead of its first stage, where it fits beside all others: two engines that start at the same
time take little longer than one, because most of a start is Python's imports, on one core.
"""

import uuid
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import ray
from ray import cloudpickle
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipeline.config.hardware import EngineHardware, TrainerHardware
from pipeline.inference.actors.crash_log import crash_log_actor
from pipeline.inference.actors.engine_actor import EngineActor, Loan
from pipeline.inference.base import EngineFactory

_CPUS_FOR_TASKS = 1.0  # Ray Data reads and writes in tasks of one CPU; Ray Train's controller takes one too
_GPU_SHARE = 0.05  # of the only GPU, for each actor that uses it in turn: only Ray's bookkeeping needs a number


@dataclass(frozen=True)
class EngineActors:
    """The actors that a stage has borrowed, and how to start one more.

    Attributes:
        role: what the actors are for, as `ray list actors` shows it.
        hardware: what each engine takes.
        at_once: batches that an engine runs at the same time.
        crash_log: the handle of the driver's crash log.
        handles: the actors that live through the run.
        groups: their placement groups, if they have some.
    """

    role: str
    hardware: EngineHardware
    at_once: int
    crash_log: Any
    handles: tuple[Any, ...] = ()
    groups: tuple[Any, ...] = ()

    def start_one(self) -> tuple[Any, Any]:
        """Start an actor, which makes its engine at the first loan. It ends with the last handle to it.

        Returns:
            the handle, and the placement group of the actor or None. The group ends with the process that made it.
        """
        options: dict[str, Any] = {"num_cpus": self.hardware.actor_cpus, "num_gpus": self.gpus}
        group = None
        if bundles := self.hardware.bundles:
            # PACK: on as few nodes as possible. The engine starts a worker in each bundle of the group of its process.
            group = placement_group(bundles, strategy="PACK")
            options["num_gpus"] = 0  # the worker in the first bundle takes the GPU there
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
            )
        actor = (
            ray.remote(EngineActor)
            .options(
                name=f"{self.role} {uuid.uuid4().hex[:8]}",
                **options,
                max_restarts=-1,
                max_task_retries=-1,
                max_concurrency=self.at_once + 2,  # two more, so that `prepare` and `sleep` never wait in Ray's queue
            )
            .remote(self.at_once, self.crash_log)
        )
        return actor, group

    @property
    def cpus(self) -> float:
        """What an engine takes of Ray's CPUs."""
        return self.hardware.cpus_per_replica

    @property
    def gpus(self) -> float:
        """What an engine takes of Ray's GPUs."""
        return self.hardware.gpus_per_replica

    def has_room(self) -> bool:
        """Whether Ray has room for one more actor now, and for a task beside it."""
        free = ray.available_resources()
        return free.get("CPU", 0) >= self.cpus + _CPUS_FOR_TASKS and free.get("GPU", 0) >= self.gpus

    def total(self) -> tuple[float, float]:
        """CPUs and GPUs of all actors."""
        return len(self.handles) * self.cpus, len(self.handles) * self.gpus


@dataclass
class _Resident:
    actors: EngineActors
    kind: Any
    is_asleep: bool = False


class Workers(Protocol):
    """The workers of trainings, while no training runs."""

    def total(self) -> tuple[float, float]:
        """CPUs and GPUs that they hold."""

    def start(self) -> None:
        """Start them, and do not wait for them."""

    def close(self) -> None:
        """Tell them to end, and do not wait for them."""


@dataclass
class ResidentPools:
    """The engines of a run, by role, and its training workers.

    Attributes:
        in_turn: whether what uses GPUs runs in turn (`hardware.together` is false).
        keep: False: engines end with their stage (`hardware.keep_engines`), and training workers with their training.
        workers: the training workers; None: the run has none so far.
    """

    in_turn: bool = False
    keep: bool = True
    workers: Workers | None = None
    _pools: dict[str, _Resident] = field(default_factory=dict)  # the one that was borrowed last is the last
    _borrowed: set[str] = field(default_factory=set)  # the roles that the stages in progress use

    def take_turns(self, gpus: float) -> bool:
        """Whether what needs so many GPUs shares the only GPU there is with engines that sleep meanwhile."""
        return bool(gpus) and self.in_turn and self.keep and ray.cluster_resources().get("GPU", 0) == 1

    def begin_stages(self) -> None:
        """Note that the stages before are finished: their engines are idle from now on."""
        self._borrowed.clear()
        if not self.keep:
            self.end()

    def borrow(self, role: str, make_engine: EngineFactory, hardware: EngineHardware, at_once: int) -> EngineActors:
        """The actors of a role: those of an earlier stage if they fit, or new ones.

        They fit if they have the same hardware and the same kind of engine. A factory with a `kind` says what its
        `update` cannot change.
        """
        kind = _kind(make_engine, hardware, at_once)
        pool = self._pools.pop(role, None)
        if pool is not None and pool.kind != kind:
            _end(pool)
            pool = None
        takes_turns = self.take_turns(hardware.gpus_per_replica)
        if takes_turns:
            hardware = hardware.model_copy(update={"gpus_per_replica": _GPU_SHARE})
        if pool is None:
            self._make_room(
                hardware.replicas.min * hardware.cpus_per_replica, hardware.replicas.min * hardware.gpus_per_replica
            )
            pool = _start(role, kind, hardware, at_once)
        if takes_turns:
            self._put_to_sleep()
        pool.is_asleep = False  # the loan wakes it up
        self._pools[role] = pool
        self._borrowed.add(role)
        return pool.actors

    def start_ahead(self, role: str, make_engine: EngineFactory, hardware: EngineHardware, at_once: int) -> None:
        """Start the actors of a role, with their engines, for a later stage. The caller does not wait for them.

        Nothing is started if the role has actors, if engines do not stay, if something would have to end or sleep, or
        if engines share a GPU: vLLM measures its free memory while it starts. An engine that fails here fails again in
        its stage, which reports it.
        """
        gpus, count = hardware.gpus_per_replica, hardware.replicas.min
        if not self.keep or role in self._pools or gpus % 1 or self.take_turns(gpus):
            return
        if not self._fits(count * hardware.cpus_per_replica, count * gpus):
            return
        pool = _start(role, _kind(make_engine, hardware, at_once), hardware, at_once)
        self._pools[role] = pool
        without_work = cloudpickle.dumps((None, ()))  # no rows come with this loan
        loan = Loan(uuid.uuid4().hex, cloudpickle.dumps(make_engine), without_work)
        for actor in pool.actors.handles:
            actor.prepare.remote(loan)

    def keeps_workers(self, trainer: TrainerHardware) -> bool:
        """Whether training workers stay for the next training. GPUs are of more use to further engines meanwhile."""
        return self.keep and not trainer.gpus_per_worker

    def start_workers_ahead(self, workers: Workers, trainer: TrainerHardware) -> None:
        """Start training workers for a later stage, if they will stay and fit beside all others."""
        if self.keeps_workers(trainer) and self._fits(trainer.workers * trainer.cpus_per_worker, 0):
            self.workers = workers
            workers.start()

    def lend_hardware(self, trainer: TrainerHardware) -> TrainerHardware:
        """Make room for the workers of a training, and return what each of them should ask Ray for."""
        self.begin_stages()
        if self.workers is not None and any(self.workers.total()):
            return trainer  # they are there, with what they need
        if self.take_turns(trainer.gpus_per_worker):
            self._put_to_sleep()
            trainer = trainer.model_copy(update={"gpus_per_worker": _GPU_SHARE})
        elif trainer.gpus_per_worker % 1:  # engines on the rest of its GPU would leave it too little memory
            for role in [role for role, pool in self._pools.items() if pool.actors.gpus % 1]:
                _end(self._pools.pop(role))
        self._make_room(trainer.workers * trainer.cpus_per_worker, trainer.workers * trainer.gpus_per_worker)
        return trainer

    def end(self) -> None:
        """End all engines."""
        for pool in self._pools.values():
            _end(pool)
        self._pools.clear()

    def _put_to_sleep(self) -> None:
        """Let all idle engines on the GPU give up its memory."""
        idle = [self._pools[role] for role in self._pools.keys() - self._borrowed]
        awake = [pool for pool in idle if pool.actors.gpus and not pool.is_asleep]
        ray.get([actor.sleep.remote() for pool in awake for actor in pool.actors.handles])
        for pool in awake:
            pool.is_asleep = True

    def _make_room(self, cpus: float, gpus: float) -> None:
        """End what is idle until so many CPUs and GPUs are free.

        The training workers end first, because their start costs least; then the pool that was used longest ago.
        """
        if self.workers is not None and not self._fits(cpus, gpus):
            self.workers.close()
        for role in [role for role in self._pools if role not in self._borrowed]:
            if self._fits(cpus, gpus):
                return
            _end(self._pools.pop(role))

    def _fits(self, cpus: float, gpus: float) -> bool:
        """Whether so many CPUs and GPUs are free beside all pools and the training workers."""
        total = ray.cluster_resources()
        held = [holder.total() for holder in (self.workers, *(pool.actors for pool in self._pools.values())) if holder]
        held_cpus, held_gpus = sum(cpus for cpus, _ in held), sum(gpus for _, gpus in held)
        fits_cpus = held_cpus + cpus + _CPUS_FOR_TASKS <= total.get("CPU", 0) + 1e-6
        return fits_cpus and held_gpus + gpus <= total.get("GPU", 0) + 1e-6


def _kind(make_engine: EngineFactory, hardware: EngineHardware, at_once: int) -> Any:
    """What actors of a role must have in common to be used again."""
    return (hardware, at_once, getattr(make_engine, "kind", None))


def _start(role: str, kind: Any, hardware: EngineHardware, at_once: int) -> _Resident:
    """Start the actors of a role."""
    actors = EngineActors(role, hardware, at_once, crash_log_actor())
    handles, groups = zip(*(actors.start_one() for _ in range(hardware.replicas.min)), strict=True)
    return _Resident(replace(actors, handles=handles, groups=tuple(filter(None, groups))), kind)


def _end(pool: _Resident) -> None:
    for actor in pool.actors.handles:
        ray.kill(actor)
    for group in pool.actors.groups:
        remove_placement_group(group)
