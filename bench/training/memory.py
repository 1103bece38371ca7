"""Measures the peak memory of training with Rondo and with TRL on a CPU, each in its own process.

It also sets how glibc keeps freed memory. `scale.py` measures the memory of GPUs.
"""

import argparse
import ctypes
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.training import sides, trl_side
from bench.training.sides import Shape, TrainResult, Work

ROOT = Path(__file__).parents[2]


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the kernel. Does nothing with another C library."""
    trim_threshold, max_mmaps = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(max_mmaps, 0)
        mallopt(trim_threshold, 2**31 - 1)


def peak_rows(options: argparse.Namespace, shape: Shape, batch_size: int) -> list[dict[str, Any]]:
    """Peak memory of two steps, for each vocabulary. TRL is measured at its fastest batch size and at 1."""
    rows = []
    for vocabulary in options.vocabularies:
        with tempfile.TemporaryDirectory() as folder:
            parameters = sides.make_model(Path(folder), vocabulary, tiny=options.tiny)

            def measure(side: str, size: int, **model: Any) -> float:
                result = run_child("peak", options, side=side, batch_size=size, shape=asdict(shape), **model)
                return result["peak_bytes"] / 2**20

            model = {"model": folder, "vocabulary": vocabulary}
            size = math.gcd(batch_size, shape.pairs_per_step)
            ours, trl_fastest = measure("ours", 0, **model), measure("trl", size, **model)
            trl_smallest = trl_fastest if size == 1 else measure("trl", 1, **model)
        rows.append(
            {
                "vocabulary": vocabulary,
                "gradient and AdamW": round(parameters * 12 / 2**20),  # gradient and two moments: both sides need them
                "Rondo": round(ours),
                f"TRL, batch {size}": round(trl_fastest),
                "TRL, batch 1": round(trl_smallest),
                "least TRL / Rondo": f"{min(trl_fastest, trl_smallest) / ours:.2f}",
            }
        )
    return rows


def run_child(task: str, options: argparse.Namespace, **arguments: Any) -> dict[str, Any]:
    """Run a task of `dpo.TASKS` in its own process, with the default allocator settings."""
    arguments["tokens_per_batch"] = options.tokens_per_batch
    command = [sys.executable, "-m", "bench.training.dpo", "--threads", str(options.threads), "--child", task]
    child = subprocess.run(
        [*command, "--arguments", json.dumps(arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(child.stdout.splitlines()[-1])


def peak(
    *, side: str, model: str, vocabulary: int, batch_size: int, tokens_per_batch: int, shape: dict[str, Any]
) -> dict[str, Any]:
    """Peak memory of two steps of one side, in bytes, beyond that of the process with the model loaded."""
    article_shape = Shape(**shape)
    if side == "ours":
        work = sides.make_work(Path(model), article_shape, 2, vocabulary, tokens_per_batch)
        train: Callable[[], Any] = sides.make_loop(work, TrainResult(), []).run
    else:
        examples = sides.make_examples(article_shape, 2, vocabulary)
        train = trl_side.make_trainer(Work(Path(model), examples, article_shape, tokens_per_batch), batch_size).train
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak of VmRSS
    bytes_before = _status_bytes("VmRSS")
    train()
    return {"peak_bytes": _status_bytes("VmHWM") - bytes_before}


def _status_bytes(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
