"""Tests of GPU memory estimates, which are read from the headers of weights."""

import json
from pathlib import Path

import pytest

from pipeline.config import UserError
from pipeline.config.hardware import EngineHardware, TrainerHardware
from pipeline.config.run import PolicySettings
from pipeline.config.training import Training
from pipeline.execution.planning import gpu_memory
from pipeline.execution.planning.gpu_memory import GIB, PackedRow
from pipeline.storage.model_files import shapes

LORA = {"r": 8, "lora_alpha": 16}
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
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(sizes))
    header = json.dumps({n: {"dtype": "BF16", "shape": s, "data_offsets": [0, 0]} for n, s in shapes.items()}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return str(folder)


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


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a model folder: it should have config.json"):
        shapes.read_shapes(str(tmp_path))
