"""Times a whole round against a plain script: `python -m bench.round CONFIG [NAME=VALUE…] --runs 3 --json FILE`.

One side is `rondo run CONFIG rounds=1`, the other `plain_script.py`: vLLM's `LLM.generate` and TRL's DPOTrainer on the
same articles and models. Each run of a side is a process of its own, timed from its start to its end. The sides take
turns, so that a machine that slows down in between favours neither. The ratio is the median of Rondo's seconds over the
median of the script's.

Two shapes. The first has 161 training articles of the newsroom and an invented judge. The second has SmolLM2-135M as
policy and as rubric judge (MODEL is its folder, see requirements/get_smollm2.py), and real articles of about 320 words
(ARTICLES is a file of yours; 300 rows of CNN/DailyMail's validation set give 26 training articles):

    python -m bench.round configs/demo.yaml --runs 1
    python -m bench.round configs/smollm2_cpu.yaml policy.model=MODEL judge.kind=rubric judge.model=MODEL \\
        judge.settings={} judge.max_model_len=2048 second_judge=null scores.min_same_winner=null \\
        articles.path=ARTICLES articles.limit=300 articles.min_words=280 articles.test_fraction=0 \\
        articles.eval_fraction=0.3 summaries.n=6 pairs.max_per_article=6 --runs 1 --batch-size 2
"""

import argparse
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.print_table import machine_info, median_and_range, print_table

ROOT = Path(__file__).parents[2]


def run_rondo(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run `rondo run` to the end of its first round. Returns its figures, as `plain_script.play` does."""
    run = folder / "run"
    command = [sys.executable, "-m", "jobs.run", options.config, *options.overrides, "rounds=1", f"run={run}"]
    wall = _time(command, folder)

    def record(address: str) -> dict[str, Any]:
        return json.loads((run / address / "record.json").read_text())

    metrics = json.loads((run / "metrics.json").read_text())
    seconds = {
        "questions": record("questions")["seconds"],
        "held-out summaries": sum(record(f"round-0{i}/exam")["seconds"] for i in (0, 1)),
        "held-out scores": sum(record(f"round-0{i}/evaluation")["seconds"] for i in (0, 1)),
        "summaries, scores and references": max(
            record(f"round-01/{name}")["seconds"] for name in ("summaries", "scores", "pairs", "references")
        ),
        "training": record("round-01/policy")["seconds"],
    }
    return {
        "wall": wall,
        "seconds": seconds,
        "summaries": record("round-01/summaries")["tally"]["summaries"],
        "pairs": record("round-01/pairs")["tally"]["pairs"],
        "steps": record("round-01/policy")["training"]["steps"],
        "base": mean_value(metrics["base"]),
        "round 1": mean_value(metrics["rounds"][0]),
    }


def mean_value(figures: Mapping[str, Any]) -> float:
    """The judge's mean score of held-out summaries: right answers, or the value of a judge that gives scores."""
    return float(figures["correct_mean" if "correct_mean" in figures else "value_mean"])


def run_script(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the plain script. Returns its figures."""
    out = folder / "script.json"
    script = [sys.executable, "-m", "bench.round.plain_script", options.config, *options.overrides]
    wall = _time([*script, "--batch-size", str(options.batch_size), "--json", str(out)], folder)
    return {"wall": wall} | json.loads(out.read_text())


def _time(command: list[str], folder: Path) -> float:
    """Run a command, and return its seconds. If it fails, show the end of its output and stop."""
    began, log = time.monotonic(), folder / "output.log"
    # Not a pipe: the engines of a process that the kernel killed would keep it open.
    with (
        log.open("w") as output,
        subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True) as process,
    ):
        status = process.wait()
    wall = time.monotonic() - began
    if status:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # engines that it left
        print(log.read_text()[-3000:], file=sys.stderr)
        hint = ": out of memory? Lower --batch-size" if status == -signal.SIGKILL else ""
        sys.exit(f"{' '.join(command)} ended with exit status {status}{hint}")
    return wall


SIDES = {"rondo": run_rondo, "plain script": run_script}


def main() -> None:
    """Run both sides by turns, print their figures, and write them to a file."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.round", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a configuration whose policy and judge are model folders")
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="settings of both sides")
    parser.add_argument("--runs", type=int, default=3, help="runs of each side (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs of one forward of TRL (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    options = parser.parse_args()
    if not importlib.util.find_spec("trl"):
        parser.error("TRL is not installed: make dev")
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(options.runs):
        for side in list(SIDES)[:: -1 if number % 2 else 1]:
            with tempfile.TemporaryDirectory() as folder:
                runs[side].append(SIDES[side](options, Path(folder)))
            print(f"{side}: {runs[side][-1]['wall']:.0f} s", file=sys.stderr)
    walls = {side: [figures["wall"] for figures in each] for side, each in runs.items()}
    ratio = statistics.median(walls["rondo"]) / statistics.median(walls["plain script"])
    columns = ("summaries", "pairs", "steps", "base", "round 1")
    print_table(
        "One round, whole processes",
        [
            {"side": side, "seconds": median_and_range(walls[side])}
            | {name: f"{statistics.median(figures[name] for figures in each):.4g}" for name in columns}
            for side, each in runs.items()
        ],
    )
    for side, each in runs.items():
        steps = {name: statistics.median(figures["seconds"][name] for figures in each) for name in each[0]["seconds"]}
        print(f"{side}: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in steps.items()))
    print(f"Rondo takes {ratio:.2f} of the script's time")
    if options.json:
        machine = machine_info("cuda" if _has_gpu() else "cpu", os.cpu_count() or 1)
        options.json.write_text(json.dumps({"ratio": ratio, "runs": runs, "machine": machine}, indent=2) + "\n")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
