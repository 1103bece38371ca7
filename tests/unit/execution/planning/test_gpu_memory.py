"""Tests of GPU memory estimates, which are read from the headers of weights."""

import json
import math
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import UserError
from pipeline.config.hardware import EngineHardware, TrainerHardware
from pipeline.config.loader import load_config, parse_alignment
from pipeline.config.run import PolicySettings
from pipeline.config.training import Training
from pipeline.execution.planning import gpu_memory
from pipeline.execution.planning.gpu_memory import GIB, PackedRow
from pipeline.execution.preflight import check_gpu_memory, choose_sharding, memory_needs
from pipeline.storage.model_files import shapes
from tests.helpers.paths import DEMO

LORA = {"r": 8, "lora_alpha": 16}
SAMPLER = ("references.source=sampler", "summaries.logprobs=true")
LLAMA_70B = {
    "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip
LLAMA_8B = LLAMA_70B | {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
}  # fmt: skip


def write_headers(folder: Path, sizes: dict[str, int]) -> str:
    """Make a model folder whose safetensors have headers but no data: only headers are read."""
    d, i, v = sizes["hidden_size"], sizes["intermediate_size"], sizes["vocab_size"]
    kv = d // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    layer = {
        "self_attn.q_proj": (d, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, d),
        "mlp.gate_proj": (i, d), "mlp.up_proj": (i, d), "mlp.down_proj": (d, i),
        "input_layernorm": (d,), "post_attention_layernorm": (d,),
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (v, d), "lm_head.weight": (v, d), "model.norm.weight": (d,)} | {
        f"model.layers.{n}.{name}.weight": shape
        for n in range(sizes["num_hidden_layers"])
        for name, shape in layer.items()
    }
    return write_model(folder, sizes, {name: ("BF16", shape) for name, shape in shapes.items()})


def write_model(folder: Path, config: dict[str, Any], tensors: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    header = json.dumps({n: {"dtype": d, "shape": s, "data_offsets": [0, 0]} for n, (d, s) in tensors.items()}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return str(folder)


def awq(shape):
    """A matrix of 4-bit weights in groups of 128, eight in each int32."""
    rows, columns = shape
    return {
        "qweight": ("I32", (columns, rows // 8)),
        "qzeros": ("I32", (columns // 128, rows // 8)),
        "scales": ("F16", (columns // 128, rows)),
    }


def gptq(shape):
    rows, columns = shape
    return {
        "qweight": ("I32", (columns // 8, rows)),
        "qzeros": ("I32", (columns // 128, rows // 8)),
        "scales": ("F16", (columns // 128, rows)),
        "g_idx": ("I32", (columns,)),
    }


def fp8(shape):
    return {"weight": ("F8_E4M3", shape), "weight_scale": ("F32", (1,)), "input_scale": ("F32", (1,))}


def compressed(shape):
    """What llm-compressor writes for 4-bit weights."""
    rows, columns = shape
    return {
        "weight_packed": ("I32", (rows, columns // 8)),
        "weight_scale": ("BF16", (rows, columns // 128)),
        "weight_shape": ("I64", (2,)),
    }


QUANTIZED = {
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 128}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 128}),
    "fp8": (fp8, {"quant_method": "fp8", "activation_scheme": "static"}),
    "compressed-tensors": (
        compressed,
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}},
    ),
}


def write_quantized(folder: Path, sizes: dict[str, int], method: str) -> tuple[str, float]:
    """Make a model folder in which a method has quantized the layers. Returns it, and the bytes of its tensors."""
    stored, config = QUANTIZED[method]
    whole = shapes.read_shapes(write_headers(folder.with_name("whole"), sizes))
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in whole.shapes.items():
        layer = name.removesuffix(".weight")
        is_quantized = "layers" in name and len(shape) == 2
        parts = stored(shape) if is_quantized else {"weight": ("BF16", shape)}
        tensors |= {f"{layer}.{part}": tensor for part, tensor in parts.items()}
    size = {"I64": 8, "I32": 4, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}
    total = sum(size[dtype] * math.prod(shape) for dtype, shape in tensors.values())
    return write_model(folder, sizes | {"quantization_config": config}, tensors), total


def test_sizes_are_read_from_headers(tmp_path):
    large = shapes.read_shapes(write_headers(tmp_path / "70b", LLAMA_70B))

    assert large.parameters == 70_553_706_496  # as the publisher states it
    assert large.lora(8, "all-linear") == 103_546_880  # as PEFT counts it
    assert large.lora(8, ("q_proj",)) == 80 * 8 * 2 * 8192


def test_an_engine_that_does_not_fit_is_refused_with_a_remedy(tmp_path):
    large = shapes.read_shapes(write_headers(tmp_path / "70b", LLAMA_70B))

    def refused(gpus, gib):
        place = EngineHardware(gpus_per_replica=gpus)
        return gpu_memory.engine_refusal("judge", large, "bfloat16", 8192, place, gib * GIB)

    message = refused(2, 40)
    assert "70.6B parameters in bfloat16 are 131.4 GiB of weights, 65.7 GiB on each of 2 GPUs" in message
    assert message.endswith("raise hardware.judge.gpus_per_replica to 4")
    assert refused(4, 40) is None
    assert refused(1, 16).endswith("to 16")
    assert "use larger GPUs" in refused(8, 4)


@pytest.mark.parametrize("method", QUANTIZED)
def test_a_quantized_model_counts_what_its_files_take(tmp_path, method):
    folder, stored = write_quantized(tmp_path / "70b", LLAMA_70B, method)
    large = shapes.read_shapes(folder)
    place = EngineHardware(gpus_per_replica=1)

    need = gpu_memory.engine_memory("judge", large, "bfloat16", 8192, place)
    assert need.sure["weights"] == pytest.approx(stored, rel=1e-6)
    assert large.parameters == 70_553_706_496  # quantized or not
    assert need.quantization == method
    assert gpu_memory.scoring_memory("judge", large, "bfloat16", place).sure["weights"] == need.sure["weights"]
    # At 16 bits a weight it would need two GPUs of 80 GiB.
    fits = 70 * GIB if method == "fp8" else 40 * GIB
    assert need.sure["weights"] < fits
    refusal = gpu_memory.engine_refusal("judge", large, "bfloat16", 8192, place, 24 * GIB)
    assert f"judge: 70.6B parameters quantized by {method} are {stored / GIB:.1f} GiB of weights" in str(refusal)


def test_arguments_for_vllm_that_save_memory_are_counted(tmp_path):
    large = shapes.read_shapes(write_headers(tmp_path / "70b", LLAMA_70B))

    def need(**engine_kwargs):
        place = EngineHardware(gpus_per_replica=8, engine_kwargs=engine_kwargs)
        return gpu_memory.engine_memory("judge", large, "bfloat16", 8192, place)

    plain = need()
    assert need(kv_cache_dtype="fp8").token == plain.token // 2
    assert plain.sure["weights"] - need(cpu_offload_gb=4).sure["weights"] == 4 * GIB
    in_layers = sum(math.prod(shape) for _, shape in large.adaptable)
    assert plain.sure["weights"] - need(quantization="fp8").sure["weights"] == in_layers // 8
    # Four heads on each GPU, of half of the layers, instead of one head of all.
    staged = need(pipeline_parallel_size=2)
    assert (staged.sure["weights"], staged.token) == (plain.sure["weights"], plain.token)


def test_the_key_value_cache_gets_the_remaining_memory(tmp_path):
    small = shapes.read_shapes(write_headers(tmp_path / "8b", LLAMA_8B))
    need = gpu_memory.engine_memory("judge", small, "bfloat16", 8192, EngineHardware(gpus_per_replica=1))

    assert need.token == 128 * 1024  # 32 layers x 8 heads x 128, keys and values, bf16
    left = 80 * GIB * 0.9 - need.sure["weights"] - gpu_memory.VLLM_OVERHEAD
    assert need.sequences(80 * GIB) == pytest.approx(left / GIB)  # a sequence of 8192 takes 1 GiB


def test_a_training_that_does_not_fit_is_refused_with_a_remedy(tmp_path):
    small = shapes.read_shapes(write_headers(tmp_path / "8b", LLAMA_8B))
    policy, row = PolicySettings(model="8b"), PackedRow(8192, 2000)

    def refused(gib, workers=1, **training):
        trainer = TrainerHardware(workers=workers, gpus_per_worker=1, gradient_checkpointing=True)
        return gpu_memory.training_refusal(small, policy, Training(**training), trainer, row, gib * GIB)

    # bf16 weights with float32 masters, two moments and a gradient: 18 bytes a parameter.
    assert "8.0B parameters in bfloat16 take 134.6 GiB on each of 1 GPU" in refused(80)
    assert "raise hardware.trainer.workers to 4" in refused(80)
    assert refused(80, workers=4) is None
    assert refused(24, lora=LORA) is None
    assert refused(12, lora=LORA).endswith("or load the base in 4 bits (training.load_in_4bit)")
    assert refused(12, lora=LORA, load_in_4bit=True) is None
    too_small = refused(4, lora=LORA, load_in_4bit=True)
    assert "8.0B parameters quantized by bitsandbytes, 4 bits take" in too_small
    assert too_small.endswith("use larger GPUs, or a smaller model")


@pytest.mark.parametrize(("double_quant", "bits"), [(True, 4.127), (False, 4.5)])
def test_a_base_in_4_bits_keeps_its_embeddings_and_experts(tmp_path, double_quant, bits):
    """The bits of a weight are those of the QLoRA paper."""
    small = shapes.read_shapes(write_headers(tmp_path / "8b", LLAMA_8B))
    experts = {f"model.layers.0.mlp.experts.{i}.up_proj.weight": (100, 100) for i in range(4)}
    small = replace(small, shapes=small.shapes | experts)
    settings = Training(lora=LORA, load_in_4bit={"bnb_4bit_use_double_quant": double_quant})
    policy, trainer = PolicySettings(model="8b"), TrainerHardware(gpus_per_worker=1)
    need = gpu_memory.training_memory(small, policy, settings, trainer, PackedRow(100, 10))
    linear = sum(math.prod(shape) for _, shape in small.adaptable) - 4 * 100 * 100
    adapter = need.sure["masters"] // 4
    expected = linear * bits / 8 + 2 * (small.parameters - linear + adapter)
    assert need.sure["weights"] == pytest.approx(expected, rel=1e-4)


EMBEDDINGS_8B = 2 * 128256 * 4096
LAYER_8B = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14336 + 2 * 4096


def frozen(folder: Path, **trainer: Any) -> tuple[Any, ...]:
    """The arguments about an 8B policy, in bfloat16."""
    small = shapes.read_shapes(write_headers(folder / "8b", LLAMA_8B))
    return small, PolicySettings(model="8b"), Training(), TrainerHardware(gpus_per_worker=1, **trainer)


def test_a_frozen_policy_is_whole_or_takes_a_shard_and_what_is_gathered(tmp_path):
    small, policy, training, trainer = frozen(tmp_path, workers=16)
    whole = gpu_memory.frozen_memory(small, policy, training, trainer)
    assert (whole.gpus, whole.sure) == (1, {"weights": 2 * small.parameters})
    needs_shards = [gpu_memory.needs_shards(small, policy, training, trainer, gib * GIB) for gib in (14, 16, 24)]
    assert needs_shards == [True, True, False], "the weights are 15 GiB, and not all that it takes"

    trainer = trainer.model_copy(update={"shard_references": True})
    sharded = gpu_memory.frozen_memory(small, policy, training, trainer)
    gathered = pytest.approx(2 * (EMBEDDINGS_8B + 2 * LAYER_8B), rel=1e-6)
    assert (sharded.gpus, sharded.sure) == (16, {"weights": 2 * small.parameters // 16, "gathered": gathered})
    assert sharded.about == whole.about

    offloaded = trainer.model_copy(update={"cpu_offload": True})
    assert gpu_memory.frozen_memory(small, policy, training, offloaded).sure == {"weights": 0, "gathered": gathered}
    adapter = gpu_memory.frozen_memory(small, policy, Training(lora=LORA), trainer)
    lora = 2 * small.lora(8, "all-linear")
    assert adapter.sure["weights"] == (2 * small.parameters + lora) // 16


@pytest.mark.parametrize(
    ("trainer", "gib", "remedy"),
    [
        ({"workers": 1}, 16, None),
        ({"workers": 1}, 14, "raise hardware.trainer.workers to 2, which shards it"),
        ({"workers": 16, "shard_references": False}, 14, "remove hardware.trainer.shard_references, so that .*"),
        ({"workers": 16, "shard_references": True}, 14, None),
        ({"workers": 2, "shard_references": True}, 8, "raise hardware.trainer.workers to 4, which shards it"),
        ({"workers": 16, "shard_references": True}, 2, "use larger GPUs or a smaller policy"),
    ],
)
def test_a_frozen_policy_is_refused_only_if_it_does_not_fit_sharded(tmp_path, trainer, gib, remedy):
    refused = gpu_memory.frozen_policy_refusal(*frozen(tmp_path, **trainer), gib * GIB)
    if remedy is None:
        assert refused is None
    else:
        found = rf"references: 8.0B parameters in bfloat16 take .* GiB on .*\. A GPU has {gib} GiB: {remedy}"
        assert re.fullmatch(found, refused)


@pytest.mark.parametrize(
    ("changes", "used", "has_frozen_policy"),
    [
        ([], None, True),
        ([], {"trainer", "reference_scorer"}, True),
        ([], {"trainer", "policy_scorer", "base_scorer"}, True),
        ([], {"trainer"}, False),  # the references are there
        ([*SAMPLER, "rounds=2"], None, True),  # drift
        ([*SAMPLER, "rounds=1"], None, False),
    ],
)
def test_a_run_shards_a_frozen_policy_that_no_gpu_holds(tmp_path, changes, used, has_frozen_policy):
    policy = write_headers(tmp_path / "8b", LLAMA_8B)
    hardware = ["hardware.trainer={workers: 16, gpus_per_worker: 1}", "hardware.ray_cpus=64"]
    settings = load_config(DEMO, [f"run={tmp_path}", f"policy.model={policy}", "rounds=2", *hardware, *changes])

    def gpus(gib):
        needs, _ = memory_needs(settings, gib and gib * GIB, PackedRow(0, 0), used)
        return [need.gpus for need in needs if need.use == "references"]

    # In float32 the weights are 30 GiB, and leave too little of 31.
    assert gpus(14) == gpus(31) == ([16] if has_frozen_policy else [])
    assert gpus(40) == gpus(None) == []
    settings = settings.model_copy(
        update={"hardware": load_config(DEMO, [*hardware, "hardware.trainer.shard_references=false"]).hardware}
    )
    with pytest.raises(UserError, match="^references: 8.0B") if has_frozen_policy else nullcontext():
        gpus(14)


@pytest.mark.parametrize("missing", ["num_attention_heads", "num_hidden_layers", "hidden_size"])
def test_a_model_whose_config_lacks_a_size_is_unknown(tmp_path, missing):
    policy = write_headers(tmp_path / "8b", LLAMA_8B)
    config = Path(policy, "config.json")
    config.write_text(json.dumps({name: size for name, size in LLAMA_8B.items() if name != missing}))
    settings = load_config(DEMO, [f"run={tmp_path}", f"policy.model={policy}"])
    needs, unknown = memory_needs(settings, 80 * GIB, PackedRow(0, 0), {"policy_engine", "trainer"})
    assert not needs
    assert [note.partition(f": the size of {policy} is unknown")[0] for note in unknown] == ["policy", "training"]


def test_a_training_on_given_pairs_that_no_gpu_holds_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    policy = write_headers(tmp_path / "8b", LLAMA_8B)
    one_gpu = {"trainer": {"gpus_per_worker": 1}, "ray_cpus": 4}
    settings = parse_alignment(
        {"run": str(tmp_path), "pairs": "p.jsonl", "policy": {"model": policy}, "hardware": one_gpu}
    )
    with pytest.raises(UserError, match=r"^training: 8.0B .* A GPU has 80 GiB: raise hardware.trainer.workers to 4"):
        check_gpu_memory(settings, 80 * GIB)
    check_gpu_memory(settings, 200 * GIB)
    check_gpu_memory(settings, None)


def test_sharding_is_chosen_only_where_the_settings_leave_it_open(tmp_path):
    def chosen(gib, *changes):
        settings = load_config(DEMO, [f"run={tmp_path}", "hardware.ray_cpus=64", *changes])
        return choose_sharding(settings, lambda: gib and gib * GIB)

    two = "hardware.trainer={workers: 2, gpus_per_worker: 1}"
    assert chosen(0.001, two).trainer.shard_references is True
    assert chosen(24, two).trainer.shard_references is False
    assert chosen(None, two).trainer.shard_references is None
    assert chosen(0.001, two, "hardware.trainer.shard_references=false").trainer.shard_references is False
    for cannot in ("hardware.trainer.gpus_per_worker=1", "hardware.trainer.workers=2"):
        assert chosen("not asked", cannot).trainer.shard_references is None
    offload = "hardware.trainer={gpus_per_worker: 1, cpu_offload: true}"
    assert chosen(0.001, offload).trainer.shard_references is True


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a model folder: it should have config.json"):
        shapes.read_shapes(str(tmp_path))
