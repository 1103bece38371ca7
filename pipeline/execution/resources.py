"""Builds what a stage needs and its result does not depend on: pools of engines and models, a folder, progress.

Everything is built on the driver and is only a recipe for an actor. No engine and no model is loaded here.
"""

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from judges.base import Prompt
from pipeline.config import Alignment, Config
from pipeline.config.hardware import EngineHardware, Replicas, Server
from pipeline.config.servers import ComparedModel, ServedModel
from pipeline.execution.progress import StageProgress
from pipeline.inference.base import Engine
from pipeline.inference.pool import EnginePool
from pipeline.judging.factory import make_judge, reply_method
from pipeline.stages.base import JUDGE_ENGINES
from pipeline.stages.references import load_reference
from pipeline.storage.ledger import Artifact
from pipeline.storage.model_files.hub import fetch, locate
from pipeline.training.tracking import open_trackers


def provide_resources(
    names: Sequence[str],
    config: Config | Alignment,
    inputs: Mapping[str, Artifact],
    root: str,
    address: str,
    progress: StageProgress,
) -> dict[str, Any]:
    """Build the resources that `Stage.uses` names.

    Args:
        names: `policy_engine` samples the input `policy`, `model` is its location; `judge_engine` and
            `second_judge_engine` run the judges; `X_scorer` holds the input X, frozen, for log-probabilities;
            `trainer` is the hardware of the training workers; `folder`, `progress` and `logging` are the artifact's
            folder, its progress bar and its trackers.
        config: of the run.
        inputs: of the stage, by name.
        root, address: of the artifact that is to be made.
    """
    # Every table gets a seed of its own, so that no two rounds draw alike. The run's name has no part in it.
    seed = zlib.crc32(f"{config.seed}/{address}".encode())
    sections = {engine: section for section, engine in JUDGE_ENGINES.items()}

    def build(name: str) -> Any:
        if name in sections:
            return _judge_engine(config, sections[name], seed)
        if name.endswith("_scorer"):
            return _scorer(config, inputs[name.removesuffix("_scorer")].record)
        match name:
            case "policy_engine":
                return _policy_engine(config, inputs["policy"].record, seed)
            case "model":
                return locate(inputs["policy"].record["model"])
            case "trainer":
                return config.hardware.trainer
            case "folder":
                return f"{root}/{address}"
            case "progress":
                return partial(_report_step, progress)
            case "logging":
                return partial(open_trackers, config.report_to, root, address)
        raise ValueError(f"no resource is called {name!r}")

    return {name: build(name) for name in names}


def _policy_engine(config: Config | Alignment, policy: Mapping[str, Any], seed: int) -> EnginePool:
    if "served" in policy:
        served = ComparedModel.model_validate(policy["served"])
        return _server_pool(policy["model"], served, config, config.hardware.policy)
    settings, hardware = config.policy, config.hardware.policy
    model = locate(policy["model"])
    return EnginePool(
        partial(_make_vllm_engine, model, settings.dtype, settings.max_model_len, seed, hardware), hardware
    )


def _judge_engine(config: Config | Alignment, section: str, seed: int) -> EnginePool:
    """The pool of a judge. Both judges share `hardware.judge`, because they never run at the same time."""
    assert isinstance(config, Config), "only rounds have a judge"
    judge, hardware = getattr(config, section), config.hardware.judge
    if judge.model is None:
        reply = reply_method(make_judge(judge, config.seed, section))
        assert reply is not None, "make_judge refuses a judge that has neither a model nor replies of its own"
        return EnginePool(partial(_make_scripted_engine, reply), hardware)
    if judge.served:
        return _server_pool(judge.model, judge.served, config, hardware)
    model = locate(judge.model)
    return EnginePool(partial(_make_vllm_engine, model, judge.dtype, judge.max_model_len, seed, hardware), hardware)


def _server_pool(model: str, served: ServedModel, config: Config | Alignment, hardware: EngineHardware) -> EnginePool:
    """One actor that asks a server. With more, the server would get more requests than its `concurrency` allows."""
    one_actor = hardware.model_copy(update={"replicas": Replicas(min=1, max=1), "gpus_per_replica": 0})
    return EnginePool(partial(_make_server_engine, model, served, config.hardware.servers[served.server]), one_actor)


def _scorer(config: Config | Alignment, policy: Mapping[str, Any]) -> EnginePool:
    """A pool of frozen policies, on the hardware that will train, so that the values come from the same kernels."""
    trainer = config.hardware.trainer
    hardware = EngineHardware(
        # In a pipeline it begins with the hardware that the engines leave, and grows when they end.
        replicas=Replicas(min=1 if config.hardware.together else trainer.workers, max=trainer.workers),
        gpus_per_replica=trainer.gpus_per_worker,
        cpus_per_replica=trainer.cpus_per_worker,
    )
    load = partial(load_reference, locate(policy["model"]), config.policy.dtype, policy["digest"], trainer)
    # One batch at a time: it fills the model's threads or its GPU, and a second one would need as much memory again.
    return EnginePool(load, hardware, at_once=1)


def _make_vllm_engine(model: str, dtype: str, max_model_len: int | None, seed: int, hardware: EngineHardware) -> Engine:
    import ray

    from pipeline.inference.vllm import VllmEngine

    # Engines with the same seed would draw alike: two replicas, or an engine and the one that replaced it.
    actor = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None  # else asking starts a Ray
    engine_seed = zlib.crc32(f"{seed}/{actor}/{os.getpid()}".encode())
    return VllmEngine(fetch(model), dtype, max_model_len, engine_seed, hardware)


def _make_server_engine(model: str, served: ServedModel, server: Server) -> Engine:
    from pipeline.inference.openai_server import OpenAIServerEngine

    return OpenAIServerEngine(model, served, server)


def _make_scripted_engine(reply: Callable[[Prompt, int], str]) -> Engine:
    from pipeline.inference.scripted import ScriptedEngine

    return ScriptedEngine(reply)


def _report_step(progress: StageProgress, line: Mapping[str, Any]) -> None:
    if "loss" in line:
        progress.reach(line["step"], line["steps"])
