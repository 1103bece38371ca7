"""Where and how wide to run: never part of a recipe, so that moving from one GPU to eight remakes nothing.

Left out: whatever changes a result (dtype, context length: they are the model's settings in `config.py`).
"""

import math
import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Settings


class Replicas(Settings):
    """How many engines a pool has. One number is both; between two the pool grows while rows wait, and shrinks again.

    Only `min` must be there: a pool takes what more there is, and goes on with what it has.
    """

    min: Annotated[int, Field(gt=0)]
    max: Annotated[int, Field(gt=0)]

    @model_validator(mode="before")
    @classmethod
    def _one_number_is_both(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"min": value, "max": value}
        if not isinstance(value, dict | Replicas):
            raise ValueError(f"replicas is {value!r}: it should be a number such as 2, or {{min: 1, max: 8}}")
        return value

    @model_validator(mode="after")
    def _in_order(self) -> "Replicas":
        if self.min > self.max:
            raise ValueError(f"replicas has min={self.min} and max={self.max}: max should not be less")
        return self


class EngineHardware(Settings):
    """A pool of vLLM engines, one Ray actor each."""

    replicas: Replicas = Replicas(min=1, max=1)  # written as 2, or as {min: 1, max: 8}
    gpus_per_replica: Annotated[float, Field(ge=0)] = 0  # 0: CPU; above 1: tensor parallel over so many
    cpus_per_replica: Annotated[float, Field(gt=0)] = 1
    batch_size: Annotated[int, Field(gt=0)] = 64  # articles an engine is given at a time
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9  # of a whole GPU, even if a part is asked for
    kvcache_space: Annotated[int, Field(gt=0)] = 1  # GiB of key-value cache, on a CPU

    @model_validator(mode="after")
    def _whole_gpus(self) -> "EngineHardware":
        if self.gpus_per_replica > 1 and self.gpus_per_replica != int(self.gpus_per_replica):
            raise ValueError(f"gpus_per_replica is {self.gpus_per_replica}: above 1 it must be a whole number")
        return self


class TrainerHardware(Settings):
    """Ray Train workers."""

    workers: Annotated[int, Field(gt=0)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] = 0
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    tokens_per_batch: Annotated[int, Field(gt=0)] = 8192  # of one packed row: bounds a worker's memory
    article_tree: bool = True  # off: every completion with a prompt of its own; slow, for models that cannot be packed
    gradient_checkpointing: bool = False  # keep each layer's input only, run it again: less memory, a third more time
    cpu_offload: bool = False  # weights and optimizer in the CPU's memory between uses; for GPUs
    torch_compile: bool = False  # compile the decoder's layers: a minute or two at the start, faster steps on a GPU
    save_steps: Annotated[int, Field(gt=0)] = 50  # updates between checkpoints

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainerHardware":
        if self.torch_compile and self.gradient_checkpointing:
            raise ValueError(
                "hardware.trainer has torch_compile and gradient_checkpointing: a compiled layer that is run again may "
                "save other tensors than it did at first, and torch then stops. Choose one of them"
            )
        if self.cpu_offload and not self.gpus_per_worker:
            raise ValueError("hardware.trainer.cpu_offload keeps a GPU's memory free, and gpus_per_worker is 0")
        if not self.article_tree and self.workers > 1:
            raise ValueError(
                f"hardware.trainer has article_tree=false and workers={self.workers}: one sequence at a time, workers "
                "would not stay in step. Use workers=1"
            )
        if 0 < self.gpus_per_worker < 1 and self.workers > 1:
            raise ValueError(
                f"hardware.trainer has workers={self.workers} and gpus_per_worker={self.gpus_per_worker}: workers that "
                "shard one model need a GPU each. Use gpus_per_worker=1, or workers=1"
            )
        return self


class Price(Settings):
    """Of a model, in US dollars per million tokens."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]
    cached: Annotated[float, Field(ge=0)] | None = None  # input found in the prefix cache; None: as any input

    def cost_micro_usd(self, tokens_in: float, tokens_cached: float, tokens_out: float) -> float:
        """What the tokens cost, in millionths of a US dollar. `tokens_cached` are part of `tokens_in`."""
        cached_price = self.input if self.cached is None else self.cached
        return (tokens_in - tokens_cached) * self.input + tokens_cached * cached_price + tokens_out * self.output


class Server(Settings):
    """An OpenAI-compatible server: vLLM's own, or a hosted one."""

    base_url: str  # such as http://host:8000/v1
    api_key_env: str | None = None  # name of the environment variable that holds the key; None: the server wants none
    concurrency: Annotated[int, Field(gt=0)] = 32  # requests under way at once
    timeout: Annotated[float, Field(gt=0)] = 120  # seconds for one try, from sending to the last byte of its reply
    tries: Annotated[int, Field(gt=0)] = 8  # of one request, before its row is set aside
    max_wait: Annotated[float, Field(gt=0)] = (
        120  # seconds that waits between tries grow to; a server that asks for more is given up
    )
    # By model: each record then says what its stage has cost.
    prices: dict[str, Price] = Field(default_factory=dict)

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "a server's base_url holds a user, a password or a query: name the key's variable in api_key_env"
            )
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"a server's base_url is {value!r}: it should be an address such as http://host:8000/v1")
        return value

    @field_validator("api_key_env", mode="before")
    @classmethod
    def _names_a_variable(cls, value: Any) -> Any:
        if value is not None and not re.fullmatch("[A-Z][A-Z0-9_]*", str(value)):  # a key, for all we know: not shown
            raise ValueError(
                "a server's api_key_env should be the name of an environment variable, in capitals, such as "
                "OPENAI_API_KEY, and not the key itself"
            )
        return value


class Hardware(Settings):
    policy: EngineHardware = EngineHardware()
    judge: EngineHardware = EngineHardware()
    trainer: TrainerHardware = TrainerHardware()
    # By a name of yours, which judge.served and compare.* use.
    servers: dict[str, Server] = Field(default_factory=dict)
    # Policy, judge and the reference each have their own place: summaries, scores and references run as one pipeline,
    # and no row waits for a table to end. On a single GPU leave it off: they then take turns.
    together: bool = False
    # Logical CPUs of a Ray that we start ourselves. None: what the machine has, or what these settings need.
    ray_cpus: Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _has_room(self) -> "Hardware":
        if self.ray_cpus is not None and self.ray_cpus < self.cpus() - 1:
            raise ValueError(
                f"hardware.ray_cpus is {self.ray_cpus}, and these settings need {self.cpus() - 1} at least, or they "
                "would wait for ever: raise it, or lower cpus_per_replica, cpus_per_worker or replicas"
            )
        return self

    @model_validator(mode="after")
    def _engines_fit_their_part_of_a_gpu(self) -> "Hardware":
        for name, engine in (("policy", self.policy), ("judge", self.judge)):
            part, memory = engine.gpus_per_replica, engine.gpu_memory_utilization
            if 0 < part < 1 and memory > part:
                raise ValueError(
                    f"hardware.{name} has gpus_per_replica={part:g} and gpu_memory_utilization={memory:g}: vLLM would "
                    "take more of the GPU's memory than this engine's part, and leave too little for the next one. "
                    f"Set gpu_memory_utilization to {part:g} or less"
                )
        return self

    def cpus(self) -> int:
        """Logical CPUs that Ray must have, for the fewest replicas. With fewer, Ray Data waits for ever, without a
        word."""
        engines = [engine.replicas.min * engine.cpus_per_replica for engine in (self.policy, self.judge)]
        engines.append(self.trainer.cpus_per_worker)  # one reference at least
        trainers = self.trainer.workers * self.trainer.cpus_per_worker
        # Two beside the actors: a task that reads or writes, and Ray Train's controller.
        return math.ceil(max(sum(engines) if self.together else max(engines), trainers)) + 2

    def within(self, cpus: float) -> "Hardware":
        """The same on a Ray with fewer logical CPUs: each engine and worker then asks for a smaller share of them.

        A share is a place in Ray's queue and a number of threads; nothing but speed depends on it.
        """
        share = (cpus - 1) / (self.cpus() - 2)  # one CPU stays free for tasks that read and write
        if cpus >= self.cpus() or share <= 0:
            return self

        def less(cpus_wanted: float) -> float:
            scaled = cpus_wanted * share
            return math.floor(scaled) if scaled >= 1 else math.floor(scaled * 100) / 100

        return self.model_copy(
            update={
                "policy": self.policy.model_copy(update={"cpus_per_replica": less(self.policy.cpus_per_replica)}),
                "judge": self.judge.model_copy(update={"cpus_per_replica": less(self.judge.cpus_per_replica)}),
                "trainer": self.trainer.model_copy(update={"cpus_per_worker": less(self.trainer.cpus_per_worker)}),
            }
        )

    def gpus(self) -> float:
        """GPUs that must be there at one time, for the fewest replicas."""
        engines = [engine.replicas.min * engine.gpus_per_replica for engine in (self.policy, self.judge)]
        engines.append(self.trainer.gpus_per_worker)
        trainers = self.trainer.workers * self.trainer.gpus_per_worker
        return max(sum(engines) if self.together else max(engines), trainers)


def driver_node_options() -> dict[str, Any]:
    """Options of an actor that keeps something for its driver: on its node, so that no other takes it along.

    It asks for no CPU. Killed, it is started again, with nothing in it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
