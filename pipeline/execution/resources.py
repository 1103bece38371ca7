"""Builds the resources of a stage: pools of engines and of models, the artifact's folder, progress, trackers.

A stage needs its resources to run, and its result does not depend on them. A pool that is built here holds no engine
and no model yet: it tells Ray how to build them, and its actors load them when the stage runs.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from judges.base import Prompt
from pipeline.config import Alignment, Config
from pipeline.config.base import Thinking
from pipeline.config.hardware import EngineHardware, GroupHardware, Replicas, Server
from pipeline.config.judging import JudgeSettings
from pipeline.config.run import PolicySettings
from pipeline.config.servers import ComparedModel, ServedModel
from pipeline.execution.progress import StageProgress
from pipeline.inference.actors.residents import ResidentPools
from pipeline.inference.base import Engine
from pipeline.inference.pool import EnginePool
from pipeline.inference.vllm import VllmFactory
from pipeline.judging.factory import make_judge, reply_method
from pipeline.stages.base import JUDGE_ENGINES
from pipeline.stages.references import ShardedPolicy, load_reference
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
    warn: Callable[[str], None],
    residents: ResidentPools | None = None,
) -> dict[str, Any]:
    """Build the resources that `Stage.uses` names.

    Args:
        names: the resources to build. `policy_engine` is a pool of engines that sample from the input `policy`, and
            `model` is the location of that policy. `judge_engine` and `second_judge_engine` are pools of engines that
            run the judges. `X_scorer` is a pool of frozen models that compute log-probabilities under the input X.
            `trainer` is the hardware of the training workers. `folder` is the artifact's folder. `progress` and
            `logging` are functions: one updates the progress bar, the other opens the trackers.
        config: the settings of the run.
        inputs: the inputs of the stage, by name.
        root: the run folder.
        address: the address of the artifact that will be made.
        progress: the progress bar of the stage.
        warn: shows a line that a user should read.
        residents: the engines that stay from stage to stage; None: engines end with the stage.
    """
    # Every artifact gets a seed of its own, so that two rounds do not draw the same samples. The seed does not depend
    # on the run folder.
    seed = zlib.crc32(f"{config.seed}/{address}".encode())
    sections = {engine: section for section, engine in JUDGE_ENGINES.items()}
    residents = residents or ResidentPools()

    def build(name: str) -> Any:
        if name in sections:
            return _judge_engine(config, sections[name], seed, residents)
        if name.endswith("_scorer"):
            return _scorer(config, inputs[name.removesuffix("_scorer")].record, residents)
        match name:
            case "policy_engine":
                return _policy_engine(config, inputs["policy"].record, seed, residents)
            case "model":
                return locate(inputs["policy"].record["model"])
            case "trainer":
                return config.hardware.trainer
            case "folder":
                return f"{root}/{address}"
            case "progress":
                return partial(_report_step, progress)
            case "logging":
                return partial(open_trackers, config.report_to, root, address, warn)
        raise ValueError(f"no resource is called {name!r}")

    return {name: build(name) for name in names}


def _policy_engine(
    config: Config | Alignment, policy: Mapping[str, Any], seed: int, residents: ResidentPools
) -> EnginePool:
    if "served" in policy:
        served = ComparedModel.model_validate(policy["served"])
        return _server_pool(policy["model"], served, config, config.hardware.policy, served.thinking, residents)
    lora = config.training.lora
    lora_rank = lora.r if lora and not lora.merge else None
    model = locate(policy["model"])
    return _vllm_pool(model, "policy", config.policy, seed, config.hardware.policy, residents, lora_rank)


def _vllm_pool(
    model: str,
    section: str,
    settings: PolicySettings | JudgeSettings,
    seed: int,
    hardware: EngineHardware,
    residents: ResidentPools,
    lora_rank: int | None = None,
) -> EnginePool:
    """A pool of vLLM engines that run a model as its section of the settings says."""
    make = VllmFactory(
        model,
        settings.dtype,
        settings.max_model_len,
        hardware.with_arguments(settings.engine_kwargs),
        settings.thinking,
        section,
        lora_rank,
        can_sleep=residents.take_turns(hardware.gpus_per_replica),
        seed=seed,
    )
    return EnginePool(make, hardware, role=section, residents=residents)


def _judge_engine(
    config: Config | Alignment, section: str, seed: int, residents: ResidentPools
) -> EnginePool | dict[str, EnginePool]:
    """A pool of engines that run a judge; for a jury a pool for each member, by its name.

    Both judges use `hardware.judge`, as they never run at the same time.
    """
    assert isinstance(config, Config), "only rounds have a judge"
    judge: JudgeSettings = getattr(config, section)
    if judge.kind == "jury":
        return {
            name: _single_judge_engine(config, member, f"{section}.members.{name}", seed, residents)
            for name, member in judge.members.items()
        }
    return _single_judge_engine(config, judge, section, seed, residents)


def _single_judge_engine(
    config: Config, judge: JudgeSettings, section: str, seed: int, residents: ResidentPools
) -> EnginePool:
    hardware = config.judge_hardware(section)
    made = make_judge(judge, config.seed, section)
    engine = getattr(made, "engine", "text")
    if engine in ("likelihood", "reward"):
        assert judge.model is not None, f"settings refuse a {engine} judge without a model"
        return _scoring_pool(engine, judge, section, hardware, residents)
    if judge.model is None:
        if engine == "none":
            return EnginePool(_make_no_engine, hardware, role=section, residents=residents)
        reply = reply_method(made)
        assert reply is not None, "make_judge refuses a judge that has neither a model nor replies of its own"
        return EnginePool(partial(_make_scripted_engine, reply), hardware, role=section, residents=residents)
    if judge.served:
        return _server_pool(judge.model, judge.served, config, hardware, judge.thinking, residents)
    return _vllm_pool(locate(judge.model), section, judge, seed, hardware, residents)


def _scoring_pool(
    engine: str, judge: JudgeSettings, section: str, hardware: EngineHardware, residents: ResidentPools
) -> EnginePool:
    """A pool of models that score texts: causal LMs that give log-probabilities, or reward models."""
    model, on_gpu = locate(str(judge.model)), bool(hardware.gpus_per_replica)
    if engine == "likelihood":
        make = partial(_make_likelihood_engine, model, judge.dtype, judge.max_model_len, on_gpu)
    else:
        make = partial(_make_reward_engine, model, judge.dtype, judge.max_model_len, on_gpu)
    # One batch at a time: it fills the model's threads or its GPU.
    return EnginePool(make, hardware, at_once=1, role=section, residents=residents)


def _server_pool(
    model: str,
    served: ServedModel,
    config: Config | Alignment,
    hardware: EngineHardware,
    thinking: Thinking | None,
    residents: ResidentPools,
) -> EnginePool:
    """One actor that asks a server. With more, the server would get more requests than its `concurrency` allows."""
    one_actor = hardware.model_copy(update={"replicas": Replicas(min=1, max=1), "gpus_per_replica": 0})
    server = config.hardware.servers[served.server]
    make = partial(_make_server_engine, model, served, server, thinking, config.run)
    return EnginePool(make, one_actor, role=f"{model} at {served.server}", residents=residents)


def _scorer(config: Config | Alignment, policy: Mapping[str, Any], residents: ResidentPools) -> EnginePool:
    """A pool of frozen policies, on the hardware of the trainer, so that the values come from the same kernels.

    Each worker of the trainer holds a whole policy, or all together hold one.
    """
    trainer = config.hardware.trainer
    weights = locate(policy["model"]), config.policy.dtype, policy["digest"]
    load: Any
    if trainer.shard_references:
        load = partial(ShardedPolicy, *weights, trainer)
        hardware: EngineHardware = GroupHardware(
            workers=trainer.workers,
            gpus_per_replica=trainer.workers * trainer.gpus_per_worker,
            cpus_per_replica=trainer.workers * trainer.cpus_per_worker,
            batch_size=trainer.workers * EngineHardware().batch_size,
        )
    else:
        load = partial(load_reference, *weights, trainer, config.training.load_in_4bit)
        hardware = EngineHardware(
            # With hardware.together the engines run at the same time: start with one replica, and add replicas when
            # the engines end.
            replicas=Replicas(min=1 if config.hardware.together else trainer.workers, max=trainer.workers),
            gpus_per_replica=trainer.gpus_per_worker,
            cpus_per_replica=trainer.cpus_per_worker,
        )
    # One batch at a time: it fills the model's threads or its GPU, and a second one would need as much memory again.
    return EnginePool(load, hardware, at_once=1, role="scorer", residents=residents)


def _make_server_engine(model: str, served: ServedModel, server: Server, thinking: Thinking | None, run: str) -> Engine:
    from pipeline.inference.server.batch_server import BatchServerEngine
    from pipeline.inference.server.openai_server import OpenAIServerEngine

    if server.batch:
        return BatchServerEngine(model, served, server, thinking, run)
    return OpenAIServerEngine(model, served, server, thinking)


def _make_likelihood_engine(model: str, dtype: str, max_model_len: int | None, on_gpu: bool) -> Engine:
    from pipeline.judging.engines.likelihood import LikelihoodEngine

    return LikelihoodEngine(fetch(model), dtype, max_model_len, on_gpu)


def _make_reward_engine(model: str, dtype: str, max_model_len: int | None, on_gpu: bool) -> Engine:
    from pipeline.judging.engines.reward import RewardEngine

    return RewardEngine(fetch(model), dtype, max_model_len, on_gpu)


def _make_no_engine() -> Engine:
    from pipeline.inference.scripted import ScriptedEngine

    return ScriptedEngine(_refuse)


def _refuse(prompt: Prompt, sample: int) -> str:
    raise ValueError("the judge's engine is `none`, and it made a prompt")


def _make_scripted_engine(reply: Callable[[Prompt, int], str]) -> Engine:
    from pipeline.inference.scripted import ScriptedEngine

    return ScriptedEngine(reply)


def _report_step(progress: StageProgress, line: Mapping[str, Any]) -> None:
    if "loss" in line:
        progress.reach(line["step"], line["steps"])
