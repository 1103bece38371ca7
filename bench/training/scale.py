"""Measures a training step on a GPU at common model sizes: pairs and tokens per second, MFU and memory, in bf16.

Models have the shapes of Qwen2.5-0.5B and Mistral-7B, with random weights made on the device. The step is built from
the trainer's parts: article trees, log-probabilities, loss, AdamW on float32 master weights. It needs torch,
transformers and PEFT; TRL is measured too where it is installed. `--suite scale --tiny` runs without a GPU, as a check.
It uses one GPU. Reference log-probabilities are zeros, because a step costs the same with any values.

MFU (model FLOPs utilization) is the number of useful FLOPs, divided by time and by the device's bf16 peak. For T unique
tokens, N parameters in the layers' matrices, C completion tokens (only these pass the LM head, of size d x V), and S
(query, key) pairs of tokens that attend to each other, in L layers with attention of width a:

    full:  6 N T     + 6 d V C + 12 a L S
    LoRA:  4 N T + 6 N_lora T + 4 d V C + 12 a L S      (frozen weights need no gradient)

Activation checkpointing computes layers twice; the second time is not counted as useful. TRL's MFU uses our count of
FLOPs, because what it computes more than once is not useful either. So both MFUs can be compared.
"""

import argparse
import gc
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from bench.print_table import median_and_range, print_table
from bench.training import sides, trl_side
from bench.training.sides import SETTINGS, Shape, Work
from pipeline.training.batches.example import Example
from pipeline.training.modeling import last_layer, tree_attention
from pipeline.training.modeling.fsdp import PolicyModule, checkpoint_activations
from pipeline.training.optimizer import Optimizer

PEAK = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
}  # FLOPs per second, dense bf16; H100: SXM
MODELS = {
    "135M": {  # SmolLM2
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
        "tie_word_embeddings": True,
    },
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
WARM_UP = 2  # steps that are not timed: the first ones choose kernels and compile


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("scale", "0.5B and 7B models on a GPU")
    group.add_argument("--models", default="0.5B,7B", help="default: %(default)s")
    group.add_argument("--weights", default="lora,full", help="default: %(default)s")
    group.add_argument("--prompt", type=int, default=SHAPE.prompt, help="tokens of a prompt (%(default)s)")
    group.add_argument("--peak-tflops", type=float, help="dense bf16 peak, to compute the MFU of an unknown device")
    group.add_argument("--no-trl", action="store_true", help="measure Rondo only")


def run_suite(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every model, full and LoRA, with and without activation checkpointing, on both sides.

    Returns:
        the shape, the device's peak and all rows.
    """
    shape = replace(SHAPE, prompt=options.prompt)
    models = {name: MODELS[name] for name in options.models.split(",")}
    if options.tiny:
        shape = replace(shape, prompt=24, shortest=3, longest=6, articles=2)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        models = {"tiny": sizes | {"num_key_value_heads": 2, "vocab_size": 64, "tie_word_embeddings": False}}
    peak = options.peak_tflops * 1e12 if options.peak_tflops else known_peak(options.device)
    sides_to_run = ("ours",) if options.no_trl or not _has_trl() else ("ours", "TRL")
    rows = []
    for model, weights, checkpointing, side in product(models, options.weights.split(","), (False, True), sides_to_run):
        row = {"model": model, "weights": weights, "checkpointing": checkpointing, "side": side}
        config = LlamaConfig(**models[model], max_position_embeddings=8192)
        row |= measure(row, config, shape, peak, options)
        rows.append(row)
        # Print each row at once, so that it is not lost if the GPU must be given back before the suite ends.
        print(", ".join(map(str, _cells(row).values())), flush=True)
    title = f"{shape.pairs_per_step} pairs per step, prompts of {shape.prompt} tokens"
    print_table(title, [_cells(row) for row in rows])
    return {"shape": asdict(shape), "peak_flops": peak, "rows": rows}


def measure(
    row: dict[str, Any], config: LlamaConfig, shape: Shape, peak: float | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure one row at the largest batch that fits the memory.

    For Rondo, the number of tokens in a packed row is halved until the step fits (unless `--tokens-per-batch` sets it).
    For TRL, the number of pairs in one forward is reduced.
    """
    examples = sides.make_examples(shape, WARM_UP + options.runs, config.vocab_size)
    sizes = [12, 6, 4, 3, 2, 1] if row["side"] == "TRL" else [32_768 >> n for n in range(6)]
    if row["side"] == "ours" and options.tokens_per_batch:
        sizes = [options.tokens_per_batch]
    for size in sizes:
        work = Work(None, examples, shape, size)
        if row["side"] == "TRL" and shape.pairs_per_step % size:
            continue
        _free_memory(options.device)
        run_steps = trl_steps if row["side"] == "TRL" else our_steps
        try:
            seconds, useful_flops = run_steps(row, config, work, options.device)
        except torch.OutOfMemoryError:
            continue
        step_seconds = statistics.median(seconds)
        step = work.plan[WARM_UP]
        naive_tokens = sum(len(e.prompt_ids) + len(c) for e in step.examples for c in e.completions)
        return {
            "batch_size": size,
            "seconds": seconds,
            "pairs_per_second": shape.pairs_per_step / step_seconds,
            "tokens_per_second": step.tokens / step_seconds,
            "naive_tokens_per_second": naive_tokens / step_seconds,
            "mfu": useful_flops / step_seconds / peak if peak else None,
            "useful_flops": useful_flops,
            "peak_bytes": _peak_memory(options.device),
        }
    return {"out_of_memory": True}


def our_steps(row: dict[str, Any], config: LlamaConfig, work: Work, device: str) -> tuple[list[float], float]:
    """Run Rondo's steps. Returns the seconds of each step after the warm-up, and the useful FLOPs of one step."""
    model = make_model(config, tree_attention.NAME, device, lora=row["weights"] == "lora")
    if row["checkpointing"]:
        checkpoint_activations(PolicyModule(model))
    optimizer = Optimizer(model, SETTINGS)

    def step(examples: Sequence[Example]) -> None:
        for loss in sides.row_losses(model, examples, work.tokens_per_batch):
            (loss / work.shape.pairs_per_step).backward()
            optimizer.collect()
        optimizer.step(SETTINGS["learning_rate"])

    seconds = [_seconds(partial(step, planned.examples), device) for planned in work.plan]
    return seconds[WARM_UP:], flops(model, work.plan[WARM_UP].examples)


def trl_steps(row: dict[str, Any], config: LlamaConfig, work: Work, device: str) -> tuple[list[float], float]:
    """Run TRL's steps. Its bf16 weights have no float32 masters, which takes less work and memory than ours.

    Returns:
        as `our_steps`.
    """
    from peft import LoraConfig

    lora = LoraConfig(r=8, lora_alpha=16, target_modules=PROJECTIONS) if row["weights"] == "lora" else None
    useful_flops = flops(make_model(config, "sdpa", "meta", lora=lora is not None), work.plan[WARM_UP].examples)
    trainer = trl_side.make_trainer(
        work,
        work.tokens_per_batch,  # for TRL, `measure` puts the pairs of one forward here
        make_model(config, "sdpa", device, lora=False),
        lora,
        gradient_checkpointing=row["checkpointing"],
        use_cpu=device == "cpu",
        bf16=True,
    )
    _reset_peak(device)
    seconds = trl_side.train(trainer).seconds  # without the first step, see `TrainResult`
    return seconds[WARM_UP - 1 :], useful_flops


def make_model(config: LlamaConfig, attention_kind: str, device: str, *, lora: bool) -> PreTrainedModel:
    """A model with random bf16 weights, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention_kind)
    if attention_kind == tree_attention.NAME:
        last_layer.skip_unread_tokens(model)  # as `loading.load_model` does
    if lora:
        from peft import LoraConfig, inject_adapter_in_model

        inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, target_modules=PROJECTIONS), model)
    return model.eval()


def flops(model: PreTrainedModel, examples: Sequence[Example]) -> float:
    """Useful FLOPs of one step over these articles. The module docstring has the formula."""
    c = model.config
    matrices = {name: p for name, p in model.base_model.named_parameters() if p.ndim == 2 and "embed" not in name}
    adapter = sum(p.numel() for name, p in matrices.items() if ".lora_" in name)
    layers = sum(p.numel() for p in matrices.values()) - adapter
    per_parameter = 4 if adapter else 6
    tokens = sum(example.tokens for example in examples)
    targets = sum(len(completion) for example in examples for completion in example.completions)
    attended = sum(_attended_pairs(example) for example in examples)
    head = per_parameter * c.hidden_size * c.vocab_size * targets
    width = c.num_attention_heads * getattr(c, "head_dim", c.hidden_size // c.num_attention_heads)
    return (per_parameter * layers + 6 * adapter) * tokens + head + 12 * width * c.num_hidden_layers * attended


def _attended_pairs(example: Example) -> int:
    """(query, key) pairs of an article tree: causal in the prompt; each completion sees the prompt and itself."""
    prompt = len(example.prompt_ids)
    return _triangle(prompt) + sum(len(c) * prompt + _triangle(len(c)) for c in example.completions)


def known_peak(device: str) -> float | None:
    """Peak FLOPs per second in dense bf16, by the device's name; None for an unknown device."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((peak for known, peak in PEAK.items() if known in name), None)


def _triangle(tokens: int) -> int:
    return tokens * (tokens + 1) // 2


def _seconds(function: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _free_memory(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    _reset_peak(device)


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak_memory(device: str) -> int:
    """Peak bytes on the GPU; on a CPU the peak of the whole process since its start."""
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
        "step, s": median_and_range(row["seconds"]),
        "pairs/s": f"{row['pairs_per_second']:.2f}",
        "unique tokens/s": f"{row['tokens_per_second']:,.0f}",
        "naive tokens/s": f"{row['naive_tokens_per_second']:,.0f}",
        "MFU": f"{row['mfu']:.0%}" if row["mfu"] is not None else "?",
        "peak, GiB": f"{row['peak_bytes'] / 2**30:.1f}",
    }
