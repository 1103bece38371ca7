"""Rondo's DPO trainer against TRL's, in one run: `.venv/bin/python -m bench.training.dpo`; `--help` for the rest.

Same model (random weights), pairs, token ids, order, precision and threads. A step is the whole of it on both sides:
batches, forward, loss, backward, clipping, AdamW, metrics. Ours runs before and after TRL's, so that a machine which
grows slower in between does not decide. TRL's settings are in `trl_side.py`; its batch size is the fastest of a trial.

Both sides run as Python starts them. glibc gives large blocks back to the kernel at each free and asks for them again,
and the page faults cost TRL, whose blocks are larger, more than us: a third of its time in the virtual machine where
this was written. So one more row says what is left of the ratio where both sides' allocator keeps its memory.
Left out: what the sides are (`sides.py`), how memory is measured (`memory.py`), and GPUs (`scale.py`, by
`--suite scale`).
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
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

from bench.print_table import machine, show, spread
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
LOSS_STEPS = 20  # of the headline shape, over which losses are compared
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
    result = {"machine": machine(options.device, options.threads)}
    if options.suite == "scale":
        result |= scale.suite(options)
    else:
        result |= compare_suite(options)
    result["seconds"] = time.perf_counter() - began
    print(f"\n{result['machine']}\n{result['seconds']:.0f} s in all")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def compare_suite(options: argparse.Namespace) -> dict[str, Any]:
    """Everything against TRL. Returns the four figures and every row."""
    shapes = [shape for shape in (TINY if options.tiny else SHAPES) if shape.name in options.shapes]
    vocabulary = 64 if options.tiny else VOCABULARY
    result: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        parameters = sides.make_model(model, vocabulary, tiny=options.tiny)
        print(f"{parameters:,} parameters, vocabulary {vocabulary}, float32, {options.threads} threads")

        def work(shape: Shape, steps: int) -> Work:
            more = {"learning_rate": 1e-2} if options.tiny else {}
            return sides.make_work(model, shape, steps, vocabulary, options.tokens_per_batch, **more)

        batch_size, trial = fastest_batch_size(work(shapes[0], 4))
        for shape in shapes:
            print(f"{shape.name} …", flush=True)
            headline = shape.name == "headline"
            this = work(shape, LOSS_STEPS if headline else 1 + options.runs)
            row, trainer = compare(this, math.gcd(batch_size, shape.pairs_per_step))
            row |= against_plain(loading.load_model(model, "float32"), this, options.runs)
            rows.append(row)
            print("  " + ", ".join(f"{name} {value}" for name, value in _speed(row).items() if name != "shape"))
            if headline:
                row |= gradient_errors(this, trainer) | {"flop_ratio": flop_ratio(this, trainer)}
                result |= {name: row[name] for name in _FIGURES}
                arguments = {"model": str(model), "shape": asdict(shape), "steps": 1 + options.runs}
                arguments |= {"vocabulary": vocabulary, "batch_size": batch_size}
                rows.append(memory.child("kept", options, **arguments) | {"shape": "headline, memory kept"})
                with trl_scores_completions_only():
                    patched = compare(work(shape, 1 + options.runs), batch_size)[0]
                rows.append(patched | {"shape": "headline, TRL patched"})
            del trainer
        show("Optimizer steps against TRL's DPOTrainer", [_speed(row) for row in rows])
        print(
            "'TRL patched': its LM head on completion tokens only, as TRL has it on CUDA; on CPU it scores every token."
            "\nTRL at the first shape, by per_device_train_batch_size: "
            + ", ".join(f"{size}: {seconds:.2f} s a step" for size, seconds in trial.items())
            + f"; {batch_size} is what it is compared at."
            "\ntree / plain: forward and backward of one article's tree, over those of a plain causal row of as many"
            "\ntokens (Hugging Face's decoder, SDPA, LM head and cross-entropy on as many positions)."
        )
    if result:
        names = ("loss_abs_error", *(name for name in rows[0] if name.startswith("grad_")))
        print(f"Matrix products at the headline shape, TRL's over ours: {rows[0]['flop_ratio']:.2f}")
        show("Correctness at the headline shape", [{name: f"{rows[0][name]:.2g}" for name in names}])
    peaks = memory.rows(options, TINY[0] if options.tiny else MEMORY_SHAPE, batch_size)
    if peaks:
        show("Peak memory above the loaded model, MiB", peaks)
    return result | {"trl_batch_size": batch_size, "trl_trial": trial, "rows": rows, "memory": peaks}


_FIGURES = ("pairs_per_second_ratio", "grad_rel_error", "loss_abs_error", "unique_token_ratio")


def compare(work: Work, batch_size: int) -> tuple[dict[str, Any], Any]:
    """One shape: ours, TRL's, ours. Returns the row, and TRL's trainer as it is afterwards."""
    ours = sides.train_ours(work)
    trainer = trl_side.make(work, batch_size)
    theirs = trl_side.train(trainer)
    again = sides.train_ours(work)
    seconds = ours.seconds + again.seconds
    row = {
        "shape": work.shape.name,
        **asdict(replace(work.shape, name="")),
        "trl_batch_size": batch_size,
        "pairs_per_step": work.shape.pairs_per_step,
        "seconds": seconds,
        "trl_seconds": theirs.seconds,
        "pairs_per_second": work.shape.pairs_per_step / statistics.median(seconds),
        "trl_pairs_per_second": work.shape.pairs_per_step / statistics.median(theirs.seconds),
        "pairs_per_second_ratio": statistics.median(theirs.seconds) / statistics.median(seconds),
        "losses": ours.losses,
        "trl_losses": theirs.losses,
        "loss_abs_error": max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)),
    }
    return row, trainer


def fastest_batch_size(work: Work) -> tuple[int, dict[int, float]]:
    """One pair at a time, or all of a step: at which TRL's steps took less in the median, and what each took.

    Several steps, in turn: a single one has gone either way. (Sizes between the two lie between them.)
    """
    sizes = (1, work.shape.pairs_per_step)
    took: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(2):
        for size in sizes:
            took[size] += trl_side.train(trl_side.make(work, size)).seconds
    medians = {size: statistics.median(seconds) for size, seconds in took.items()}
    return min(sizes, key=lambda size: medians[size]), medians


def gradient_errors(work: Work, trainer: Any) -> dict[str, float]:
    """Of the first step's batch, |ours - TRL's| / |TRL's|: at the first weights and at the trained ones.

    At first policy and reference round alike, and margins are 0 on both sides. Later each side's float32 margins carry
    the rounding of sums of hundreds of nats; how far either is from our gradient in float64 tells whose it is.
    """
    model = loading.load_model(work.model, "float32")
    first, trained = deepcopy(model.state_dict()), deepcopy(trainer.model.state_dict())
    examples, tokens = work.plan[0].examples, work.tokens_per_batch
    precise = loading.load_model(work.model, "float64")
    precisely = sides.refer(precise, examples, tokens)

    def norm(tensors: Iterable[Tensor]) -> float:
        return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))

    def error(found: dict[str, Tensor], true: dict[str, Tensor]) -> float:
        return norm(found[name] - true[name] for name in true) / norm(true.values())

    errors = {}
    for state, when in ((first, ""), (trained, "_trained")):
        for each in (model, precise, trainer.model):
            each.load_state_dict(state)
        ours, theirs = sides.our_gradient(model, examples, tokens), trl_side.gradient(trainer, 0)
        exact = sides.our_gradient(precise, precisely, tokens)
        errors[f"grad_rel_error{when}"] = error(ours, theirs)
        errors[f"grad_float64_ours{when}"] = error(ours, exact)
        errors[f"grad_float64_trl{when}"] = error(theirs, exact)
    return errors


def flop_ratio(work: Work, trainer: Any) -> float:
    """Multiplications in matrix products of a step, TRL's over ours: what is won if both run equally fast.

    torch does not count those of attention on a CPU, of which TRL has more still.
    """
    counts = []
    model = loading.load_model(work.model, "float32")
    for step in (
        lambda: sides.our_gradient(model, work.plan[0].examples, work.tokens_per_batch),
        lambda: trl_side.gradient(trainer, 0),
    ):
        with FlopCounterMode(display=False) as counter:
            step()
        counts.append(counter.get_total_flops())
    return counts[1] / counts[0]


def against_plain(model: PreTrainedModel, work: Work, runs: int) -> dict[str, Any]:
    """Forward and backward of one article's tree, and of a plain row of as many tokens, in turn."""
    tree = pack_row([work.examples[0].article])

    def ours() -> None:
        completion_logps(model, tree).sum().backward()

    def plain() -> None:
        hidden = model.base_model(input_ids=tree.input_ids, use_cache=False).last_hidden_state[0, tree.predictors]
        F.cross_entropy(model.get_output_embeddings()(hidden), tree.targets, reduction="sum").backward()

    def seconds(function: Callable[[], None]) -> float:
        model.zero_grad()
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    ours(), plain()  # warm up
    times = [(seconds(ours), seconds(plain)) for _ in range(2 * runs + 1)]
    tree_seconds, plain_seconds = map(list, zip(*times, strict=True))
    return {
        "tree_seconds": tree_seconds,
        "plain_seconds": plain_seconds,
        "unique_tokens": tree.tokens,
        "unique_token_ratio": statistics.median(tree_seconds) / statistics.median(plain_seconds),
    }


def kept(*, shape: dict[str, Any], steps: int, batch_size: int, **more: Any) -> dict[str, Any]:
    """`compare` with an allocator that gives nothing back."""
    memory.keep()
    work = sides.make_work(shape=Shape(**shape), count=steps, **more)
    return compare(work, batch_size)[0]


TASKS = {"kept": kept, "peak": memory.peak}


@contextmanager
def trl_scores_completions_only() -> Iterator[None]:
    """Have TRL's fused head leave out prompt tokens on the CPU too. Nobody's installation does: it is a what-if."""
    from trl.trainer import utils

    usual = utils._use_triton
    utils._use_triton = lambda device: True
    try:
        yield
    finally:
        utils._use_triton = usual


def _speed(row: dict[str, Any]) -> dict[str, str]:
    return {
        "shape": row["shape"],
        "pairs a step": str(row["pairs_per_step"]),
        "ours, s": spread(row["seconds"]),
        "TRL, s": spread(row["trl_seconds"]),
        "pairs/s": f"{row['pairs_per_second']:.2f}",
        "TRL": f"{row['trl_pairs_per_second']:.2f}",
        "ratio": f"{row['pairs_per_second_ratio']:.2f}",
        "loss differs by": f"{row['loss_abs_error']:.1e}",
        "tree / plain": f"{row['unique_token_ratio']:.2f}" if "unique_token_ratio" in row else "",
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [shape.name for shape in SHAPES]
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--suite", choices=("compare", "scale"), help="scale: 0.5B and 7B; the default on cuda")
    parser.add_argument("--runs", type=int, default=3, help="timed steps of a shape on each side (headline: 19)")
    parser.add_argument("--shapes", default=",".join(names), help="default: %(default)s")
    parser.add_argument("--vocabularies", help="to compare memory at; default 32768,131072, and none with --tiny")
    parser.add_argument("--tokens-per-batch", type=int, help="of our rows; default 4096, on a GPU what fits")
    parser.add_argument("--threads", type=int, default=2, help="torch threads of both sides (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a toy model and toy shapes: to see that it runs")
    parser.add_argument("--json", metavar="FILE", help="write the figures and every row")
    parser.add_argument("--child", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--arguments", help=argparse.SUPPRESS)
    scale.add_options(parser)
    options = parser.parse_args()
    options.suite = options.suite or ("compare" if options.device == "cpu" else "scale")
    if options.suite == "compare":
        options.tokens_per_batch = options.tokens_per_batch or TOKENS_PER_BATCH
    options.shapes = options.shapes.split(",")
    if unknown := set(options.shapes) - set(names):
        parser.error(f"no shapes called {', '.join(sorted(unknown))}: there are {', '.join(names)}")
    default = "" if options.tiny else "32768,131072"
    text = default if options.vocabularies is None else options.vocabularies
    options.vocabularies = [int(number) for number in text.split(",") if number]
    return options


if __name__ == "__main__":
    main()
