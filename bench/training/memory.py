"""Memory: each side's peak, in a process of its own, and what glibc does with what is freed. Left out: GPUs'."""

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
from bench.training.sides import Shape, Trained, Work

ROOT = Path(__file__).parents[2]


def keep() -> None:
    """Have glibc keep what is freed. Does nothing where the C library is another."""
    trim, most_maps = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(most_maps, 0)
        mallopt(trim, 2**31 - 1)


def rows(options: argparse.Namespace, shape: Shape, batch_size: int) -> list[dict[str, Any]]:
    """Peak memory of two steps of one article, each side in a process of its own. TRL twice: as fast, and at 1."""
    found = []
    for vocabulary in options.vocabularies:
        with tempfile.TemporaryDirectory() as folder:
            parameters = sides.make_model(Path(folder), vocabulary, tiny=options.tiny)

            def measure(side: str, size: int, **spec: Any) -> float:
                answer = child("peak", options, side=side, batch_size=size, shape=asdict(shape), **spec)
                return answer["peak_bytes"] / 2**20

            spec = {"model": folder, "vocabulary": vocabulary}
            size = math.gcd(batch_size, shape.pairs_per_step)
            ours, fast = measure("ours", 0, **spec), measure("trl", size, **spec)
            small = fast if size == 1 else measure("trl", 1, **spec)
        found.append(
            {
                "vocabulary": vocabulary,
                "parameters and AdamW": round(parameters * 12 / 2**20),  # gradient and two moments, which none escapes
                "ours": round(ours),
                f"TRL, batch {size}": round(fast),
                "TRL, batch 1": round(small),
                "least TRL / ours": f"{min(fast, small) / ours:.2f}",
            }
        )
    return found


def child(task: str, options: argparse.Namespace, **arguments: Any) -> dict[str, Any]:
    """A task in a process of its own, started as usual; the name is one of `dpo.TASKS`."""
    arguments["tokens_per_batch"] = options.tokens_per_batch
    command = [sys.executable, "-m", "bench.training.dpo", "--threads", str(options.threads), "--child", task]
    done = subprocess.run(
        [*command, "--arguments", json.dumps(arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def peak(
    *, side: str, model: str, vocabulary: int, batch_size: int, tokens_per_batch: int, shape: dict[str, Any]
) -> dict[str, int]:
    """Bytes that two steps of one side take at most, beyond the process with its model loaded."""
    form = Shape(**shape)
    if side == "ours":
        work = sides.make_work(Path(model), form, 2, vocabulary, tokens_per_batch)
        run = sides.make_run(work, Trained(), [])
        train: Callable[[], Any] = run.play
    else:
        work = Work(Path(model), sides.make_examples(form, 2, vocabulary), form, tokens_per_batch)
        train = trl_side.make(work, batch_size).train
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # from now on VmHWM counts anew
    before = _status("VmRSS")
    train()
    return {"peak_bytes": _status("VmHWM") - before}


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
