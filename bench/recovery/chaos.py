"""Kills a round at random moments and counts lost rows: `.venv/bin/python -m bench.recovery.chaos --json FILE`.

The script starts a small Ray cluster, and sends SIGKILL at random moments to drivers, Ray workers (engines, scorers,
training workers, tasks) and whole nodes. It repeats the same command until the round is finished. Then it compares
every table, row by row, with the tables of an undisturbed round. The policy is scripted and the judge needs no model,
so that rows can be compared; reference log-probabilities and training are real. `tests/e2e/test_chaos.py` (slow) kills
real vLLM, and `tests/integration/execution/test_storage_failures.py` covers failing files.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import load_file

from bench.print_table import print_table

ROOT = Path(__file__).parents[2]
HANG_TIMEOUT = 300  # seconds without a new file after which a driver counts as hung
MAX_STOPPED = 20  # drivers that may end with an error before the benchmark gives up
KINDS, KIND_WEIGHTS = ("driver", "worker", "node"), (6, 3, 1)
NOT_COMPARED = ("writer", "reference_digest")  # columns that identify one build of a model, so every run has its own


# The driver process: `rondo run` with a scripted engine for the policy


class PacedEngine:
    """A scripted policy that sleeps for each prompt. Sample i is i + 1 random sentences of the article."""

    def __init__(self, pace: float):
        from pipeline.inference.scripted import ScriptedEngine

        self.pace, self.engine = pace, ScriptedEngine(_summary)

    def generate(self, prompts: Any) -> Any:
        time.sleep(self.pace * len(prompts))
        return self.engine.generate(prompts)


def _summary(prompt: Any, sample: int) -> str:
    text = prompt.messages[0]["content"]
    sentences = text.split("\n", 1)[1].split(". ")
    return ". ".join(random.Random(f"{sample} {text}").sample(sentences, min(len(sentences), 1 + sample)))


def drive(config: str, pace: float) -> None:
    """Run a configuration as `rondo run` does, with `PacedEngine` in place of vLLM."""
    from jobs.cli import main
    from pipeline.execution import runner
    from pipeline.inference.pool import EnginePool

    patched: Any = runner
    provide_resources = patched.provide_resources

    def provide_with_script(names: Any, settings: Any, *others: Any) -> dict[str, Any]:
        resources = provide_resources([name for name in names if name != "policy_engine"], settings, *others)
        if "policy_engine" in names:
            resources["policy_engine"] = EnginePool(
                partial(PacedEngine, pace), settings.hardware.policy, role="policy", residents=others[-1]
            )
        return resources

    patched.provide_resources = provide_with_script
    sys.argv = ["rondo", "run", config]
    main()


# Killing


@dataclass
class Tally:
    """Counts of kills, and of rows that differ from an undisturbed run.

    Attributes:
        kills: processes or nodes that were killed.
        runs: runs that were killed, finished and compared.
        lost: rows that are missing.
        duplicated: rows that occur more than once.
        wrong: rows, tables, part files or weights that differ.
        stopped: drivers that ended with an error without being killed.
        hung: drivers that wrote no file for `HANG_TIMEOUT` seconds.
        by_kind: kills by target: driver, worker or node.
        during: kills by the stages that were running.
        errors: the end of the log of each stopped driver.
    """

    kills: int = 0
    runs: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    stopped: int = 0
    hung: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    during: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)


def write_config(folder: Path, run: Path, articles: int, together: bool) -> Path:
    """Write the articles and a configuration for one run. Returns the path of the configuration."""
    settings = {
        "run": str(run),
        "articles": {"path": str(folder / "articles.jsonl"), "eval_fraction": 0.3},
        "policy": {
            "model": str(ROOT / "newsroom/models/policy"),
            "dtype": "float32",
            "instruction": "Tell.\n{article}",
        },
        "judge": {"kind": "cloze", "questions": 4, "options": 4},
        "questions": {"min_questions": 4},
        "summaries": {"n": 4, "max_tokens": 4000},
        "scores": {"min_same_winner": None},  # the policy draws its sentences at random
        "evaluation": {"max_tokens": 4000},
        "pairs": {"threshold": 2, "min_words": 1, "max_per_article": 2},
        "training": {"pairs_per_step": 16, "learning_rate": 1e-4, "eval_fraction": 0.1},
        "report": {"resamples": 100},
        "hardware": {
            "together": together,
            "policy": {"batch_size": 8, "cpus_per_replica": 0.5},
            "judge": {"batch_size": 8, "cpus_per_replica": 0.5},
            "trainer": {"tokens_per_batch": 8192, "save_steps": 2, "cpus_per_worker": 0.5},
        },
    }
    path = folder / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with (ROOT / "newsroom/articles.jsonl").open(encoding="utf-8") as lines:
        (folder / "articles.jsonl").write_text("".join(line for line, _ in zip(lines, range(articles), strict=False)))
    return path


def start(config: Path, address: str | None, pace: float) -> "subprocess.Popen[bytes]":
    """Start a driver on the cluster at `address`. Its output is appended to a log beside the configuration."""
    log = config.with_suffix(".log").open("ab")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "bench.recovery.chaos", "--drive", str(config), "--pace", str(pace)],
        env=environment | ({"RAY_ADDRESS": address} if address else {}),
        stdout=log,
        stderr=log,
        cwd=ROOT,
    )


def running_stages(run: Path) -> str:
    """The stages that a run has begun and not finished, joined by `+`."""
    # os.walk and not rglob: the run may remove folders meanwhile.
    begun = {Path(folder).name for folder, _, names in os.walk(run) if "begun.json" in names}
    return "+".join(sorted(begun)) or "between stages"


def disturb(
    config: Path, run: Path, cluster: Any, tally: Tally, rng: random.Random, *, max_kills: int, pace: float, gap: float
) -> None:
    """Run a configuration to its end, and kill random targets up to `max_kills` times, `gap` seconds apart at most."""
    driver, kills = start(config, cluster.address, pace), 0
    while True:
        seconds = rng.uniform(0.5, gap) if kills < max_kills else HANG_TIMEOUT
        exit_status = _wait_for_exit(driver, run, seconds)
        if exit_status == 0:
            return
        kind = None
        if exit_status is not None:
            _count_stopped(config, tally)
        elif kills >= max_kills:
            tally.hung += 1
            driver.kill()
        else:
            stages, kind = running_stages(run), rng.choices(KINDS, KIND_WEIGHTS)[0]
            if not _kill(kind, driver, cluster, rng):
                continue
            kills += 1
            tally.kills += 1
            tally.by_kind[kind] += 1
            tally.during[stages] += 1
        if kind in (None, "driver") or driver.poll() is not None:
            driver.wait()
            driver = start(config, cluster.address, pace)


def _count_stopped(config: Path, tally: Tally) -> None:
    """Count a driver that ended with an error. Gives up after `MAX_STOPPED` of them."""
    tally.stopped += 1
    tally.errors.append(config.with_suffix(".log").read_text(errors="replace")[-600:])
    if tally.stopped > MAX_STOPPED:
        raise SystemExit(f"{tally.stopped} drivers ended with an error; the last one printed:\n{tally.errors[-1]}")


def _wait_for_exit(driver: Any, run: Path, seconds: float) -> int | None:
    """The driver's exit status, or None if it still runs after `seconds`.

    A wait of `HANG_TIMEOUT` or more starts again whenever the number of files in the run changes.
    """
    deadline, file_count = time.monotonic() + seconds, -1
    while time.monotonic() < deadline:
        if (exit_status := driver.poll()) is not None:
            return exit_status
        if seconds >= HANG_TIMEOUT:
            files_now = sum(len(names) for _, _, names in os.walk(run))
            if files_now != file_count:
                deadline, file_count = time.monotonic() + seconds, files_now
        time.sleep(0.1)
    return None


def _kill(kind: str, driver: Any, cluster: Any, rng: random.Random) -> bool:
    """Kill the driver, a random worker or a random node. Returns False if no worker is running."""
    if kind == "driver":
        driver.send_signal(signal.SIGKILL)
        return True
    if kind == "node":
        node = rng.choice(sorted(cluster.worker_nodes, key=lambda node: node.unique_id))
        cluster.remove_node(node, allow_graceful=False)
        add_node(cluster)
        return True
    workers = sorted(_workers(), key=lambda process: process.pid)
    if not workers:
        return False
    rng.choice(workers).kill()
    return True


def _workers() -> Iterator[psutil.Process]:
    """The busy Ray workers of the cluster that this process started."""
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if command.startswith("ray::") and not command.startswith(("ray::IDLE", "ray::Dashboard", "ray::RuntimeEnv")):
            yield process


def add_node(cluster: Any) -> None:
    cluster.add_node(num_cpus=4, object_store_memory=256 * 2**20)


def start_cluster(nodes: int) -> Any:
    """Start a head node that also runs work, and `nodes` more. Each node is a separate raylet on this machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": 256 * 2**20})
    for _ in range(nodes):
        add_node(cluster)
    return cluster


# Comparing tables


def read_tables(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each finished table, by address. Its skipped rows are under the address plus `/skipped`."""
    rows_by_address = {}
    for path in sorted(run.rglob("record.json")):
        record = json.loads(path.read_text())
        if "parts" in record:
            address = str(path.parent.relative_to(run))
            rows_by_address[address] = [row for part in record["parts"] for row in _read_part(path.parent / part)]
            skipped_parts = (path.parent / "skipped").glob("*.parquet")
            rows_by_address[f"{address}/skipped"] = [row for part in skipped_parts for row in _read_part(part)]
    return rows_by_address


def _read_part(path: Path) -> list[dict[str, Any]]:
    """Rows without the engine's log-probabilities: only the first batch of each engine start has them."""
    rows = pq.read_table(path, partitioning=None).to_pylist()
    for row in rows:
        for summary in row.get("summaries") or ():
            del summary["logp"]
    return rows


def compare(run: Path, undisturbed: Path, tally: Tally) -> None:
    """Count rows that a run lost, duplicated or changed, compared with an undisturbed run."""
    tables, expected_tables = read_tables(run), read_tables(undisturbed)
    tally.wrong += len(expected_tables.keys() ^ tables.keys())
    for address in expected_tables.keys() & tables.keys():
        rows, expected_rows = tables[address], {row["article_id"]: row for row in expected_tables[address]}
        ids = Counter(row["article_id"] for row in rows)
        tally.lost += len(expected_rows.keys() - ids.keys())
        tally.duplicated += ids.total() - len(ids)
        tally.wrong += sum(not _rows_match(row, expected_rows.get(row["article_id"], {})) for row in rows)
        if not address.endswith("/skipped"):
            record = json.loads((run / address / "record.json").read_text())
            tally.wrong += {path.name for path in (run / address).glob("part-*")} != set(record["parts"])
            tally.wrong += record["kept"] != len(rows)
    weights, expected_weights = (
        load_file(folder / "round-01/policy/model.safetensors") for folder in (run, undisturbed)
    )
    tally.wrong += any(
        not torch.allclose(weights[name], expected_weights[name], rtol=1e-3, atol=1e-5) for name in expected_weights
    )


def _rows_match(row: dict[str, Any], expected: dict[str, Any]) -> bool:
    if row.keys() != expected.keys():
        return False
    for name in row.keys() - {*NOT_COMPARED, "tally", "reference_logps"}:
        if row[name] != expected[name]:
            return False
    return _logps_match(row.get("reference_logps") or [], expected.get("reference_logps") or [])


def _logps_match(logps: list[float | None], expected: list[float | None]) -> bool:
    """Whether two lists are None at the same places and differ by at most 0.001 nat elsewhere."""
    for logp, expected_logp in zip(logps, expected, strict=True):
        if logp is None or expected_logp is None:
            if logp is not expected_logp:
                return False
        elif abs(logp - expected_logp) > 1e-3:
            return False
    return True


def chaos(kills: int, *, articles: int, per_run: int, nodes: int, seed: int, pace: float, gap: float) -> Tally:
    """Kill `kills` times, at most `per_run` times in each run, and compare each run once it is finished.

    Args:
        kills: processes and nodes to kill in all.
        articles: articles of each run.
        per_run: the most kills in one run.
        nodes: nodes beside the head.
        seed: seed of the random moments and targets.
        pace: seconds that the scripted policy sleeps for each prompt.
        gap: seconds between two kills, at most.
    """
    tally, rng = Tally(), random.Random(seed)
    cluster = start_cluster(nodes)
    try:
        with tempfile.TemporaryDirectory() as folder:
            undisturbed = Path(folder, "undisturbed")
            config = write_config(Path(folder), undisturbed, articles, together=False)
            if start(config, cluster.address, 0.0).wait() != 0:
                raise SystemExit(f"the undisturbed run failed:\n{config.with_suffix('.log').read_text()}")
            while tally.kills < kills:
                run = Path(folder, f"run-{tally.runs}")
                config = write_config(Path(folder), run, articles, together=tally.runs % 2 == 0)
                max_kills = min(per_run, kills - tally.kills)
                disturb(config, run, cluster, tally, rng, max_kills=max_kills, pace=pace, gap=gap)
                compare(run, undisturbed, tally)
                tally.runs += 1
                print(
                    f"run {tally.runs}: {tally.kills} kills, {tally.lost} lost, {tally.duplicated} duplicated, "
                    f"{tally.wrong} wrong, {tally.stopped} stopped, {tally.hung} hung",
                    flush=True,
                )
    finally:
        cluster.shutdown()
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200, help="kills in all (%(default)s)")
    parser.add_argument("--per-run", type=int, default=20, help="most kills in one run (%(default)s)")
    parser.add_argument("--articles", type=int, default=120, help="articles of each run (%(default)s)")
    parser.add_argument("--nodes", type=int, default=1, help="nodes beside the head (%(default)s)")
    parser.add_argument(
        "--pace", type=float, default=0.03, help="seconds that the scripted policy sleeps for each prompt (%(default)s)"
    )
    parser.add_argument("--apart", type=float, default=12, help="seconds between two kills, at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments and targets (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all counts")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(options.drive, options.pace)
        return
    began = time.monotonic()
    tally = chaos(
        options.kills,
        articles=options.articles,
        per_run=options.per_run,
        nodes=options.nodes,
        seed=options.seed,
        pace=options.pace,
        gap=options.apart,
    )
    result = {**vars(tally), "seconds": round(time.monotonic() - began)}
    print_table("Kills by target", [{"killed": kind, "times": n} for kind, n in tally.by_kind.most_common()])
    print_table("Kills by running stage", [{"stages": stages, "times": n} for stages, n in tally.during.most_common()])
    counts = ("kills", "runs", "lost", "duplicated", "wrong", "stopped", "hung")
    print_table("Rows", [{name: result[name] for name in counts}])
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
