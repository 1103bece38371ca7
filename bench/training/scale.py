"""Our step at sizes people train, on a GPU: pairs and tokens per second, MFU and memory at 0.5B and 7B, in bf16.

Models have the shapes of Qwen2.5-0.5B and Mistral-7B, with random weights made on the device. The step is put together
from the trainer's parts: trees, log-probabilities, loss, AdamW on float32 masters. It needs torch, transformers and
PEFT; TRL is measured too where it is installed. Without a GPU, `--suite scale --tiny` shows that it runs.
Left out: several GPUs, and reference log-probabilities (zeros: what a step costs does not depend on them).

MFU is the FLOPs that the mathematics asks for, over time and the device's peak in bf16. For unique tokens T, N
parameters in the layers' matrices, C completion tokens (which alone meet the head, of d x V), and S (query, key) pairs
of tokens that see each other, in L layers with attention of width a:

    full:  6 N T     + 6 d V C + 12 a L S
    LoRA:  4 N T + 6 N_lora T + 4 d V C + 12 a L S      (no gradient of the frozen weights)

Running a layer again under activation checkpointing is not counted: it is no use of its own. TRL's FLOPs are ours:
what it computes more than once is not useful, so its MFU is comparable.
"""

import argparse
import gc
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from bench.print_table import show, spread
from bench.training import sides, trl_side
from bench.training.sides import SETTINGS, Shape, Work
from pipeline.training.batches.example import Example
from pipeline.training.modeling import last_layer, tree_attention
from pipeline.training.modeling.fsdp import PolicyModule, checkpoint_activations
from pipeline.training.optimizer import Optimizer

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # dense bf16; H100 is SXM's
MODELS = {
    "0.5B": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32_000,
        "tie_word_embeddings": False,
    },
}
SHAPE = Shape("scale", prompt=600, shortest=40, longest=60, pairs=3, articles=12)
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WARM_UP = 2  # steps; the first ones choose kernels and compile


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("scale", "0.5B and 7B models on a GPU")
    group.add_argument("--models", default="0.5B,7B", help="default: %(default)s")
    group.add_argument("--weights", default="lora,full", help="default: %(default)s")
    group.add_argument("--prompt", type=int, default=SHAPE.prompt, help="tokens of a prompt (%(default)s)")
    group.add_argument("--peak-tflops", type=float, help="of the device in dense bf16, if it is not one that we know")
    group.add_argument("--no-trl", action="store_true", help="leave TRL out")


def suite(options: argparse.Namespace) -> dict[str, Any]:
    """Every model, full and LoRA, with and without activation checkpointing, on both sides. Returns all rows."""
    shape = replace(SHAPE, prompt=options.prompt)
    models = {name: MODELS[name] for name in options.models.split(",")}
    if options.tiny:
        shape = replace(shape, prompt=24, shortest=3, longest=6, articles=2)
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        models = {"tiny": small | {"num_key_value_heads": 2, "vocab_size": 64, "tie_word_embeddings": False}}
    peak = options.peak_tflops * 1e12 if options.peak_tflops else known_peak(options.device)
    rows = []
    for model, sizes in models.items():
        for kind in options.weights.split(","):
            for checkpointing in (False, True):
                for side in ("ours",) if options.no_trl or not _has_trl() else ("ours", "TRL"):
                    row = {"model": model, "weights": kind, "checkpointing": checkpointing, "side": side}
                    row |= measure(row, LlamaConfig(**sizes, max_position_embeddings=8192), shape, peak, options)
                    rows.append(row)
                    print(", ".join(map(str, _cells(row).values())), flush=True)  # a GPU's lease can end before us
    show(f"{shape.pairs_per_step} pairs a step, prompts of {shape.prompt}", [_cells(row) for row in rows])
    return {"shape": asdict(shape), "peak_flops": peak, "rows": rows}


def measure(
    row: dict[str, Any], config: LlamaConfig, shape: Shape, peak: float | None, options: argparse.Namespace
) -> dict[str, Any]:
    """One row, at the largest batch that fits: ours halves its rows' tokens, TRL its pairs of one forward."""
    examples = sides.make_examples(shape, WARM_UP + options.runs, config.vocab_size)
    sizes = [12, 6, 4, 3, 2, 1] if row["side"] == "TRL" else [32_768 >> n for n in range(6)]
    if row["side"] == "ours" and options.tokens_per_batch:
        sizes = [options.tokens_per_batch]
    for size in sizes:
        work = Work(None, examples, shape, size)
        if row["side"] == "TRL" and shape.pairs_per_step % size:
            continue
        _forget(options.device)
        try:
            seconds, useful = (trl_steps if row["side"] == "TRL" else our_steps)(row, config, work, options.device)
        except torch.OutOfMemoryError:
            continue
        taken = statistics.median(seconds)
        step = work.plan[WARM_UP]
        naive = sum(len(e.prompt_ids) + len(c) for e in step.examples for c in e.completions)
        return {
            "batch_size": size,
            "seconds": seconds,
            "pairs_per_second": shape.pairs_per_step / taken,
            "tokens_per_second": step.tokens / taken,
            "naive_tokens_per_second": naive / taken,
            "mfu": useful / taken / peak if peak else None,
            "useful_flops": useful,
            "peak_bytes": _peak_memory(options.device),
        }
    return {"out_of_memory": True}


def our_steps(row: dict[str, Any], config: LlamaConfig, work: Work, device: str) -> tuple[list[float], float]:
    """Seconds of each step after warming up, and the useful FLOPs of one."""
    model = make(config, tree_attention.NAME, device, lora=row["weights"] == "lora")
    if row["checkpointing"]:
        checkpoint_activations(PolicyModule(model))
    optimizer = Optimizer(model, SETTINGS)

    def step(examples: tuple[Example, ...]) -> None:
        for loss in sides.row_losses(model, examples, work.tokens_per_batch):
            (loss / work.shape.pairs_per_step).backward()
            optimizer.collect()
        optimizer.step(SETTINGS["learning_rate"])

    seconds = [_timed(lambda examples=s.examples: step(examples), device) for s in work.plan]
    return seconds[WARM_UP:], flops(model, work.plan[WARM_UP].examples)


def trl_steps(row: dict[str, Any], config: LlamaConfig, work: Work, device: str) -> tuple[list[float], float]:
    """The same of TRL. Its weights are in bf16 without masters, which is less work and less memory than ours."""
    from peft import LoraConfig

    lora = LoraConfig(r=8, lora_alpha=16, target_modules=PROJECTIONS) if row["weights"] == "lora" else None
    useful = flops(make(config, "sdpa", "meta", lora=lora is not None), work.plan[WARM_UP].examples)
    trainer = trl_side.make(
        work,
        work.tokens_per_batch,
        make(config, "sdpa", device, lora=False),
        lora,
        gradient_checkpointing=row["checkpointing"],
        use_cpu=device == "cpu",
        bf16=True,
    )
    _reset_peak(device)
    return trl_side.train(trainer).seconds[WARM_UP - 1 :], useful


def make(config: LlamaConfig, attention_kind: str, device: str, *, lora: bool) -> PreTrainedModel:
    """Random weights in bf16, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention_kind)
    if attention_kind == tree_attention.NAME:
        last_layer.skip_unread_tokens(model)  # as `weights.load` does
    if lora:
        from peft import LoraConfig, inject_adapter_in_model

        inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, target_modules=PROJECTIONS), model)
    return model.eval()


def flops(model: PreTrainedModel, examples: tuple[Example, ...]) -> float:
    """That one step over these articles asks for: see the head of this module."""
    c = model.config
    matrices = {name: p for name, p in model.base_model.named_parameters() if p.ndim == 2 and "embed" not in name}
    adapter = sum(p.numel() for name, p in matrices.items() if ".lora_" in name)
    layers = sum(p.numel() for p in matrices.values()) - adapter
    each = 4 if adapter else 6
    tokens = sum(example.tokens for example in examples)
    targets = sum(len(completion) for example in examples for completion in example.completions)
    seen = sum(
        _triangle(len(e.prompt_ids)) + sum(len(c) * len(e.prompt_ids) + _triangle(len(c)) for c in e.completions)
        for e in examples
    )
    head = each * c.hidden_size * c.vocab_size * targets
    width = c.num_attention_heads * getattr(c, "head_dim", c.hidden_size // c.num_attention_heads)
    return (each * layers + 6 * adapter) * tokens + head + 12 * width * c.num_hidden_layers * seen


def known_peak(device: str) -> float | None:
    """FLOPs per second in dense bf16, by the device's name."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((peak for known, peak in PEAK.items() if known in name), None)


def _triangle(tokens: int) -> int:
    return tokens * (tokens + 1) // 2


def _timed(function: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _forget(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    _reset_peak(device)


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak_memory(device: str) -> int:
    """Bytes; of the whole process, and since it began, where there is no GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _has_trl() -> bool:
    try:
        import trl  # noqa: F401
    except ImportError:
        return False
    return True


def _cells(row: dict[str, Any]) -> dict[str, str]:
    cells = {"model": row["model"], "weights": row["weights"], "side": row["side"]}
    cells["checkpointing"] = "yes" if row["checkpointing"] else "no"
    if "out_of_memory" in row:
        return cells | {"batch": "out of memory"}
    return cells | {
        "batch": str(row["batch_size"]),
        "step, s": spread(row["seconds"]),
        "pairs/s": f"{row['pairs_per_second']:.2f}",
        "unique tokens/s": f"{row['tokens_per_second']:,.0f}",
        "naive tokens/s": f"{row['naive_tokens_per_second']:,.0f}",
        "MFU": f"{row['mfu']:.0%}" if row["mfu"] is not None else "?",
        "peak, GiB": f"{row['peak_bytes'] / 2**30:.1f}",
    }
