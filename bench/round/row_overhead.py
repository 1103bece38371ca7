"""Measures the time that Rondo itself adds to each row: `.venv/bin/python -m bench.round.row_overhead --json FILE`.

Makes the tables of a round (articles, questions, summaries, scores, pairs, references) for several numbers of articles,
with scripted engines that reply at once. Each size runs in its own process, which reports the total seconds and the
driver's peak memory. At one size (`--against`) Ray Data alone also processes the same rows with the same functions, and
the runs of the two sides alternate. The difference is the cost of Rondo's ledger, records and row checkpoints.
`--trace` also measures the peak memory of Python objects; the rest of the memory growth is Ray's. Training and real
engines are not measured here, but by `bench.training.dpo`, `bench.inference.sampling` and `bench.inference.judging`.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

from bench.print_table import print_table

ROOT = Path(__file__).parents[2]
FACTS = ("roof", "bill", "door", "song")
COLOURS = ("red", "blue", "green", "white", "black")


def article(number: int) -> str:
    """An article of about 90 words, with four facts to ask about."""
    facts = [f"The {fact} of house {number} is {COLOURS[(number + i) % 5]}." for i, fact in enumerate(FACTS)]
    return " ".join([*facts, "Nobody who was asked about the houses that day had anything else to add to it."] * 2)


def policy_script(prompt: Any, sample: int) -> str:
    """The policy's reply: sample i is the first i + 1 facts of the article."""
    return ". ".join(prompt.messages[0]["content"].split("\n", 1)[1].split(". ")[: sample + 1]) + "."


def judge_script(prompt: Any, sample: int) -> str:
    """The judge's reply: four questions about an article, or answers that depend only on the summary's length."""
    text = prompt.messages[0]["content"]
    if "write 4 multiple-choice" in text:
        sentences = text.split("<article>\n", 1)[1].split(". ", 4)[:4]
        facts = [sentence.rstrip(".").split(" is ") for sentence in sentences]
        return "\n".join(
            f"Q{i} What of {subject}? Answer {colour} | {' | '.join(c for c in COLOURS if c != colour)}"
            for i, (subject, colour) in enumerate(facts, 1)
        )
    fact_count = text.split("<passage>\n", 1)[1].count(" is ")
    return "\n".join(f"Q{i} {'A' if i <= fact_count else 'Unsure'}" for i in range(1, 5))


def make_config(folder: Path) -> Any:
    """The configuration of a run in `folder`, which also holds its articles."""
    from pipeline.config.loader import parse_config

    return parse_config(
        {
            "run": str(folder / "run"),
            "articles": {"path": str(folder / "articles.jsonl"), "eval_fraction": 0.001},
            "policy": {"model": "scripted", "instruction": "Tell.\n{article}"},
            "judge": {"model": "scripted", "questions": 4, "options": 5},
            "questions": {"check": False, "max_skipped": 1.0},
            "summaries": {"n": 4, "max_tokens": 2000, "logprobs": True},
            "scores": {"max_unread": 1.0},
            "pairs": {"threshold": 0, "min_words": 1},
            "references": {"source": "sampler"},
            "hardware": {"policy": {"replicas": 2, "batch_size": 256}, "judge": {"replicas": 2, "batch_size": 256}},
        }
    )


def make_resources(config: Any) -> dict[str, Any]:
    """The named arguments of stages: the sections of the settings, and engines that answer from a script."""
    from pipeline.inference.pool import EnginePool
    from pipeline.inference.scripted import ScriptedEngine

    return {
        **dict(config),
        "dtype": config.policy.dtype,
        "policy_engine": EnginePool(partial(ScriptedEngine, policy_script), config.hardware.policy),
        "judge_engine": EnginePool(partial(ScriptedEngine, judge_script), config.hardware.judge),
        "reference_scorer": None,
        "trainer": config.hardware.trainer,
    }


def run_rondo(config: Any) -> list[str]:
    """Make the tables with Rondo's runner. Returns the address and seconds of each table."""
    from pipeline.execution import runner
    from pipeline.execution.progress import Display
    from pipeline.stages.articles import read_articles
    from pipeline.stages.pairs import make_pairs
    from pipeline.stages.questions import ask_questions
    from pipeline.stages.references import reference_logprobs
    from pipeline.stages.scores import score_samples
    from pipeline.stages.summaries import sample_summaries
    from pipeline.storage.ledger import Artifact, Ledger

    patched: Any = runner
    patched.provide_resources = lambda names, config, *_: {name: make_resources(config)[name] for name in names}
    run = runner.Runner(config, Ledger(config.run), Display())
    policy = Artifact(config.run, "base", {"build": "base", "recipe": {}, "model": "scripted", "digest": "d"})
    questions = run.produce(ask_questions, run.produce(read_articles))
    tables = run.produce_chain(
        (sample_summaries, questions, policy), (score_samples,), (make_pairs,), (reference_logprobs, policy)
    )
    return [f"{table.address} {table.record['seconds']:.1f}s" for table in (questions, *tables)]


def run_ray_data(config: Any) -> list[str]:
    """Make the same tables with Ray Data alone: each stage's function, then `write_parquet`.

    Returns:
        the name and seconds of each table.
    """
    import pyarrow.parquet as pq
    import ray.data
    from ray.data.expressions import col

    from pipeline.stages.articles import read_articles
    from pipeline.stages.pairs import make_pairs
    from pipeline.stages.questions import ask_questions
    from pipeline.stages.references import reference_logprobs
    from pipeline.stages.scores import score_samples
    from pipeline.stages.summaries import sample_summaries

    folder = Path(config.run)
    (folder / "articles").mkdir(parents=True)
    for number, table in enumerate(read_articles(articles=config.articles)):
        kept = table.filter(table["skipped"].is_null()).drop_columns(["skipped"])
        pq.write_table(kept, folder / "articles" / f"{number}.parquet", compression="zstd")
    input_name, resources, timings = "articles", make_resources(config), []
    for stage, other_inputs in (
        (ask_questions, ()),
        (sample_summaries, ("base",)),
        (score_samples, ()),
        (make_pairs, ()),
        (reference_logprobs, ("d",)),
    ):
        began = time.monotonic()
        names = [name.rsplit(".", 1)[-1] for name in (*stage.settings, *stage.uses)]
        rows = ray.data.read_parquet(str(folder / input_name))
        if stage.splits:
            rows = rows.filter(expr=col("split").is_in(list(stage.splits)))
        results = stage(rows, *other_inputs, **{name: resources[name] for name in names})
        kept = results.filter(expr=col("skipped").is_null()).drop_columns(["skipped", "tally"])
        kept.write_parquet(str(folder / stage.name))
        input_name = stage.name
        timings.append(f"{stage.name} {time.monotonic() - began:.1f}s")
    return timings


SIDES = {"rondo": run_rondo, "ray data": run_ray_data}


def run_child(side: str, articles: int, trace: bool) -> None:
    """Run one side at one size in this process. Prints its figures as JSON."""
    from pipeline.execution.ray_cluster import connected_ray

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "articles.jsonl").open("w", encoding="utf-8") as lines:
            for number in range(articles):
                lines.write(json.dumps({"id": f"a{number}", "text": article(number)}) + "\n")
        config = make_config(folder)
        with connected_ray(config.hardware):
            memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if trace:
                tracemalloc.start()
            began = time.monotonic()
            stages = SIDES[side](config)
            seconds = time.monotonic() - began
            python_objects = {"python_mib": tracemalloc.get_traced_memory()[1] / 2**20} if trace else {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = {"driver_mib": peak / 1024, "grown_mib": (peak - memory_before) / 1024} | python_objects
    print(json.dumps({"seconds": seconds, **memory, "at": stages}))


def measure(side: str, articles: int, trace: bool) -> dict[str, Any]:
    """Run one side at one size in a process of its own. Returns its figures."""
    command = [sys.executable, "-m", "bench.round.row_overhead", "--child", side, "--articles", str(articles)]
    child = subprocess.run(
        [*command, *["--trace"] * trace],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return json.loads(child.stdout.splitlines()[-1])


def measure_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run Rondo once at each size, and both sides `--runs` times at the size `--against`."""
    rows: list[dict[str, Any]] = []
    for articles in sorted({*options.articles, options.against}):
        compared = articles == options.against
        for _ in range(options.runs if compared else 1):
            for side in SIDES if compared else ("rondo",):
                figures = measure(side, articles, options.trace)
                rows.append({"side": side, "articles": articles, **figures})
                stages = ", ".join(figures["at"])
                print(f"{side}: {articles:,} articles, {figures['seconds']:.1f} s ({stages})", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--articles", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="sizes to run")
    parser.add_argument("--against", type=int, default=100_000, help="size at which both sides run (%(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each side at that size (%(default)s)")
    parser.add_argument("--trace", action="store_true", help="also measure the memory of Python objects, which is slow")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the overhead and all figures")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(options.child, options.articles[0], options.trace)
        return
    rows = measure_all(options)
    compared = [row for row in rows if row["articles"] == options.against]
    rondo, ray_data = (statistics.median(row["seconds"] for row in compared if row["side"] == side) for side in SIDES)
    print_table(
        "Cost of a row",
        [
            {
                "side": row["side"],
                "articles": f"{row['articles']:,}",
                "s": f"{row['seconds']:.1f}",
                "µs per article": f"{row['seconds'] / row['articles'] * 1e6:.0f}",
                "driver, MiB": f"{row['driver_mib']:.0f}",
                "growth, MiB": f"{row['grown_mib']:.0f}",
                **({"Python objects, MiB": f"{row['python_mib']:.1f}"} if options.trace else {}),
            }
            for row in rows
        ],
    )
    overhead = 1 - ray_data / rondo
    print(
        f"\nRondo's overhead at {options.against:,} articles: {overhead:.1%} of its time "
        "(below 0: Rondo is faster than Ray Data alone)"
    )
    if options.json:
        options.json.write_text(json.dumps({"overhead": overhead, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
