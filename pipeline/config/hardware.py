"""Settings of the hardware: where a run executes, and with how many engines, workers and servers.

They are never part of a recipe, so a run that moves from one GPU to eight reuses all its artifacts. Settings that
change a result, such as dtype and context length, are in `run.py`.
"""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import EngineKwargs, Settings


class Replicas(Settings):
    """The smallest and the largest number of engines in a pool. One number in the settings sets both.

    The pool starts with `min` engines, and only these must fit. While rows wait it starts more, up to `max`, if there
    is room for them.
    """

    min: Annotated[int, Field(gt=0)]  # engines at the start
    max: Annotated[int, Field(gt=0)]  # engines while rows wait

    @model_validator(mode="before")
    @classmethod
    def _check_form(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"min": value, "max": value}
        if not isinstance(value, dict | Replicas):
            raise ValueError(f"replicas is {value!r}: it should be a number such as 2, or {{min: 1, max: 8}}")
        return value

    @model_validator(mode="after")
    def _check_order(self) -> "Replicas":
        if self.min > self.max:
            raise ValueError(f"replicas has min={self.min} and max={self.max}: max should not be less than min")
        return self


_GPU_GROUPS = ("pipeline_parallel_size", "prefill_context_parallel_size")  # vLLM multiplies them into an engine's GPUs


class EngineHardware(Settings):
    """A pool of vLLM engines. Each is one Ray actor."""

    replicas: Replicas = Replicas(min=1, max=1)  # written as 2, or as {min: 1, max: 8}
    # 0: CPU. Below 1: part of a GPU. Above 1: tensor parallelism. With pipeline_parallel_size in engine_kwargs, the
    # GPUs of all pipeline stages.
    gpus_per_replica: Annotated[float, Field(ge=0)] = 0
    # Above 1: the GPUs of an engine are on so many nodes, and Ray starts vLLM's workers in a placement group.
    nodes_per_replica: Annotated[int, Field(gt=0)] = 1
    cpus_per_replica: Annotated[float, Field(gt=0)] = 1  # logical CPUs of Ray that an engine takes
    batch_size: Annotated[int, Field(gt=0)] = 64  # articles in one batch of an engine
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9  # share of a whole GPU, even for part of a GPU
    kvcache_space: Annotated[int, Field(gt=0)] = 1  # GiB of key-value cache; on CPU only
    # Further arguments for vLLM by its own names, such as {max_num_seqs: 512}. They may change the speed, and not what
    # a model replies: arguments that may are in the section of the model.
    engine_kwargs: EngineKwargs = Field(default_factory=dict)

    @property
    def pipeline_stages(self) -> int:
        """Groups of GPUs, one after the other, that vLLM divides the layers or the tokens of a prompt among."""
        sizes = [self.engine_kwargs.get(name) for name in _GPU_GROUPS]
        return math.prod(size for size in sizes if isinstance(size, int))

    @property
    def tensor_parallel_size(self) -> int:
        """The GPUs that hold one layer together."""
        return max(1, int(self.gpus_per_replica) // self.pipeline_stages)

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What Ray reserves for an engine on several nodes: one bundle a GPU, the engine's CPUs beside the first.

        Empty for an engine on one node, which is one actor.
        """
        if self.nodes_per_replica == 1:
            return []
        bundles: list[dict[str, float]] = [{"GPU": 1} for _ in range(int(self.gpus_per_replica))]
        return [{"CPU": self.cpus_per_replica, **bundles[0]}, *bundles[1:]]

    @property
    def actor_cpus(self) -> float:
        """The CPUs that the engine's own actor takes."""
        return self.cpus_per_replica

    def with_arguments(self, engine_kwargs: dict[str, Any]) -> "EngineHardware":
        """These settings with the arguments for vLLM that the section of a model has."""
        return self.model_copy(update={"engine_kwargs": self.engine_kwargs | engine_kwargs})

    @model_validator(mode="after")
    def _check_gpus(self) -> "EngineHardware":
        if self.gpus_per_replica > 1 and self.gpus_per_replica != int(self.gpus_per_replica):
            raise ValueError(f"gpus_per_replica is {self.gpus_per_replica}: above 1 it must be a whole number")
        nodes = self.nodes_per_replica
        if nodes > 1 and (self.gpus_per_replica < nodes or self.gpus_per_replica % nodes):
            raise ValueError(
                f"nodes_per_replica is {nodes} and gpus_per_replica is {self.gpus_per_replica:g}: these are the GPUs "
                "on all nodes of an engine, so they should be a multiple of nodes_per_replica"
            )
        stages = self.pipeline_stages
        if stages < 1 or (stages > 1 and (self.gpus_per_replica < stages or self.gpus_per_replica % stages)):
            names = " times ".join(name for name in _GPU_GROUPS if name in self.engine_kwargs)
            raise ValueError(
                f"gpus_per_replica is {self.gpus_per_replica:g}, and {names} in engine_kwargs is {stages}: the GPUs of "
                "an engine are divided into so many groups of the same size, so gpus_per_replica should be a multiple"
            )
        return self


class GroupHardware(EngineHardware):
    """An engine whose work is done by a group of Ray actors. Each has a bundle of its own, on any node."""

    workers: Annotated[int, Field(gt=0)]  # they share the engine's CPUs and GPUs equally

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What Ray reserves: one bundle a worker."""
        gpus = {"GPU": self.gpus_per_replica / self.workers} if self.gpus_per_replica else {}
        return [{"CPU": self.cpus_per_replica / self.workers, **gpus} for _ in range(self.workers)]

    @property
    def actor_cpus(self) -> float:
        """The engine's own actor only waits for the workers, so it takes none."""
        return 0


class TrainerHardware(Settings):
    """The Ray Train workers of a training. Frozen policies, which give reference log-probabilities, run on the same."""

    workers: Annotated[int, Field(gt=0)] = 1  # several shard weights and optimizer (FSDP2)
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] = 0  # 0: CPU; below 1: part of a GPU, for a single worker
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1  # of Ray's; below 1 a worker without GPU trains with all cores
    tokens_per_batch: Annotated[int, Field(gt=0)] = 8192  # length of a packed row; bounds a worker's memory
    # False: each completion is computed with its own copy of the prompt. Slow; for models that cannot use packed rows.
    article_tree: bool = True
    gradient_checkpointing: bool = False  # keep only the input of each layer and recompute the rest: a third more time
    cpu_offload: bool = False  # keep weights and optimizer in CPU memory between uses; with GPUs only
    torch_compile: bool = False  # compile the decoder layers: starts 1 to 2 minutes later, steps are faster on a GPU
    save_steps: Annotated[int, Field(gt=0)] = 50  # steps between checkpoints
    # True: all workers together hold one frozen policy for references and drift, sharded as in training. False: each
    # worker holds a whole one. None: sharded if a GPU is known to be too small for a whole one.
    shard_references: bool | None = None

    @property
    def can_shard(self) -> bool:
        """Whether training shards the policy, over workers or between GPU and CPU."""
        return self.workers > 1 or self.cpu_offload

    @property
    def scoring_workers(self) -> int:
        """The workers that a frozen policy needs."""
        return self.workers if self.shard_references else 1

    @model_validator(mode="after")
    def _check_combination(self) -> "TrainerHardware":
        if self.shard_references and not self.can_shard:
            raise ValueError(
                "hardware.trainer has shard_references and workers=1: there is nothing to shard a policy over. Raise "
                "workers, set cpu_offload, or remove shard_references"
            )
        if self.torch_compile and self.gradient_checkpointing:
            raise ValueError(
                "hardware.trainer has torch_compile and gradient_checkpointing: when a compiled layer is recomputed, "
                "it may save other tensors than the first time, and torch then stops. Choose one of them"
            )
        if self.cpu_offload and not self.gpus_per_worker:
            raise ValueError(
                "hardware.trainer has cpu_offload, which saves GPU memory, and gpus_per_worker is 0: remove "
                "cpu_offload, or give each worker a GPU"
            )
        if not self.article_tree and self.workers > 1:
            raise ValueError(
                f"hardware.trainer has article_tree=false and workers={self.workers}: workers that compute one "
                "sequence at a time would not stay in step. Use workers=1"
            )
        if 0 < self.gpus_per_worker < 1 and self.workers > 1:
            raise ValueError(
                f"hardware.trainer has workers={self.workers} and gpus_per_worker={self.gpus_per_worker}: workers that "
                "shard one model need a GPU each. Use gpus_per_worker=1, or workers=1"
            )
        return self


class Price(Settings):
    """The price of a model, in US dollars per million tokens."""

    input: Annotated[float, Field(ge=0)]  # of the tokens of prompts
    output: Annotated[float, Field(ge=0)]  # of the tokens of replies
    cached: Annotated[float, Field(ge=0)] | None = None  # input tokens found in the prefix cache; None: as `input`

    def cost_micro_usd(self, tokens_in: float, tokens_cached: float, tokens_out: float) -> float:
        """What the tokens cost, in millionths of a US dollar. `tokens_cached` are part of `tokens_in`."""
        cached_price = self.input if self.cached is None else self.cached
        return (tokens_in - tokens_cached) * self.input + tokens_cached * cached_price + tokens_out * self.output


class Server(Settings):
    """An OpenAI-compatible server: vLLM's, or a hosted one."""

    base_url: str  # such as http://host:8000/v1
    api_key_env: str | None = None  # name of the environment variable that holds the key; None: the server needs no key
    concurrency: Annotated[int, Field(gt=0)] = 32  # requests in flight at once
    timeout: Annotated[float, Field(gt=0)] = 120  # seconds for one try, from sending to the last byte of the reply
    tries: Annotated[int, Field(gt=0)] = 8  # tries of one request, before its row is set aside
    # Longest wait between two tries, in seconds. A server that asks for a longer wait is given up.
    max_wait: Annotated[float, Field(gt=0)] = 120
    # Prices by model. With them, each record states what its stage cost.
    prices: dict[str, Price] = Field(default_factory=dict)
    # Send prompts by the server's batch API, which OpenAI and others have: cheaper, and done within a day.
    batch: bool = False
    batch_price: Annotated[float, Field(gt=0, le=1)] = 0.5  # price of a prompt in a batch, as a share of `prices`

    def price_of(self, model: str) -> Price | None:
        """What the server charges for a model, in the way in which prompts are sent."""
        price = self.prices.get(model)
        if price is None or not self.batch:
            return price
        rates = {name: rate and rate * self.batch_price for name, rate in price}
        return price.model_copy(update=rates)

    @model_validator(mode="after")
    def _check_batch(self) -> "Server":
        if not self.batch and self.batch_price != Server.model_fields["batch_price"].default:
            raise ValueError("a server has batch_price, and batch is false: set batch to true, or remove batch_price")
        if self.batch and self.concurrency != Server.model_fields["concurrency"].default:
            raise ValueError("a server has batch and concurrency, and a batch is one request: remove concurrency")
        return self

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "a server's base_url holds a user, a password or a query: put the key in an environment variable, and "
                "name the variable in api_key_env"
            )
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"a server's base_url is {value!r}: it should be an address such as http://host:8000/v1")
        return value

    @field_validator("api_key_env", mode="before")
    @classmethod
    def _check_api_key_env(cls, value: Any) -> Any:
        # The message does not show the value: it may be the key itself.
        if value is not None and not re.fullmatch("[A-Z][A-Z0-9_]*", str(value)):
            raise ValueError(
                "a server's api_key_env should be the name of an environment variable, in capitals, such as "
                "OPENAI_API_KEY, and not the key itself"
            )
        return value


class Hardware(Settings):
    """Where a run executes: engines, training workers, servers, and CPUs of Ray."""

    policy: EngineHardware = EngineHardware()
    judge: EngineHardware = EngineHardware()
    trainer: TrainerHardware = TrainerHardware()
    # Servers by a name of the user's choice. judge.served and compare refer to these names.
    servers: dict[str, Server] = Field(default_factory=dict)
    # True: policy, judge and reference run on separate GPUs at the same time. Summaries, scores and references are then
    # one pipeline, and no row waits for a table to end. False: they run in turn, for example on a single GPU.
    together: bool = False
    # True: engines stay from stage to stage, and training workers without GPUs from round to round, for as long as what
    # runs next has room beside them. False: they end with their stage, which frees their memory.
    keep_engines: bool = True
    # Logical CPUs of a Ray that Rondo starts. None: the machine's CPUs, or more if these settings need more.
    ray_cpus: Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check_cpus(self) -> "Hardware":
        if self.ray_cpus is not None and self.ray_cpus < self.cpus() - 1:
            raise ValueError(
                f"hardware.ray_cpus is {self.ray_cpus}, and these settings need at least {self.cpus() - 1}, or they "
                "would wait for ever: raise it, or lower cpus_per_replica, cpus_per_worker or replicas"
            )
        return self

    @model_validator(mode="after")
    def _check_gpu_memory(self) -> "Hardware":
        for name, engine in (("policy", self.policy), ("judge", self.judge)):
            gpu_share, memory_share = engine.gpus_per_replica, engine.gpu_memory_utilization
            if 0 < gpu_share < 1 and memory_share > gpu_share:
                raise ValueError(
                    f"hardware.{name} has gpus_per_replica={gpu_share:g} and "
                    f"gpu_memory_utilization={memory_share:g}: vLLM would take more of the GPU's memory than this "
                    "engine's share, and leave too little for the next engine. "
                    f"Set gpu_memory_utilization to {gpu_share:g} or less"
                )
        return self

    def cpus(self) -> int:
        """The logical CPUs that Ray must have for the smallest number of replicas.

        With fewer, Ray Data waits for ever without a message.
        """
        engines = [engine.replicas.min * engine.cpus_per_replica for engine in (self.policy, self.judge)]
        # Beside them a frozen policy computes reference log-probabilities.
        engines.append(self.trainer.scoring_workers * self.trainer.cpus_per_worker)
        trainers = self.trainer.workers * self.trainer.cpus_per_worker
        # Two more than the actors use: for a task that reads or writes, and for Ray Train's controller.
        return math.ceil(max(sum(engines) if self.together else max(engines), trainers)) + 2

    def scaled_to(self, cpus: float) -> "Hardware":
        """Return these settings for a Ray with `cpus` logical CPUs. If these are too few, actors ask for fewer each.

        The number of CPUs that an actor asks for decides when Ray starts it and how many threads it uses. It changes
        the speed only.
        """
        scale = (cpus - 1) / (self.cpus() - 2)  # one CPU stays free for tasks that read and write
        if cpus >= self.cpus() or scale <= 0:
            return self

        def reduced(requested_cpus: float) -> float:
            scaled = requested_cpus * scale
            return math.floor(scaled) if scaled >= 1 else math.floor(scaled * 100) / 100

        return self.model_copy(
            update={
                "policy": self.policy.model_copy(update={"cpus_per_replica": reduced(self.policy.cpus_per_replica)}),
                "judge": self.judge.model_copy(update={"cpus_per_replica": reduced(self.judge.cpus_per_replica)}),
                "trainer": self.trainer.model_copy(update={"cpus_per_worker": reduced(self.trainer.cpus_per_worker)}),
            }
        )

    def check_nodes(self, gpus_of_nodes: Sequence[float]) -> None:
        """Raise ValueError if no node of a cluster has enough GPUs for an engine, though the cluster has.

        Ray would wait for such a node without a message. A cluster that has too few GPUs may still grow.

        Args:
            gpus_of_nodes: the number of GPUs of each node.
        """
        largest = max(gpus_of_nodes, default=0)
        for name, engine in (("policy", self.policy), ("judge", self.judge)):
            on_a_node = engine.gpus_per_replica / engine.nodes_per_replica
            if largest < on_a_node and engine.gpus_per_replica <= sum(gpus_of_nodes):
                nodes = math.ceil(engine.gpus_per_replica / largest)
                raise ValueError(
                    f"an engine of hardware.{name} asks for {on_a_node:g} GPUs of a node, and no node has more than "
                    f"{largest:g}: set hardware.{name}.nodes_per_replica={nodes}, or lower gpus_per_replica"
                )

    def gpus(self) -> float:
        """The GPUs that are needed at the same time, for the smallest number of replicas."""
        engines = [engine.replicas.min * engine.gpus_per_replica for engine in (self.policy, self.judge)]
        engines.append(self.trainer.scoring_workers * self.trainer.gpus_per_worker)
        trainers = self.trainer.workers * self.trainer.gpus_per_worker
        return max(sum(engines) if self.together else max(engines), trainers)


def driver_node_options() -> dict[str, Any]:
    """Options of an actor that keeps state for its driver.

    The actor runs on the driver's node, so that the loss of another node does not end it. It needs no CPU. If it is
    killed, Ray starts it again, without its state.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    on_this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": on_this_node}
