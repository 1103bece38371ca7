"""Kills a round again and again, and counts what it lost: `.venv/bin/python -m bench.recovery.chaos --json FILE`.

Drivers, Ray workers (engines, scorers, training workers, tasks) and whole nodes of a cluster of our own are killed with
SIGKILL at random moments; the same command is given again until the round is finished; then every table is compared,
row by row, with that of a round nobody disturbed. Engines are scripted, so that rows can be compared; the reference and
the training are real. Left out: real vLLM (`tests/e2e/test_chaos.py`, slow) and what goes wrong with files
(`tests/integration/execution/test_storage_failures.py`).
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

from bench.print_table import show

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds without a new file after which a driver counts as hung
NAMELESS = ("writer", "reference_digest")  # columns that name a build, which every making has its own of


# The driver: `rondo run`, but for the policy's engine


class Paced:
    """A scripted policy that takes its time: sentences of the article, by the number of the sample."""

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
    """Play a configuration as `rondo run` does, with `Paced` for vLLM."""
    import pipeline.execution.runner
    from jobs.cli import main
    from pipeline.inference.pool import EnginePool

    equip = pipeline.execution.runner.provide_resources

    def with_script(names: Any, settings: Any, *others: Any) -> dict[str, Any]:
        given = equip([name for name in names if name != "policy_engine"], settings, *others)
        if "policy_engine" in names:
            given["policy_engine"] = EnginePool(partial(Paced, pace), settings.hardware.policy)
        return given

    pipeline.execution.runner.provide_resources = with_script
    sys.argv = ["rondo", "run", config]
    main()


# The one who kills


@dataclass
class Tally:
    """What happened, and what became of the rows."""

    kills: int = 0
    runs: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    stopped: int = 0  # drivers that ended by themselves with an error
    hung: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    during: Counter[str] = field(default_factory=Counter)
    said: list[str] = field(default_factory=list)


def write_config(folder: Path, run: Path, articles: int, together: bool) -> Path:
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
    log = config.with_suffix(".log").open("ab")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "bench.recovery.chaos", "--drive", str(config), "--pace", str(pace)],
        env=environment | ({"RAY_ADDRESS": address} if address else {}),
        stdout=log,
        stderr=log,
        cwd=ROOT,
    )


def under_way(run: Path) -> str:
    """The stages that a run has begun and not finished. It may be tidying up meanwhile, hence no rglob."""
    begun = {Path(folder).name for folder, _, names in os.walk(run) if "begun.json" in names}
    return "+".join(sorted(begun)) or "between stages"


def disturb(
    config: Path, run: Path, cluster: Any, tally: Tally, rng: random.Random, *, most: int, pace: float, apart: float
) -> None:
    """Play a run to its end, killing something up to `apart` seconds after the last, `most` times at most."""
    driver, kills = start(config, cluster.address, pace), 0
    while True:
        code = _watch(driver, run, rng.uniform(0.5, apart) if kills < most else PATIENCE)
        if code == 0:
            return
        if code is not None:
            tally.stopped += 1
            tally.said.append(config.with_suffix(".log").read_text(errors="replace")[-600:])
            if tally.stopped > 20:
                raise SystemExit(f"drivers stop by themselves:\n{tally.said[-1]}")
        elif kills >= most:
            tally.hung += 1
            driver.kill()
        else:
            during, kind = under_way(run), rng.choices(("driver", "worker", "node"), (6, 3, 1))[0]
            if not _kill(kind, driver, cluster, rng):
                continue
            kills += 1
            tally.kills += 1
            tally.by_kind[kind] += 1
            tally.during[during] += 1
        if driver.poll() is not None or code is not None or kind == "driver":
            driver.wait()
            driver = start(config, cluster.address, pace)


def _watch(driver: Any, run: Path, seconds: float) -> int | None:
    """The driver's exit status, if it ends in this time; time in which files come does not count past PATIENCE."""
    deadline, seen = time.monotonic() + seconds, -1
    while time.monotonic() < deadline:
        if (code := driver.poll()) is not None:
            return code
        if seconds >= PATIENCE and (files := sum(len(names) for _, _, names in os.walk(run))) != seen:
            deadline, seen = time.monotonic() + seconds, files
        time.sleep(0.1)
    return None


def _kill(kind: str, driver: Any, cluster: Any, rng: random.Random) -> bool:
    if kind == "driver":
        driver.send_signal(signal.SIGKILL)
        return True
    if kind == "node":
        node = rng.choice(sorted(cluster.worker_nodes, key=lambda node: node.unique_id))
        cluster.remove_node(node, allow_graceful=False)
        add_node(cluster)
        return True
    found = sorted(_workers(), key=lambda process: process.pid)
    if not found:
        return False
    rng.choice(found).kill()
    return True


def _workers() -> Iterator[psutil.Process]:
    """Ray's processes that are at work for a driver, of the cluster that this process has started."""
    for process in psutil.Process().children(recursive=True):
        try:
            name = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if name.startswith("ray::") and not name.startswith(("ray::IDLE", "ray::Dashboard", "ray::RuntimeEnv")):
            yield process


def add_node(cluster: Any) -> None:
    cluster.add_node(num_cpus=4, object_store_memory=256 * 2**20)


def cluster_of(nodes: int) -> Any:
    """A head that works too, and `nodes` more, each a raylet of its own on this machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": 256 * 2**20})
    for _ in range(nodes):
        add_node(cluster)
    return cluster


# What became of the rows


def tables(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of every finished table by its address, as the record names its parts."""
    found = {}
    for path in sorted(run.rglob("record.json")):
        record = json.loads(path.read_text())
        if "parts" in record:
            address = str(path.parent.relative_to(run))
            found[address] = [row for part in record["parts"] for row in _rows(path.parent / part)]
            left = (path.parent / "skipped").glob("*.parquet")
            found[f"{address}/skipped"] = [row for part in left for row in _rows(part)]
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    """Without the engine's log-probabilities: those are of the first batch of every engine that was ever started."""
    rows = pq.read_table(path, partitioning=None).to_pylist()
    for summary in (summary for row in rows for summary in row.get("summaries") or ()):
        del summary["logp"]
    return rows


def compare(run: Path, calm: Path, tally: Tally) -> None:
    """Count what a run lost, has twice or has otherwise than the calm one."""
    ours, theirs = tables(run), tables(calm)
    tally.wrong += len(theirs.keys() ^ ours.keys())
    for address in theirs.keys() & ours.keys():
        rows, expected = ours[address], {row["article_id"]: row for row in theirs[address]}
        ids = Counter(row["article_id"] for row in rows)
        tally.lost += len(expected.keys() - ids.keys())
        tally.duplicated += ids.total() - len(ids)
        tally.wrong += sum(not _equal(row, expected.get(row["article_id"], {})) for row in rows)
        record = json.loads((run / address.removesuffix("/skipped") / "record.json").read_text())
        folder = run / address
        if not address.endswith("/skipped"):
            tally.wrong += {path.name for path in folder.glob("part-*")} != set(record["parts"])
            tally.wrong += record["kept"] != len(rows)
    mine, other = (load_file(folder / "round-01/policy/model.safetensors") for folder in (run, calm))
    tally.wrong += any(not torch.allclose(mine[name], other[name], rtol=1e-3, atol=1e-5) for name in other)


def _equal(row: dict[str, Any], other: dict[str, Any]) -> bool:
    if row.keys() != other.keys():
        return False
    for name in row.keys() - set(NAMELESS):
        if name == "reference_logps":
            for one, two in zip(row[name], other[name], strict=True):
                if (one is None) != (two is None) or (one is not None and abs(one - two) > 1e-3):
                    return False
        elif name != "tally" and row[name] != other[name]:
            return False
    return True


def chaos(kills: int, *, articles: int, per_run: int, nodes: int, seed: int, pace: float, apart: float) -> Tally:
    """Kill until there were `kills`, `per_run` to a run, and look at each run when it is finished."""
    tally, rng = Tally(), random.Random(seed)
    cluster = cluster_of(nodes)
    try:
        with tempfile.TemporaryDirectory() as folder:
            calm = Path(folder, "calm")
            done = start(write_config(Path(folder), calm, articles, together=False), cluster.address, 0.0)
            assert done.wait() == 0, (Path(folder) / "calm.log").read_text()
            while tally.kills < kills:
                run = Path(folder, f"run-{tally.runs}")
                config = write_config(Path(folder), run, articles, together=tally.runs % 2 == 0)
                disturb(
                    config, run, cluster, tally, rng, most=min(per_run, kills - tally.kills), pace=pace, apart=apart
                )
                compare(run, calm, tally)
                tally.runs += 1
                print(
                    f"run {tally.runs}: {tally.kills} kills, {tally.lost} lost, {tally.duplicated} twice, "
                    f"{tally.wrong} wrong, {tally.stopped} stopped, {tally.hung} hung",
                    flush=True,
                )
    finally:
        cluster.shutdown()
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--per-run", type=int, default=20, help="kills in a run before it is left alone to finish")
    parser.add_argument("--articles", type=int, default=120)
    parser.add_argument("--nodes", type=int, default=1, help="nodes beside the head")
    parser.add_argument("--pace", type=float, default=0.03, help="seconds that the scripted policy takes for a prompt")
    parser.add_argument("--apart", type=float, default=12, help="seconds between two kills, at the most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.drive:
        drive(given.drive, given.pace)
        return
    began = time.monotonic()
    tally = chaos(
        given.kills,
        articles=given.articles,
        per_run=given.per_run,
        nodes=given.nodes,
        seed=given.seed,
        pace=given.pace,
        apart=given.apart,
    )
    result = {**vars(tally), "seconds": round(time.monotonic() - began)}
    show("Kills, by what was killed", [{"killed": kind, "times": n} for kind, n in tally.by_kind.most_common()])
    show("Kills, by what was being made", [{"stages": what, "times": n} for what, n in tally.during.most_common()])
    show("Rows", [{name: result[name] for name in ("kills", "runs", "lost", "duplicated", "wrong", "stopped", "hung")}])
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
