"""What a row costs Rondo itself: `.venv/bin/python -m bench.row_overhead --json FILE`.

A round's tables (articles, questions, summaries, scores, pairs, references) are made of more and more articles, with
engines that answer from a script at once. Each size is a process of its own: seconds and microseconds a row, and the
most memory that the driver had. Beside it, in turn, the same functions over the same rows in Ray Data alone, which
keeps nothing but what `write_parquet` writes: what Rondo takes beyond it is its ledger, records and row checkpoints.
`--trace` says how much of that memory are Python's own objects, in the most that there were of them; what grows beside
them is Ray's. Left out: training, and engines (`sampling.py`, `judging.py`).
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

from bench.print_table import show

ROOT = Path(__file__).parents[1]
FACTS = ("roof", "bill", "door", "song")
COLOURS = ("red", "blue", "green", "white", "black")


def article(number: int) -> str:
    """Sixty words or so, of which four can be asked about."""
    told = [f"The {fact} of house {number} is {COLOURS[(number + i) % 5]}." for i, fact in enumerate(FACTS)]
    return " ".join([*told, "Nobody who was asked about the houses that day had anything else to add to it."] * 2)


def policy_says(prompt: Any, sample: int) -> str:
    """The first facts, by the number of the sample."""
    return ". ".join(prompt.messages[0]["content"].split("\n", 1)[1].split(". ")[: sample + 1]) + "."


def judge_says(prompt: Any, sample: int) -> str:
    """Four questions about an article, or answers that depend on the summary's length alone."""
    text = prompt.messages[0]["content"]
    if "write 4 multiple-choice" in text:
        head = text.split("<article>\n", 1)[1].split(". ", 4)[:4]
        told = [line.rstrip(".").split(" is ") for line in head]
        return "\n".join(
            f"Q{i} What of {about}? Answer {colour} | {' | '.join(c for c in COLOURS if c != colour)}"
            for i, (about, colour) in enumerate(told, 1)
        )
    told_facts = text.split("<passage>\n", 1)[1].count(" is ")
    return "\n".join(f"Q{i} {'A' if i <= told_facts else 'Unsure'}" for i in range(1, 5))


def configure(folder: Path, articles: int) -> Any:
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


def given(config: Any) -> dict[str, Any]:
    """What stages are given by name: the settings' sections, and engines that answer from a script."""
    from pipeline.inference.pool import EnginePool
    from pipeline.inference.scripted import ScriptedEngine

    return {
        **dict(config),
        "dtype": config.policy.dtype,
        "policy_engine": EnginePool(partial(ScriptedEngine, policy_says), config.hardware.policy),
        "judge_engine": EnginePool(partial(ScriptedEngine, judge_says), config.hardware.judge),
        "reference_scorer": None,
        "trainer": config.hardware.trainer,
    }


def of_rondo(config: Any) -> list[str]:
    """Make the tables as a run makes them."""
    import pipeline.execution.runner
    from pipeline.execution.progress import Display
    from pipeline.execution.runner import Runner
    from pipeline.stages.articles import read_articles
    from pipeline.stages.pairs import make_pairs
    from pipeline.stages.questions import ask_questions
    from pipeline.stages.references import reference_logprobs
    from pipeline.stages.scores import score_samples
    from pipeline.stages.summaries import sample_summaries
    from pipeline.storage.ledger import Artifact, Ledger

    pipeline.execution.runner.provide_resources = lambda names, config, *_: {
        name: given(config)[name] for name in names
    }
    run = Runner(config, Ledger(config.run), Display())
    policy = Artifact(config.run, "base", {"build": "base", "recipe": {}, "model": "scripted", "digest": "d"})
    questions = run.produce(ask_questions, run.produce(read_articles))
    made = run.produce_chain(
        (sample_summaries, questions, policy), (score_samples,), (make_pairs,), (reference_logprobs, policy)
    )
    return [f"{table.address} {table.record['seconds']:.1f}s" for table in (questions, *made)]


def of_ray_data(config: Any) -> list[str]:
    """Make the same tables with Ray Data alone: each stage's function, and `write_parquet`."""
    import pyarrow.parquet as pq
    import ray.data
    from ray.data.expressions import col

    from pipeline.stages.articles import read_articles
    from pipeline.stages.pairs import make_pairs
    from pipeline.stages.questions import ask_questions
    from pipeline.stages.references import reference_logprobs
    from pipeline.stages.scores import score_samples
    from pipeline.stages.summaries import sample_summaries

    at = Path(config.run)
    (at / "articles").mkdir(parents=True)
    for number, table in enumerate(read_articles(articles=config.articles)):
        kept = table.filter(table["skipped"].is_null()).drop_columns(["skipped"])
        pq.write_table(kept, at / "articles" / f"{number}.parquet", compression="zstd")
    rows, equipment, said = "articles", given(config), []
    for stage, beside in (
        (ask_questions, ()),
        (sample_summaries, ("base",)),
        (score_samples, ()),
        (make_pairs, ()),
        (reference_logprobs, ("d",)),
    ):
        began = time.monotonic()
        names = [name.rsplit(".", 1)[-1] for name in (*stage.settings, *stage.uses)]
        table = ray.data.read_parquet(str(at / rows))
        if stage.split:
            table = table.filter(expr=col("split") == stage.split)
        made = stage(table, *beside, **{name: equipment[name] for name in names})
        made.filter(expr=col("skipped").is_null()).drop_columns(["skipped", "tally"]).write_parquet(
            str(at / stage.name)
        )
        rows = stage.name
        said.append(f"{rows} {time.monotonic() - began:.1f}s")
    return said


SIDES = {"rondo": of_rondo, "ray data": of_ray_data}


def child(side: str, articles: int, trace: bool) -> None:
    """One side, one size, in this process: prints its figures as JSON."""
    from pipeline.execution.ray_cluster import connected_ray

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "articles.jsonl").open("w", encoding="utf-8") as lines:
            for number in range(articles):
                lines.write(json.dumps({"id": f"a{number}", "text": article(number)}) + "\n")
        config = configure(folder, articles)
        with connected_ray(config.hardware):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if trace:
                tracemalloc.start()
            began = time.monotonic()
            stages = SIDES[side](config)
            seconds = time.monotonic() - began
            objects = {"python_mib": tracemalloc.get_traced_memory()[1] / 2**20} if trace else {}
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = {"driver_mib": most / 1024, "grown_mib": (most - before) / 1024} | objects
    print(json.dumps({"seconds": seconds, **memory, "at": stages}))


def measure(side: str, articles: int, trace: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.row_overhead", "--child", side, "--articles", str(articles)]
    done = subprocess.run(
        [*command, *["--trace"] * trace],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--articles", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--against", type=int, default=100_000, help="the size at which both sides are timed")
    parser.add_argument("--runs", type=int, default=3, help="of each side at that size; other sizes are timed once")
    parser.add_argument("--trace", action="store_true", help="how much memory Python's objects take; all is slower")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.articles[0], options.trace)
        return
    rows: list[dict[str, Any]] = []
    for articles in sorted({*options.articles, options.against}):
        for _ in range(options.runs if articles == options.against else 1):
            for side in SIDES if articles == options.against else ("rondo",):
                found = measure(side, articles, options.trace)
                rows.append({"side": side, "articles": articles, **found})
                print(f"{side}: {articles:,} articles, {found['seconds']:.1f} s ({', '.join(found['at'])})", flush=True)
    ours, theirs = (
        statistics.median(row["seconds"] for row in rows if (row["side"], row["articles"]) == (side, options.against))
        for side in SIDES
    )
    show(
        "A row",
        [
            {
                "side": row["side"],
                "articles": f"{row['articles']:,}",
                "s": f"{row['seconds']:.1f}",
                "µs an article": f"{row['seconds'] / row['articles'] * 1e6:.0f}",
                "driver, MiB": f"{row['driver_mib']:.0f}",
                "grown by, MiB": f"{row['grown_mib']:.0f}",
                **({"Python's objects, MiB": f"{row['python_mib']:.1f}"} if options.trace else {}),
            }
            for row in rows
        ],
    )
    overhead = 1 - theirs / ours
    print(f"\nledger, records and checkpoints: {overhead:.1%} of a round's time at {options.against:,} articles")
    if options.json:
        options.json.write_text(json.dumps({"overhead": overhead, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
