"""What a run provides to a stage by name: engines, models, workers, a folder. Built from settings and hardware.

Everything here is made on the driver and is only a recipe for an actor: no engine and no model is loaded.
"""

import os
import zlib
from collections.abc import Sequence
from functools import partial
from typing import Any

from pipeline.config import Alignment, Config
from pipeline.config.hardware import EngineHardware, Replicas, Server
from pipeline.config.servers import ComparedModel, ServedModel
from pipeline.execution.progress import StageProgress
from pipeline.inference.base import Engine
from pipeline.inference.pool import EnginePool
from pipeline.judging.factory import make_judge
from pipeline.stages.references import load_reference
from pipeline.storage.ledger import Artifact
from pipeline.storage.model_files.hub import fetch, locate
from pipeline.training.tracking import open_trackers


def provide_resources(
    names: Sequence[str],
    config: Config | Alignment,
    inputs: Sequence[Artifact],
    root: str,
    address: str,
    tick: StageProgress,
) -> dict[str, Any]:
    """What `Stage.uses` asks for.

    Args:
        names: policy_engine, judge_engine, second_engine, model, scorer, base_scorer, trainer, folder, progress,
            logging.
        config: its hardware above all.
        inputs: of the stage; the first policy among them is `model`, and what `policy_engine` and `scorer` run; the
            last is what `base_scorer` runs.
        root, address: of the artifact that is to be made.
        tick: what shows the progress.
    """
    policies = [artifact.record for artifact in inputs if "model" in artifact.record]
    policy = policies[0] if policies else {}
    hired = "served" in policy
    model = locate(policy["model"]) if policy and not hired else None
    # Another seed for every table, so that no two rounds draw alike; the run's name has no part in it.
    seed = zlib.crc32(f"{config.seed}/{address}".encode())
    there = {
        "policy_engine": lambda: _hired_engine(config, policy) if hired else _policy_engine(config, model, seed),
        "judge_engine": lambda: _judge_engine(config, "judge", seed),
        "second_engine": lambda: _judge_engine(config, "second_judge", seed),
        "model": lambda: model,
        "scorer": lambda: _scorer(config, policy),
        "base_scorer": lambda: _scorer(config, policies[-1]),
        "trainer": lambda: config.hardware.trainer,
        "folder": lambda: f"{root}/{address}",
        "progress": lambda: partial(_step, tick),
        "logging": lambda: partial(open_trackers, config.report_to, root, address),
    }
    return {name: there[name]() for name in names}


def _policy_engine(config: Config | Alignment, model: str | None, seed: int) -> EnginePool:
    assert model is not None, "a stage that samples has a policy among its inputs"
    policy, hardware = config.policy, config.hardware.policy
    return EnginePool(partial(_vllm, model, policy.dtype, policy.max_model_len, seed, hardware), hardware)


def _hired_engine(config: Config | Alignment, policy: dict[str, Any]) -> EnginePool:
    served = ComparedModel.model_validate(policy["served"])
    return _served_pool(policy["model"], served, config, config.hardware.policy)


def _served_pool(model: str, served: ServedModel, config: Config | Alignment, hardware: EngineHardware) -> EnginePool:
    """A model at a server, asked by one actor, so that its concurrency is the whole."""
    one = hardware.model_copy(update={"replicas": Replicas(min=1, max=1), "gpus_per_replica": 0})
    return EnginePool(partial(_served, model, served, config.hardware.servers[served.server]), one)


def _judge_engine(config: Config | Alignment, which: str, seed: int) -> EnginePool:
    """The judge's pool, or the second judge's: they never run at one time, and so share the judge's hardware."""
    assert isinstance(config, Config), "only rounds have a judge"
    judge, hardware = getattr(config, which), config.hardware.judge
    if judge.model is None:
        return EnginePool(partial(_scripted, make_judge(judge, config.seed)), hardware)
    if judge.served:
        return _served_pool(judge.model, judge.served, config, hardware)
    model = locate(judge.model)
    return EnginePool(partial(_vllm, model, judge.dtype, judge.max_model_len, seed, hardware), hardware)


def _scorer(config: Config | Alignment, policy: dict[str, Any]) -> EnginePool:
    """A frozen policy, on the hardware that will train: the values then come from the same kernels."""
    trainer = config.hardware.trainer
    hardware = EngineHardware(
        # In a pipeline beside the engines it takes the place that is there, and more as they end.
        replicas=Replicas(min=1 if config.hardware.together else trainer.workers, max=trainer.workers),
        gpus_per_replica=trainer.gpus_per_worker,
        cpus_per_replica=trainer.cpus_per_worker,
    )
    load = partial(load_reference, locate(policy["model"]), config.policy.dtype, policy["digest"], trainer)
    # One batch fills the model's threads or its GPU, and two would need the memory of two.
    return EnginePool(load, hardware, at_once=1)


def _vllm(model: str, dtype: str, max_model_len: int | None, seed: int, hardware: EngineHardware) -> Engine:
    import ray

    from pipeline.inference.vllm import VllmEngine

    # Engines with one seed would draw alike: two replicas the same samples of like prompts, and an engine that took the
    # place of a dead one what that one drew.
    actor = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None  # asked, it would start a Ray
    one_of_many = f"{seed}/{actor}/{os.getpid()}"
    return VllmEngine(fetch(model), dtype, max_model_len, zlib.crc32(one_of_many.encode()), hardware)


def _served(model: str, served: ServedModel, server: Server) -> Engine:
    from pipeline.inference.openai_server import OpenAIServerEngine

    return OpenAIServerEngine(model, served, server)


def _scripted(judge: Any) -> Engine:
    from pipeline.inference.scripted import ScriptedEngine

    return ScriptedEngine(judge.reply)


def _step(tick: StageProgress, line: dict[str, Any]) -> None:
    if "loss" in line:
        tick.reach(line["step"], line["steps"])
