"""Measures the memory of a training worker for corpora of different sizes: `python -m bench.training.corpus_memory`.

For each size, synthetic pairs are written as a table like that of the stage `references`, a thousand rows at a time.
Then a process of its own does what a training worker does: it writes and maps the file of examples, plans all steps,
makes the checks before training, evaluates the held-out pairs, and takes a few steps with a tiny model. A thread reads
the process's memory every 20 ms.

Anonymous memory is what the process itself holds. RSS also counts pages of mapped files, which the kernel can drop.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bench.print_table import machine_info, print_table
from bench.training import sides
from pipeline.config.training import Training
from pipeline.storage.schema import COLUMNS
from pipeline.training.batches.dataset import write_examples
from pipeline.training.batches.example_table import ExampleTable
from pipeline.training.batches.node_file import shared_file
from pipeline.training.loop import TrainLoop

ROOT = Path(__file__).parents[2]
VOCABULARY, ROWS_PER_PART = 8192, 1000
DIGEST = "of no model"
MEMORY = ("RssAnon", "VmRSS")  # lines of /proc/self/status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=_sizes, default="10000,100000,1000000", help="default: %(default)s")
    parser.add_argument("--prompt", type=int, default=100, help="tokens of a prompt (%(default)s)")
    parser.add_argument("--completion", type=int, default=40, help="tokens of a completion (%(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="steps to train (%(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="epochs to plan (%(default)s)")
    parser.add_argument("--eval-fraction", type=float, default=0.005, help="share of held-out articles (%(default)s)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(train(Path(options.child), options.steps, options.epochs, options.eval_fraction)))
        return
    rows = [measure(pairs, options) for pairs in options.pairs]
    for row in rows:
        row["anonymous, ratio"] = f"{row['anonymous, MiB'] / rows[0]['anonymous, MiB']:.2f}"
    print_table(f"Peak memory of a training worker, prompts of {options.prompt} tokens, one pair per article", rows)
    print(machine_info("cpu", torch.get_num_threads()))


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def measure(pairs: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train on a corpus of this many pairs in a process of its own. Returns the row of the printed table."""
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder, "rows"), pairs, options.prompt, options.completion)
        sides.make_model(Path(folder, "model"), VOCABULARY, tiny=True)
        command = [sys.executable, "-m", "bench.training.corpus_memory", "--child", folder]
        command += ["--steps", str(options.steps), "--epochs", str(options.epochs)]
        command += ["--eval-fraction", str(options.eval_fraction)]
        child = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    found = json.loads(child.stdout.splitlines()[-1])
    row = {
        "pairs": f"{pairs:,}",
        "file of examples, MiB": round(found["file"] / 2**20),
        "anonymous, MiB": round(found["RssAnon"] / 2**20),
        "RSS, MiB": round(found["VmRSS"] / 2**20),
        "seconds to write and map": round(found["seconds"]),
    }
    print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return row


def write_corpus(folder: Path, pairs: int, prompt: int, completion: int) -> None:
    """Write a table of random token ids, one pair per article."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, pairs, ROWS_PER_PART)):
        rows = min(ROWS_PER_PART, pairs - start)
        pair = {"chosen": 0, "rejected": 1, "reason": "", "weight": None}
        table = pa.table(
            {
                "article_id": pa.array([f"{drawn:016x}" for drawn in rng.integers(0, 2**63, rows)]),
                "prompt_ids": _lists(_random_ids(rng, rows * prompt), prompt),
                "summaries": _lists(_random_summaries(rng, rows * 2, completion), 2),
                "pairs": pa.array([[pair]] * rows, COLUMNS["pairs"]),
                "reference_logps": pa.array([[-8.0 * completion] * 2] * rows, COLUMNS["reference_logps"]),
                "reference_digest": pa.array([DIGEST] * rows),
            }
        )
        pq.write_table(table, folder / f"part-{number:06d}.parquet", compression="zstd", write_page_checksum=True)


def _random_summaries(rng: np.random.Generator, count: int, tokens: int) -> pa.StructArray:
    columns = {"token_ids": _lists(_random_ids(rng, count * tokens), tokens)}
    columns |= {"text": pa.array([""] * count), "logp": pa.array([-8.0 * tokens] * count, pa.float32())}
    kind = COLUMNS["summaries"].value_type
    arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in kind]
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def _random_ids(rng: np.random.Generator, count: int) -> pa.Array:
    return pa.array(rng.integers(2, VOCABULARY, count, np.int32))


def _lists(values: pa.Array, length: int) -> pa.ListArray:
    """The values in lists of equal lengths."""
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, length), pa.int32()), values)


class _EnoughSteps(Exception):
    """The training has taken the steps that are measured."""


def train(folder: Path, steps: int, epochs: int, eval_fraction: float) -> dict[str, float]:
    """Do a training worker's work for a few steps. Returns peaks in bytes, the file's size, and seconds to make it."""
    torch.set_num_threads(1)
    parts = sorted(path.name for path in (folder / "rows").iterdir())
    settings = Training(num_train_epochs=epochs, eval_fraction=eval_fraction).model_dump()
    settings |= {"dtype": "float32", "seed": 0, "references": {"source": "trainer"}}

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == steps:
            raise _EnoughSteps

    with _peak_memory() as peaks:
        began = time.monotonic()
        with shared_file(folder.name, partial(write_examples, str(folder / "rows"), parts, DIGEST)) as path:
            size, examples = path.stat().st_size, ExampleTable.map_file(path)
        seconds = time.monotonic() - began
        loop = TrainLoop(
            examples=examples,
            model_path=str(folder / "model"),
            settings=settings,
            tokens_per_batch=4096,
            device=torch.device("cpu"),
            report=stop,
            from_reference=False,  # the values are not those of the model
        )
        with suppress(_EnoughSteps):
            loop.run()
    return peaks | {"file": size, "seconds": seconds}


@contextmanager
def _peak_memory() -> Iterator[dict[str, float]]:
    """While the block runs, keep the largest values of `MEMORY` in the dict, in bytes."""
    peaks: dict[str, float] = dict.fromkeys(MEMORY, 0)
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.02):
            status = Path("/proc/self/status").read_text()
            lines = dict(line.split(":", 1) for line in status.splitlines())
            for name in MEMORY:
                peaks[name] = max(peaks[name], int(lines[name].split()[0]) * 1024)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        is_over.set()
        thread.join()


if __name__ == "__main__":
    main()
