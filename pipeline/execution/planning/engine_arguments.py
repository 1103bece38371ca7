"""Checks arguments for vLLM (`engine_kwargs`) by the source of the installed vLLM, before an engine starts.

Arguments that change only speed and memory are settings of the hardware. All others belong to the model's section,
which is part of recipes: an argument that we do not know may change what a model replies.

The source is parsed, not imported: an import takes seconds, and here only names and types are needed.
"""

import ast
import functools
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Optional, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from pipeline.config import UserError
from pipeline.config.messages import did_you_mean

# What an engine replies does not depend on these, except for rounding, as it does on the number of GPUs.
_SPEED_ONLY = frozenset(
    """
    all2all_backend async_scheduling attention_backend attention_config block_size compilation_config
    cp_kv_cache_interleave_size cpu_distributed_timeout_seconds cpu_offload_gb cpu_offload_params
    cudagraph_capture_sizes dbo_decode_token_threshold dbo_prefill_token_threshold dcp_comm_backend
    dcp_kv_cache_interleave_size dcp_q_replicate decode_context_parallel_size disable_cascade_attn
    disable_custom_all_reduce disable_hybrid_kv_cache_manager distributed_timeout_seconds enable_chunked_prefill
    enable_dbo enable_ep_weight_filter enable_eplb enable_expert_parallel enable_flashinfer_autotune enforce_eager
    eplb_config expert_placement_strategy fully_sharded_loras gdn_prefill_backend kda_decode_backend kda_prefill_backend
    kernel_config kv_cache_memory_bytes kv_offloading_backend kv_offloading_size linear_backend
    long_prefill_token_threshold long_prefill_token_threshold_adaptive max_cpu_loras max_cudagraph_capture_size
    max_num_active_seqs max_num_batched_tokens max_num_scheduled_tokens max_num_seqs max_parallel_loading_workers
    model_loader_extra_config moe_backend num_gpu_blocks_override numa_bind numa_bind_cpus numa_bind_nodes
    offload_backend offload_group_size offload_num_in_group offload_params offload_prefetch_step optimization_level
    performance_mode pipeline_parallel_size prefill_context_parallel_size prefill_schedule_interval
    prefix_cache_retention_interval prefix_caching_hash_algo prefix_match_unit safetensors_load_strategy
    safetensors_prefetch_block_size safetensors_prefetch_num_threads scheduler_reserve_full_isl scheduling_policy
    spec_method spec_model spec_tokens speculative_config stream_interval ubatch_size watermark
    """.split()
)
# The setting of Rondo for each argument that it sets itself; None: it has no setting. `data_parallel_…` are others.
_SET_BY_RONDO: dict[str, str | None] = {
    "model": "{section}.model",
    "dtype": "{section}.dtype",
    "max_model_len": "{section}.max_model_len",
    "seed": "seed",
    "tensor_parallel_size": "{hardware}.gpus_per_replica",
    "gpu_memory_utilization": "{hardware}.gpu_memory_utilization",
    "data_parallel_size": "{hardware}.replicas",
    "distributed_executor_backend": "{hardware}.nodes_per_replica",
    "nnodes": "{hardware}.nodes_per_replica",
} | dict.fromkeys(
    """
    code_revision config_format convert default_mm_loras device_ids disable_log_stats
    download_dir enable_lora enable_prefix_caching enable_prompt_embeds enable_sleep_mode hf_config_path hf_token
    io_processor_plugin load_format log_config_file log_level logging_config logits_processors logprobs_mode
    lora_dtype lora_target_modules master_addr master_port max_logprobs max_lora_rank max_loras max_num_queued_reqs
    max_num_queued_tokens model_weights node_rank pooler_config reasoning_config reasoning_parser
    reasoning_parser_plugin revision runner scheduler_cls served_model_name skip_tokenizer_init tokenizer tokenizer_mode
    tokenizer_revision tokens_only trust_remote_code worker_cls worker_extension_cls
    """.split()
)
# Speculative decoding samples from the model's own distribution, if drafts are rejected by one of these methods.
_LOSSLESS = ("standard", "block")
# Sections of arguments whose annotation is only `dict[str, Any]`.
_SECTIONS = {"speculative_config": ("vllm.config.speculative", "SpeculativeConfig")}


def check_engine_arguments(
    section: str, hardware: str, of_model: Mapping[str, Any], of_engine: Mapping[str, Any]
) -> None:
    """Check the arguments for one engine.

    Args:
        section: the section of the model, such as `judge`.
        hardware: the section of its hardware, such as `hardware.judge`.
        of_model: `engine_kwargs` of the model's section.
        of_engine: `engine_kwargs` of its hardware.

    Raises:
        UserError: vLLM has no such argument, it has another type, Rondo sets it, or it is in the wrong one of the two.
    """
    for place, arguments in ((section, of_model), (hardware, of_engine)):
        for name, value in arguments.items():
            setting = f"{place}.engine_kwargs"
            _check_name(setting, name)
            if name in _SET_BY_RONDO or name.startswith("data_parallel_"):
                remedy = _SET_BY_RONDO.get(name, _SET_BY_RONDO["data_parallel_size"])
                remedy = f"set {remedy.format(section=section, hardware=hardware)} instead" if remedy else "remove it"
                raise UserError(f"{setting} has {name!r}, which Rondo sets itself: {remedy}")
            if _only_changes_speed(name, value) and place == section:
                raise UserError(
                    f"{setting} has {name!r}, which changes no reply: set {hardware}.engine_kwargs.{name}, where a "
                    "change makes nothing stale"
                )
            if not _only_changes_speed(name, value) and place == hardware:
                raise UserError(
                    f"{setting} has {name!r}, which may change replies: set {section}.engine_kwargs.{name}, which is "
                    "part of the recipes"
                )
            _check_value(f"{setting}.{name}", name, value)


def drafts_tokens(arguments: Mapping[str, Any]) -> bool:
    """Whether arguments for vLLM turn speculative decoding on."""
    return bool(arguments.get("speculative_config") or arguments.get("spec_method") or arguments.get("spec_model"))


def _only_changes_speed(name: str, value: Any) -> bool:
    if name == "speculative_config" and isinstance(value, dict):
        return value.get("rejection_sample_method", "standard") in _LOSSLESS
    return name in _SPEED_ONLY


def _check_name(setting: str, name: str) -> None:
    known = _fields("vllm.engine.arg_utils", "EngineArgs")
    if name not in known:
        raise UserError(
            f"{setting} has {name!r}{did_you_mean(name, known)}, which is no engine argument of the installed vLLM "
            f"{importlib.metadata.version(_distribution())}"
        )


def _check_value(setting: str, name: str, value: Any) -> None:
    annotation = _fields("vllm.engine.arg_utils", "EngineArgs")[name]
    if isinstance(value, dict):
        config = _SECTIONS.get(name) or _config_class("vllm.engine.arg_utils", annotation)
        if config:
            _check_section(setting, value, *config)
            return
    expected = _type("vllm.engine.arg_utils", annotation)
    try:
        # As JSON, in which a list may be a tuple or a set; strict, because vLLM converts nothing.
        TypeAdapter(expected).validate_json(json.dumps(value), strict=True)
    except ValidationError:
        raise UserError(f"{setting} is {value!r}: vLLM expects {_describe(expected)}") from None


def _check_section(setting: str, values: Mapping[str, Any], module: str, config: str) -> None:
    """Check the names in a section. vLLM's `LLM` drops names that it does not know without a word."""
    known = _fields(module, config)
    for name, value in values.items():
        if name not in known:
            raise UserError(f"{setting} has {name!r}{did_you_mean(name, known)}, which vLLM's {config} does not have")
        inner = _config_class(module, known[name])
        if inner and isinstance(value, dict):
            _check_section(f"{setting}.{name}", value, *inner)


def _describe(kind: Any) -> str:
    """A type in the words of a settings file."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is Union:
        return " or ".join(map(_describe, get_args(kind)))
    names = {int: "a whole number", float: "a number", bool: "true or false", dict: "a section", type(None): "null"}
    return names.get(kind, "text" if kind is str else "a list")


# The source of vLLM


def _distribution() -> str:
    """The name of the installed distribution, which has another name for a CPU."""
    return importlib.metadata.packages_distributions()["vllm"][0]


@functools.cache
def _tree(module: str) -> tuple[dict[str, ast.expr | ast.ClassDef], dict[str, tuple[str, str]]]:
    """What a module of vLLM defines at its top level, and what it imports from where, by name."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("engine_kwargs is set, and vLLM is not installed here, so it cannot be checked: install vLLM")
    path = Path(spec.submodule_search_locations[0], *module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    defined: dict[str, ast.expr | ast.ClassDef] = {}
    imported: dict[str, tuple[str, str]] = {}
    if path.is_file():
        for node in _top_level(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.ClassDef(name=name):
                    defined[name] = node
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    defined[name] = value
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    defined[name] = value
                case ast.ImportFrom(module=str(source), names=names) if source.startswith("vllm"):
                    imported |= {alias.asname or alias.name: (source, alias.name) for alias in names}
    return defined, imported


def _top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements of a module, also those under `if TYPE_CHECKING`."""
    for node in tree.body:
        if isinstance(node, ast.If):
            yield from node.body
            yield from node.orelse
        else:
            yield node


def _find(module: str, name: str) -> tuple[str, ast.expr | ast.ClassDef] | None:
    """The module of vLLM that defines a name, and its definition. None if it is not vLLM's."""
    defined, imported = _tree(module)
    if name in defined:
        return module, defined[name]
    return _find(*imported[name]) if name in imported else None


@functools.cache
def _fields(module: str, name: str) -> dict[str, ast.expr]:
    """The fields of a dataclass of vLLM with their annotations, those of its base classes included."""
    home, definition = _find(module, name) or (module, None)
    if not isinstance(definition, ast.ClassDef):
        raise UserError(f"engine_kwargs is set, and the installed vLLM has no {name} that could check it: remove it")
    fields: dict[str, ast.expr] = {}
    for base in definition.bases:
        if isinstance(base, ast.Name) and _find(home, base.id):
            fields |= _fields(home, base.id)
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id[0] != "_":
            fields[node.target.id] = node.annotation
    return fields


def _config_class(module: str, annotation: ast.expr) -> tuple[str, str] | None:
    """The class of vLLM for a section of settings that an annotation allows; None if there is none."""
    for node in ast.walk(_parsed(annotation)):
        if isinstance(node, ast.Name) and node.id.endswith("Config"):
            found = _find(module, node.id)
            if found and isinstance(found[1], ast.ClassDef):
                return found[0], found[1].name
    return None


def _parsed(annotation: ast.expr) -> ast.expr:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return ast.parse(annotation.value, mode="eval").body
    return annotation


_PLAIN: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool, "dict": dict, "list": list, "set": set}


def _type(module: str, annotation: ast.AST) -> Any:
    """The type that an annotation of vLLM's source stands for. Any, for what only vLLM itself can check."""
    match annotation:
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=str()) as text:
            return _type(module, _parsed(text))
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_type(module, left), _type(module, right)]  # noqa: UP007 - the parts are values
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            return Literal[tuple(_choices(module, choices))]
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return Optional[_type(module, inner)]  # noqa: UP045
        case ast.Subscript(value=ast.Name(id="list" | "set" as name), slice=inner):
            return _PLAIN[name][_type(module, inner)]
        case ast.Subscript(value=ast.Name(id="dict")):
            return dict
        case ast.Name(id=name) if name in _PLAIN:
            return _PLAIN[name]
        case ast.Name(id=name):
            found = _find(module, name)
            if found and not isinstance(found[1], ast.ClassDef):
                return _type(*found)
            if found and name.endswith("Config"):
                return dict
    return Any


def _choices(module: str, node: ast.AST) -> Iterator[Any]:
    """The values of a `Literal`, also those of other literals that it names."""
    match node:
        case ast.Tuple(elts=parts):
            for part in parts:
                yield from _choices(module, part)
        case ast.Constant(value=value):
            yield value
        case ast.Name(id=name):
            if found := _find(module, name):
                yield from _choices(*found)
        case ast.Subscript(slice=inner):
            yield from _choices(module, inner)
