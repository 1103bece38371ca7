"""Checks a run before Ray starts: settings, files, models, servers and the memory of GPUs."""

import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config import Alignment, Config, UserError
from pipeline.config.base import Thinking
from pipeline.config.hardware import Hardware
from pipeline.config.judging import JudgeSettings
from pipeline.data.pair_tokenizer import load_pair_tokenizer
from pipeline.execution.planning import gpu_memory
from pipeline.execution.planning.engine_arguments import check_engine_arguments, drafts_tokens
from pipeline.execution.planning.gpu_memory import MemoryNeed, PackedRow
from pipeline.execution.progress import Display
from pipeline.execution.ray_cluster import gpu_memory_here
from pipeline.inference import thinking as thoughts
from pipeline.inference.sampling import instruction_prompt
from pipeline.judging import preference
from pipeline.judging.factory import compares_summaries, make_judge, score_kind
from pipeline.judging.user_code.judge_trial import check_judge
from pipeline.stages import articles
from pipeline.stages.base import JUDGE_ENGINES, Stage
from pipeline.storage import run_folder
from pipeline.storage.ledger import Ledger
from pipeline.storage.model_files import chat_template, hub, shapes
from pipeline.storage.model_files.chat_template import TemplateRefusal
from pipeline.training import tracking

# In the config.json of a model with recurrent layers, or with scores or logits that are changed. Only then does the
# check of article trees import torch, which takes seconds.
_UNUSUAL = re.compile(r'"\w*(mamba|ssm_|conv|linear_attn|linear_num|linear_att|recurr|hybrid|layers_block|soft_?cap)')


def check_rounds(settings: Config, display: Display) -> Ledger:
    """Check what the settings of a run of rounds name. Returns the run folder.

    Raises:
        UserError: a corpus, a model or a folder cannot be used, or a model does not fit into GPU memory.
    """
    check_trained_model(settings)
    check_thinking("policy", settings.policy.model, settings.policy.thinking)
    if not isinstance(settings.policy.instruction, str):
        prompt = instruction_prompt(settings.policy, max_tokens=0)
        check_template("policy.instruction", settings.policy.model, prompt.messages, "policy.merge_system")
    check_judges(settings)
    check_engines(settings)
    articles.check_corpus(settings.articles)
    check_preference(settings)
    tracking.check_trackers(settings.report_to)
    check_gpu_memory(settings, gpu_memory_here())
    warn_of_removed_folders(settings, display)
    return open_run_folder(settings)


def check_trained_model(settings: Config | Alignment) -> None:
    """Check that the policy can be trained as the settings say.

    Raises:
        UserError: it cannot be used; or its base is to be loaded in 4 bits, and bitsandbytes is not installed.
    """
    model, training = settings.policy.model, settings.training
    hub.check_model("policy.model", model)
    hub.check_lora(model, training.lora)
    hub.check_router_loss(model, training.router_aux_loss_coef)
    if settings.hardware.trainer.article_tree:
        _check_article_tree(model)
    if training.load_in_4bit and not importlib.util.find_spec("bitsandbytes"):
        raise UserError(
            "training.load_in_4bit is set, and bitsandbytes is not installed: `make qlora` installs it, as does "
            "pip install 'rondo-dpo[qlora]'"
        )


def _check_article_tree(model: str) -> None:
    """Check that a policy can be scored on article trees, as far as its config shows it.

    A model at a URI is checked where it is loaded.

    Raises:
        UserError: it cannot.
    """
    folder = None if "://" in model else hub.base_folder(model)
    if folder is None or not _UNUSUAL.search(Path(folder, "config.json").read_text(encoding="utf-8")):
        return
    from pipeline.training.modeling.loading import check_article_tree

    try:
        check_article_tree(folder)
    except ValueError as error:
        raise UserError(f"policy.model is {model!r}: {error}") from None


def open_run_folder(settings: Config | Alignment) -> Ledger:
    """Open the run folder. Raises UserError if it cannot be opened, or if the other command made it."""
    ledger = Ledger(settings.run)
    run_folder.check_command(ledger, settings)
    return ledger


def check_judges(settings: Config, sections: Iterable[str] = tuple(JUDGE_ENGINES)) -> None:
    """Check that the models of the judges exist and are complete, and try the user's own judges. Raises UserError."""
    for section in sections:
        if (judge := getattr(settings, section)) is None:
            continue
        for name, single in judge.single_judges(section).items():
            if single.model and not single.served:
                hub.check_model(f"{name}.model", single.model)
                if single.kind == "reward":
                    hub.check_reward_model(f"{name}.model", single.model)
        check_judge(judge, settings.seed, section)
        for name, single in judge.single_judges(section).items():
            if single.model:
                _check_judge_thinks(name, single, settings.seed)
            if single.kind == "reward" and not isinstance(single.settings.get("instruction", ""), str):
                prompt = make_judge(single, settings.seed, name).ask_scores("Text.", ["Summary."])[0]
                setting = f"{name}.settings"
                check_template(f"{setting}.instruction", str(single.model), prompt.messages, f"{setting}.merge_system")


def _check_judge_thinks(section: str, judge: JudgeSettings, seed: int) -> None:
    assert judge.model is not None
    engine = getattr(make_judge(judge, seed, section), "engine", "text")
    if judge.thinking and engine != "text":
        raise UserError(
            f"{section}.thinking is set, and {section}.kind is {judge.kind}, which writes no text (its engine is "
            f"{engine}): remove it"
        )
    if not judge.served and engine in ("text", "likelihood"):
        check_thinking(section, judge.model, judge.thinking, can_think=engine == "text")


def check_thinking(section: str, model: str, thinking: Thinking | None, can_think: bool = True) -> None:
    """Check that a model of the settings can think, if it is to, or can be told not to.

    `hub.check_model` must have accepted the model. A model at a URI is checked where its engine starts.

    Args:
        section: the section of the settings that names the model.
        model: its path or hub name.
        thinking: how it thinks; None: it does not.
        can_think: whether the section may have `thinking`.

    Raises:
        UserError: its chat template does not allow what the settings want.
    """
    if folder := _tokenizer_folder(model):
        thoughts.check_folder(section, model, folder, thinking, can_think)


def _tokenizer_folder(model: str) -> str | None:
    """The folder of a model's tokenizer. None for a model at a URI, which is fetched where its engine starts."""
    if "://" in model and not model.startswith("file://"):
        return None
    folder = hub.fetch(model)
    adapter = hub.adapter_config(folder)
    if adapter is not None and not os.path.isfile(os.path.join(folder, "tokenizer_config.json")):
        folder = hub.fetch(adapter["base_model_name_or_path"])
    return folder


def check_template(setting: str, model: str, messages: Sequence[dict[str, str]], merging: str) -> None:
    """Check that the chat template of a model takes an instruction of several messages.

    An instruction of one text needs no check: every template takes a message of the user. A model at a URI is checked
    where its engine starts.

    Args:
        setting: the setting that has the instruction.
        model: path or hub name of the model.
        messages: the conversation, as the model will get it.
        merging: the setting that merges system messages.

    Raises:
        UserError: the template refuses it, or the model has none.
    """
    folder = _tokenizer_folder(model)
    if folder is None:
        return
    tokenizer = load_pair_tokenizer(folder)
    if not tokenizer.has_chat_template:
        raise UserError(
            f"{setting} is a list of messages, and the tokenizer of {model} has no chat template: write it as one "
            "text, or use a model with a chat template"
        )
    try:
        chat_template.render(tokenizer.tokenizer, messages)
    except TemplateRefusal as refusal:
        raise UserError(f"{setting}: {model}: {refusal.with_remedy(merging)}") from None


def check_engines(settings: Config, sections: Iterable[str] = ("policy", *JUDGE_ENGINES)) -> None:
    """Check the arguments for vLLM of the policy and the judges. `check_judges` must have accepted the judges.

    Raises:
        UserError: vLLM does not take them, or nothing would use them.
    """
    kwargs = settings.hardware.judge.engine_kwargs
    in_vllm = [name for name, judge in settings.judges.items() if _runs_vllm(settings, name, judge)]
    if kwargs and not in_vllm:
        raise UserError(f"hardware.judge.engine_kwargs has {', '.join(kwargs)}, and vLLM runs no judge here: remove it")
    for name, judge in settings.judges.items():
        if name.partition(".")[0] not in sections:
            continue
        if name in in_vllm:
            check_engine_arguments(name, "hardware.judge", judge.engine_kwargs, kwargs)
        elif judge.engine_kwargs:
            raise UserError(f"{name}.engine_kwargs is set, and vLLM does not run {name}: remove it")
    if "policy" in sections:
        policy, hardware = settings.policy, settings.hardware.policy
        check_engine_arguments("policy", "hardware.policy", policy.engine_kwargs, hardware.engine_kwargs)
        if settings.summaries.min_p and drafts_tokens(hardware.engine_kwargs | policy.engine_kwargs):
            raise UserError(
                f"summaries.min_p is {settings.summaries.min_p:g}, which vLLM leaves out when it decodes "
                "speculatively: remove it, or the speculative decoding in hardware.policy.engine_kwargs"
            )


def check_preference(settings: Config) -> None:
    """Check that preference and pairs fit the judge's scores, and try the user's own preference. Raises UserError."""
    judge, name = settings.judge, settings.pairs.preference
    weights = [member.weight for member in judge.members.values()]
    preference.check_preference(settings.pairs, judge.questions, judge.logprobs, weights)
    if settings.pairs.rejected == "base" and compares_summaries(judge, settings.seed):
        raise UserError(
            f"pairs.rejected is base, and judge.kind is {judge.kind}, which compares samples of one policy with each "
            "other, so its scores of the base's samples cannot be compared with them: set pairs.rejected to policy"
        )
    is_scoring = judge.is_user_class and score_kind(judge, settings.seed) == "value"
    if is_scoring and name in preference.RULES and name != "higher_score":
        raise UserError(
            f"pairs.preference is {name}, which compares right answers, and judge.kind is {judge.kind}, which gives "
            "scores: set it to higher_score, or to a function of your own"
        )


def check_servers(settings: Config, unmade: Mapping[str, Stage]) -> None:
    """Check that the servers for the unmade stages can serve. A finished run needs no server.

    Args:
        unmade: the stages that the run will make, by address.

    Raises:
        UserError: a server fails a check of `inference/server/server_check.py`.
    """
    from pipeline.inference.server.server_check import check_server

    for name, judge in settings.judges.items():
        engine = JUDGE_ENGINES[name.partition(".")[0]]
        if judge.served and any(engine in stage.uses for stage in unmade.values()):
            check_server(name, str(judge.model), judge.served, settings.hardware, judge.logprobs, judge.thinking)
    for name, other in settings.compare.items():
        if any(address.startswith(f"compare/{name}/") for address in unmade):
            check_server(f"compare.{name}", other.model, other, settings.hardware, thinking=other.thinking)


def warn_of_removed_folders(settings: Config | Alignment, display: Display) -> None:
    """In a job of `ray job submit`, warn of folders that Ray will remove with the job's working directory."""
    if "RAY_JOB_ID" not in os.environ:
        return
    removed = "is in this job's copy of the working directory, which Ray removes later"
    if "://" not in settings.run and not os.path.isabs(settings.run):
        display.warn(f"run={settings.run} {removed}: give a path or URI that outlives it, as in run=$PWD/runs/demo")
    lora, model = settings.training.lora, settings.policy.model
    if lora is not None and not lora.merge and os.path.isdir(model) and not os.path.isabs(model):
        display.warn(
            f"policy.model={model} {removed}, and the adapters of this run need it: give a path or URI that outlives "
            "it, or set training.lora.merge=true"
        )


# Memory of GPUs


def check_gpu_memory(settings: Config | Alignment, memory: float | None) -> None:
    """Refuse a model that does not fit into the memory of the GPUs.

    Nothing is refused if the memory is unknown, or if the run joins a Ray cluster, whose nodes may have other GPUs.

    Args:
        settings: the settings of the run.
        memory: bytes of one GPU; None: unknown.

    Raises:
        UserError: a model cannot fit.
    """
    if memory is not None and "RAY_ADDRESS" not in os.environ:
        memory_needs(settings, memory, PackedRow(0, 0))


def memory_needs(
    settings: Config | Alignment, memory: float | None, row: PackedRow, used: set[str] | None = None
) -> tuple[list[MemoryNeed], list[str]]:
    """The memory that each model of a run takes.

    Args:
        settings: the settings of the run.
        memory: bytes of one GPU; None: unknown, and nothing is refused.
        row: the largest packed row of training.
        used: the resources of the stages that the run will make; None: all.

    Returns:
        the needs, and a note for each model whose size is unknown.

    Raises:
        UserError: a model cannot fit on GPUs of this size.
    """
    uses: dict[str, tuple[str, Callable[[], _Needs]]] = {}
    if isinstance(settings, Config):
        for section, model, place in _engines(settings, used):
            uses[section] = model.model, partial(_engine_need, settings, section, model, place, memory)
    if used is None or "trainer" in used:
        uses["training"] = settings.policy.model, partial(_training_needs, settings, memory, row, used)
    found, unknown = [], []
    for use, (name, find) in uses.items():
        try:
            found.append(find())
        except shapes.UnknownShapes as error:
            unknown.append(f"{use}: the size of {name} is unknown ({error})")
    if any(refusals := [refusal for each in found for refusal in each.refusals]):
        raise UserError("\n".join(refusals))
    return [need for each in found for need in each.needs], unknown


@dataclass
class _Needs:
    """The memory that one use of a model takes, and why the model cannot fit."""

    needs: list[MemoryNeed]
    refusals: list[str] = field(default_factory=list)


def _engine_need(settings: Config, section: str, model: Any, place: Any, memory: float | None) -> _Needs:
    """What the policy's or a judge's engine needs. Raises UnknownShapes."""
    sizes = shapes.read_shapes(model.model)
    if section == "policy" or _runs_vllm(settings, section, model):
        arguments = section, sizes, model.dtype, model.max_model_len, place
        need = gpu_memory.engine_memory(*arguments)
        refuse = partial(gpu_memory.engine_refusal, *arguments)
    else:
        need = gpu_memory.scoring_memory(section, sizes, model.dtype, place)
        refuse = partial(gpu_memory.scoring_refusal, need, model.dtype)
    refusal = refuse(memory) if memory is not None and place.gpus_per_replica else None
    return _Needs([need], [refusal] if refusal else [])


def _training_needs(
    settings: Config | Alignment, memory: float | None, row: PackedRow, used: set[str] | None
) -> _Needs:
    """What training and a frozen policy that is sharded need. Raises UnknownShapes."""
    policy, training = settings.policy, settings.training
    trainer = choose_sharding(settings, lambda: memory).trainer
    sizes = shapes.read_shapes(policy.model), policy, training, trainer
    has_frozen_policy = _has_frozen_policy(settings, used)
    found = _Needs([gpu_memory.training_memory(*sizes, row)])
    if has_frozen_policy and trainer.shard_references:
        found.needs.append(gpu_memory.frozen_memory(*sizes))
    if memory is not None and trainer.gpus_per_worker:
        refusals = [gpu_memory.training_refusal(*sizes, row, memory)]
        refusals += [gpu_memory.frozen_policy_refusal(*sizes, memory)] if has_frozen_policy else []
        found.refusals = [refusal for refusal in refusals if refusal]
    return found


def choose_sharding(settings: Config | Alignment, find_memory: Callable[[], float | None]) -> Hardware:
    """The hardware, with `trainer.shard_references` decided if the settings leave it open and the sizes are known.

    Args:
        settings: the settings of a run.
        find_memory: returns the bytes of a GPU, or None if they are unknown. It is called only if they matter.
    """
    hardware, trainer = settings.hardware, settings.hardware.trainer
    is_open = trainer.shard_references is None and trainer.can_shard and trainer.gpus_per_worker
    memory = find_memory() if is_open else None
    if memory is None:
        return hardware
    try:
        model = shapes.read_shapes(settings.policy.model)
        sharded = gpu_memory.needs_shards(model, settings.policy, settings.training, trainer, memory)
    except shapes.UnknownShapes:
        return hardware
    return hardware.model_copy(update={"trainer": trainer.model_copy(update={"shard_references": sharded})})


def _has_frozen_policy(settings: Config | Alignment, used: set[str] | None) -> bool:
    """Whether a stage computes log-probabilities under a frozen policy: references, or drift from round 2 on."""
    scorers = {"reference_scorer"} if settings.references.source == "trainer" else set()
    scorers |= {"policy_scorer", "base_scorer"} if isinstance(settings, Config) and settings.rounds > 1 else set()
    return bool(scorers if used is None else scorers & used)


def _engines(settings: Config, used: set[str] | None) -> list[tuple[str, Any, Any]]:
    """For each model of the policy and of judges that runs here: name of its section, its settings, its hardware."""
    engines: list[tuple[str, Any, Any]] = []
    if used is None or "policy_engine" in used:
        place = settings.hardware.policy.with_arguments(settings.policy.engine_kwargs)
        engines.append(("policy", settings.policy, place))
    for name, judge in settings.judges.items():
        engine = JUDGE_ENGINES[name.partition(".")[0]]
        if judge.model and not judge.served and (used is None or engine in used):
            engines.append((name, judge, settings.judge_hardware(name).with_arguments(judge.engine_kwargs)))
    return engines


def _runs_vllm(settings: Config, section: str, judge: JudgeSettings) -> bool:
    """Whether vLLM runs a judge's model here. Other engines score texts and keep no key-value cache."""
    if judge.model is None or judge.served:
        return False
    return getattr(make_judge(judge, settings.seed, section), "engine", "text") == "text"
