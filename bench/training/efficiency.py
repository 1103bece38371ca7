"""Compares Rondo's training step with its bare matrix products: `.venv/bin/python -m bench.training.efficiency`.

The model has the shape of SmolLM2-135M, with random weights in bf16. An article has 320 words, or 470 tokens with the
instruction, and 6 summaries of 150 tokens; a step has two articles with 3 pairs each. The trainer runs as in a round,
with its batches, reference check, metrics and AdamW on float32 masters.

The bare side multiplies, in bf16, the same weights by random matrices as large as the step's: each weight of the layers
forward and twice backward, and the LM head for the tokens that it scores. This gives the FLOPs per second that torch
reaches in these products. The efficiency is the FLOPs of the step (`scale.flops`, with attention, and without what is
computed twice) per second of training, divided by those of the bare side. Both sides run by turns, in one process.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel
from transformers.utils import logging

from bench.print_table import machine_info, median_and_range, print_table
from bench.training import scale, sides
from bench.training.sides import Shape, Work

SHAPE = Shape("320 words", prompt=470, shortest=150, longest=150, pairs=3, articles=2)
HEAD_TOKENS = 256  # tokens of one product of the bare LM head: with all tokens at once it is slower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs of each side, by turns (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a run of training (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a toy model and toy articles, to check that it runs")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    result = measure(options.runs, options.steps, tiny=options.tiny)
    result["machine"] = machine_info("cpu", options.threads)
    print_table(f"{result['tokens']} unique tokens per step, {result['flops'] / 1e9:,.0f} GFLOP", [_cells(result)])
    print(result["machine"])
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(runs: int, steps: int, *, tiny: bool) -> dict[str, Any]:
    """Measure both sides by turns.

    Returns:
        the numbers of tokens and FLOPs of a step, the seconds of each step, the bare side's FLOPs per second in each
        run, and what follows from their medians.
    """
    shape = Shape("tiny", prompt=24, shortest=3, longest=6, pairs=1, articles=2) if tiny else SHAPE
    config = LlamaConfig(**scale.MODELS["135M"], max_position_embeddings=8192)
    if tiny:
        config = sides.model_config(64, tiny=True)
    with tempfile.TemporaryDirectory() as folder:
        model = scale.make_model(config, "sdpa", "cpu", lora=False)
        model.save_pretrained(folder)
        work = sides.make_work(Path(folder), shape, 1 + steps, config.vocab_size, 4096, dtype="bfloat16")
        seconds, bare = [], []
        for _ in range(runs):
            bare.append(bare_flops_per_second(model, work))
            seconds += sides.train_ours(work).seconds
        bare.append(bare_flops_per_second(model, work))
    step = work.plan[0]
    flops, median = scale.flops(model, step.examples), statistics.median(seconds)
    return {
        "tokens": step.tokens,
        "completion_tokens": sum(len(completion) for example in step.examples for completion in example.completions),
        "flops": flops,
        "seconds": seconds,
        "bare_flops_per_second": bare,
        "tokens_per_second": step.tokens / median,
        "flops_per_second": flops / median,
        "efficiency": flops / median / statistics.median(bare),
    }


@torch.no_grad()
def bare_flops_per_second(model: PreTrainedModel, work: Work) -> float:
    """FLOPs per second of the products of a step's weights, forward and backward."""
    examples = work.plan[0].examples
    tokens = sum(example.tokens for example in examples)
    targets = sum(len(completion) for example in examples for completion in example.completions)
    head = model.get_output_embeddings().weight
    layers = [p for name, p in model.base_model.named_parameters() if p.ndim == 2 and "embed" not in name]
    products = [(weight, tokens) for weight in layers]
    products += [(head, len(rows)) for rows in torch.arange(targets).split(HEAD_TOKENS)]
    sizes = {(rows, width) for weight, rows in products for width in weight.shape}
    values = {size: torch.randn(size, dtype=head.dtype) for size in sizes}
    _multiply(*products[0], values)  # warm up
    began = time.perf_counter()
    for weight, rows in products:
        _multiply(weight, rows, values)
    return sum(6 * rows * weight.numel() for weight, rows in products) / (time.perf_counter() - began)


def _multiply(weight: Tensor, rows: int, values: dict[tuple[int, int], Tensor]) -> None:
    """The three products of a weight (out, in): its output, and the gradients of its input and of itself."""
    outputs, inputs = (values[rows, width] for width in weight.shape)
    torch.mm(inputs, weight.T)
    torch.mm(outputs, weight)
    torch.mm(outputs.T, inputs)


def _cells(result: dict[str, Any]) -> dict[str, str]:
    return {
        "step, s": median_and_range(result["seconds"]),
        "unique tokens/s": f"{result['tokens_per_second']:,.0f}",
        "training, GFLOP/s": f"{result['flops_per_second'] / 1e9:,.0f}",
        "bare products, GFLOP/s": median_and_range([value / 1e9 for value in result["bare_flops_per_second"]]),
        "efficiency": f"{result['efficiency']:.0%}",
    }


if __name__ == "__main__":
    main()
