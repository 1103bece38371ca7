"""Compares Rondo's DPO trainer with TRL's DPOTrainer: `.venv/bin/python -m bench.training.dpo`; `--help` lists options.

Both sides train the same model (random weights) on the same pairs, token ids, order, precision and threads. A step is
a whole optimizer step on both sides: batches, forward, loss, backward, clipping, AdamW, metrics. Rondo runs before and
after TRL, so that a machine that slows down in between favours neither. `trl_side.py` has TRL's settings. TRL runs with
one pair in a forward and with all pairs of a step in one; the ratio is to the faster. (Sizes between the two take times
between theirs.)

The arithmetic ratio is how many times more FLOPs TRL's matrix products take, without attention, of which TRL has even
more: it is the speed-up if both sides compute equally fast.

Both sides run with the C library's default allocator settings. glibc returns large blocks to the kernel at each free,
and requests them again. The page faults cost TRL more than Rondo, because TRL's blocks are larger: a third of its time
in the virtual machine where this benchmark was written. One more row therefore shows the ratio when the allocator of
both sides keeps freed memory.

`--side trl-dropin` also trains each shape with `pipeline.trl.TreeDPOTrainer`, all pairs of a step in one forward.

`sides.py` has the data and Rondo's side, `memory.py` measures memory, `scale.py` runs on GPUs (`--suite scale`).
"""

import argparse
import importlib.util
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel
from transformers.utils import logging

from bench.print_table import machine_info, median_and_range, print_table
from bench.training import memory, scale, sides, trl_side
from bench.training.sides import Shape, Work
from pipeline.training.batches.article_tree import pack_row
from pipeline.training.modeling import loading
from pipeline.training.modeling.logprobs import completion_logps

SHAPES = (
    Shape("headline", prompt=600, shortest=40, longest=60, pairs=3, articles=2),
    Shape("one-pair", prompt=600, shortest=40, longest=60, pairs=1, articles=6),
    Shape("prompt-200", prompt=200, shortest=40, longest=60, pairs=3, articles=2),
    Shape("prompt-1200", prompt=1200, shortest=40, longest=60, pairs=3, articles=1),
    Shape("long-answers", prompt=600, shortest=540, longest=660, pairs=3, articles=1),
    Shape("long-one-pair", prompt=600, shortest=540, longest=660, pairs=1, articles=2),
)
TINY = (
    Shape("headline", prompt=24, shortest=3, longest=6, pairs=3, articles=2),
    Shape("one-pair", prompt=24, shortest=3, longest=6, pairs=1, articles=4),
)
MEMORY_SHAPE = replace(SHAPES[0], name="memory", articles=1)
VOCABULARY = 8192
LOSS_STEPS = 20  # steps of the headline shape over which the losses are compared
TOKENS_PER_BATCH = 4096


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if options.child:
        print(json.dumps(TASKS[options.child](**json.loads(options.arguments))))
        return
    began = time.perf_counter()
    result: dict[str, Any] = {"machine": machine_info(options.device, options.threads)}
    if options.suite == "scale":
        result |= scale.run_suite(options)
    else:
        result |= compare_suite(options)
    result["seconds"] = time.perf_counter() - began
    print(f"\n{result['machine']}\n{result['seconds']:.0f} s in all")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def compare_suite(options: argparse.Namespace) -> dict[str, Any]:
    """Run every comparison with TRL. Returns the four main figures and every row."""
    shapes = [shape for shape in (TINY if options.tiny else SHAPES) if shape.name in options.shapes]
    vocabulary = 64 if options.tiny else VOCABULARY
    result: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        parameters = sides.make_model(model, vocabulary, tiny=options.tiny)
        print(f"{parameters:,} parameters, vocabulary {vocabulary}, float32, {options.threads} threads")

        def make_work(shape: Shape, steps: int) -> Work:
            learning_rate = {"learning_rate": 1e-2} if options.tiny else {}
            return sides.make_work(model, shape, steps, vocabulary, options.tokens_per_batch, **learning_rate)

        for shape in shapes:
            print(f"{shape.name} …", flush=True)
            headline = shape.name == "headline"
            work = make_work(shape, LOSS_STEPS if headline else 1 + options.runs)
            row, trainer = compare(work, (1, shape.pairs_per_step), options.side)
            row |= {"flop_ratio": flop_ratio(work, trainer)}
            row |= compare_with_plain_row(loading.load_model(model, "float32"), work, options.runs)
            rows.append(row)
            print("  " + ", ".join(f"{name} {value}" for name, value in _speed_cells(row).items() if name != "shape"))
            if headline:
                row |= gradient_errors(work, trainer)
                result |= {name: row[name] for name in _FIGURES}
                batch_size = row["trl_batch_size"]
                arguments = {"model": str(model), "shape": asdict(shape), "steps": 1 + options.runs}
                arguments |= {"vocabulary": vocabulary, "batch_size": batch_size}
                rows.append(memory.run_child("kept", options, **arguments) | {"shape": "headline, memory kept"})
                with trl_head_on_completions_only():
                    patched_row = compare(make_work(shape, 1 + options.runs), (batch_size,))[0]
                rows.append(patched_row | {"shape": "headline, TRL patched"})
            del trainer
        print_table("Optimizer steps, Rondo and TRL's DPOTrainer", [_speed_cells(row) for row in rows])
        if options.side == "trl-dropin":
            rows_with_dropin = [row for row in rows if "dropin_seconds" in row]
            print_table(
                "Optimizer steps of the drop-in for TRL's DPOTrainer", list(map(_dropin_cells, rows_with_dropin))
            )
        print(
            "'memory kept': the allocator of both sides keeps freed memory."
            "\n'TRL patched': TRL applies its LM head to completion tokens only, as it does on CUDA. On a CPU it scores"
            "\nevery token."
            "\nTRL, s: a step with one pair in a forward, and with all pairs of the step in one."
            "\narithmetic: FLOPs of matrix products without attention, TRL's divided by Rondo's."
            "\ntree / plain: time of forward and backward over one article's tree, divided by that over a plain causal"
            "\nrow with as many tokens (Hugging Face's decoder, SDPA, LM head and cross-entropy at as many positions)."
        )
    if result:
        names = ("loss_abs_error", *(name for name in rows[0] if name.startswith("grad_")))
        print_table("Correctness at the headline shape", [{name: f"{rows[0][name]:.2g}" for name in names}])
    peaks = memory.peak_rows(options, TINY[0] if options.tiny else MEMORY_SHAPE, rows[0]["trl_batch_size"])
    if peaks:
        print_table("Peak memory beyond the loaded model, MiB", peaks)
    return result | {"rows": rows, "memory": peaks}


_FIGURES = ("pairs_per_second_ratio", "grad_rel_error", "loss_abs_error", "unique_token_ratio")


def compare(work: Work, batch_sizes: Sequence[int], side: str = "trl") -> tuple[dict[str, Any], Any]:
    """Train one shape with Rondo, TRL and Rondo again.

    Args:
        work: what to train.
        batch_sizes: TRL trains once with each of these numbers of pairs in a forward.
        side: with `trl-dropin`, the drop-in trains between Rondo and TRL.

    Returns:
        the row, and TRL's trainer after the training with its faster batch size.
    """
    ours = sides.train_ours(work)
    dropin = None
    if side == "trl-dropin":
        dropin = trl_side.train(trl_side.make_trainer(work, work.shape.pairs_per_step, on_trees=True))
    trainers = {size: trl_side.make_trainer(work, size) for size in dict.fromkeys(batch_sizes)}
    by_batch_size = {size: trl_side.train(trainer) for size, trainer in trainers.items()}
    batch_size = min(by_batch_size, key=lambda size: statistics.median(by_batch_size[size].seconds))
    theirs = by_batch_size[batch_size]
    ours_again = sides.train_ours(work)
    seconds = ours.seconds + ours_again.seconds
    row = {
        "shape": work.shape.name,
        **asdict(replace(work.shape, name="")),
        "trl_batch_size": batch_size,
        "pairs_per_step": work.shape.pairs_per_step,
        "seconds": seconds,
        "trl_seconds": theirs.seconds,
        "trl_seconds_by_batch_size": {size: result.seconds for size, result in by_batch_size.items()},
        "pairs_per_second": work.shape.pairs_per_step / statistics.median(seconds),
        "trl_pairs_per_second": work.shape.pairs_per_step / statistics.median(theirs.seconds),
        "pairs_per_second_ratio": statistics.median(theirs.seconds) / statistics.median(seconds),
        "losses": ours.losses,
        "trl_losses": theirs.losses,
        "loss_abs_error": max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)),
    }
    if dropin is not None:
        row |= {
            "dropin_seconds": dropin.seconds,
            "dropin_ratio_to_rondo": statistics.median(seconds) / statistics.median(dropin.seconds),
            "dropin_ratio_to_trl": statistics.median(theirs.seconds) / statistics.median(dropin.seconds),
            "dropin_loss_abs_error": max(abs(a - b) for a, b in zip(dropin.losses, theirs.losses, strict=True)),
        }
    return row, trainers[batch_size]


def gradient_errors(work: Work, trainer: Any) -> dict[str, float]:
    """Relative errors |ours - TRL's| / |TRL's| of the first step's gradient, at the first and at the trained weights.

    At the first weights policy and reference round alike, and margins are 0 on both sides. At the trained weights each
    side's float32 margins carry the rounding of sums of hundreds of nats. The distance of each side from our gradient
    in float64 tells which side the rounding error comes from.
    """
    model = loading.load_model(work.model_folder, "float32")
    first, trained = deepcopy(model.state_dict()), deepcopy(trainer.model.state_dict())
    examples, tokens = work.plan[0].examples, work.tokens_per_batch
    model64 = loading.load_model(work.model_folder, "float64")
    examples64 = sides.add_references(model64, examples, tokens)

    def norm(tensors: Iterable[Tensor]) -> float:
        return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))

    def error(gradient: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
        return norm(gradient[name] - expected[name] for name in expected) / norm(expected.values())

    errors = {}
    for weights, suffix in ((first, ""), (trained, "_trained")):
        for each in (model, model64, trainer.model):
            each.load_state_dict(weights)
        ours, theirs = sides.our_gradient(model, examples, tokens), trl_side.gradient(trainer, 0)
        exact = sides.our_gradient(model64, examples64, tokens)
        errors[f"grad_rel_error{suffix}"] = error(ours, theirs)
        errors[f"grad_float64_ours{suffix}"] = error(ours, exact)
        errors[f"grad_float64_trl{suffix}"] = error(theirs, exact)
    return errors


def flop_ratio(work: Work, trainer: Any) -> float:
    """FLOPs of a step's matrix products without attention, TRL's divided by ours."""
    counts = []
    model = loading.load_model(work.model_folder, "float32")
    for step in (
        lambda: sides.our_gradient(model, work.plan[0].examples, work.tokens_per_batch),
        lambda: trl_side.gradient(trainer, 0),
    ):
        with FlopCounterMode(display=False) as counter:
            step()
        # Our attention on a CPU is products of batches of matrices. TRL's is a kernel, which torch does not count.
        flops = counter.get_flop_counts()["Global"]
        counts.append(sum(count for operation, count in flops.items() if operation is not torch.ops.aten.bmm))
    return counts[1] / counts[0]


def compare_with_plain_row(model: PreTrainedModel, work: Work, runs: int) -> dict[str, Any]:
    """Time forward and backward over one article's tree and over a plain row of as many tokens, by turns."""
    tree = pack_row([work.examples[0].article])

    def run_tree() -> None:
        completion_logps(model, tree).sum().backward()

    def run_plain() -> None:
        hidden = model.base_model(input_ids=tree.input_ids, use_cache=False).last_hidden_state[0, tree.predictors]
        F.cross_entropy(model.get_output_embeddings()(hidden), tree.targets, reduction="sum").backward()

    def seconds(function: Callable[[], None]) -> float:
        model.zero_grad()
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    run_tree()  # warm up
    run_plain()
    times = [(seconds(run_tree), seconds(run_plain)) for _ in range(2 * runs + 1)]
    tree_seconds, plain_seconds = map(list, zip(*times, strict=True))
    return {
        "tree_seconds": tree_seconds,
        "plain_seconds": plain_seconds,
        "unique_tokens": tree.tokens,
        "unique_token_ratio": statistics.median(tree_seconds) / statistics.median(plain_seconds),
    }


def compare_with_memory_kept(*, shape: dict[str, Any], steps: int, batch_size: int, **arguments: Any) -> dict[str, Any]:
    """`compare` in a process whose allocator keeps freed memory."""
    memory.keep_freed_memory()
    work = sides.make_work(shape=Shape(**shape), count=steps, **arguments)
    return compare(work, (batch_size,))[0]


TASKS: dict[str, Callable[..., dict[str, Any]]] = {"kept": compare_with_memory_kept, "peak": memory.peak}


@contextmanager
def trl_head_on_completions_only() -> Iterator[None]:
    """Patch TRL so that its fused LM head skips prompt tokens on the CPU too. No installation of TRL does this."""
    from trl.trainer import utils

    original = utils._use_triton
    utils._use_triton = lambda device: True
    try:
        yield
    finally:
        utils._use_triton = original


def _speed_cells(row: dict[str, Any]) -> dict[str, str]:
    ratio = row["pairs_per_second_ratio"]
    return {
        "shape": row["shape"],
        "pairs per step": str(row["pairs_per_step"]),
        "Rondo, s": median_and_range(row["seconds"]),
        "TRL, s": "; ".join(map(median_and_range, row["trl_seconds_by_batch_size"].values())),
        "Rondo, pairs/s": f"{row['pairs_per_second']:.2f}",
        "TRL, pairs/s": f"{row['trl_pairs_per_second']:.2f}",
        "ratio": f"{ratio:.2f}",
        "arithmetic": f"{row['flop_ratio']:.2f}" if "flop_ratio" in row else "",
        "ratio / arithmetic": f"{ratio / row['flop_ratio']:.2f}" if "flop_ratio" in row else "",
        "loss difference": f"{row['loss_abs_error']:.1e}",
        "tree / plain": f"{row['unique_token_ratio']:.2f}" if "unique_token_ratio" in row else "",
    }


def _dropin_cells(row: dict[str, Any]) -> dict[str, str]:
    return {
        "shape": row["shape"],
        "drop-in, s": median_and_range(row["dropin_seconds"]),
        "drop-in, pairs/s": f"{row['pairs_per_step'] / statistics.median(row['dropin_seconds']):.2f}",
        "drop-in / Rondo": f"{row['dropin_ratio_to_rondo']:.2f}",
        "drop-in / TRL": f"{row['dropin_ratio_to_trl']:.2f}",
        "loss difference to TRL": f"{row['dropin_loss_abs_error']:.1e}",
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [shape.name for shape in SHAPES]
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--suite", choices=("compare", "scale"), help="scale: 0.5B and 7B; the default on cuda")
    parser.add_argument("--side", choices=("trl", "trl-dropin"), default="trl", help="trl-dropin: the drop-in as well")
    parser.add_argument("--runs", type=int, default=3, help="timed steps of each shape and side (headline: 19)")
    parser.add_argument("--shapes", default=",".join(names), help="default: %(default)s")
    parser.add_argument("--vocabularies", help="for peak memory; default 32768,131072, and none with --tiny")
    parser.add_argument("--tokens-per-batch", type=int, help="of Rondo's packed rows; default 4096, on a GPU what fits")
    parser.add_argument("--threads", type=int, default=2, help="torch threads of both sides (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a toy model and toy shapes, to check that everything runs")
    parser.add_argument("--json", metavar="FILE", help="write the figures and every row")
    parser.add_argument("--child", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--arguments", help=argparse.SUPPRESS)
    scale.add_options(parser)
    options = parser.parse_args()
    options.suite = options.suite or ("compare" if options.device == "cpu" else "scale")
    if options.suite == "compare":
        if not importlib.util.find_spec("trl"):
            parser.error("TRL is not installed: make dev")
        options.tokens_per_batch = options.tokens_per_batch or TOKENS_PER_BATCH
    options.shapes = options.shapes.split(",")
    if unknown := set(options.shapes) - set(names):
        parser.error(f"--shapes has {', '.join(sorted(unknown))}; known are {', '.join(names)}")
    default = "" if options.tiny else "32768,131072"
    vocabularies = default if options.vocabularies is None else options.vocabularies
    options.vocabularies = [int(number) for number in vocabularies.split(",") if number]
    return options


if __name__ == "__main__":
    main()
