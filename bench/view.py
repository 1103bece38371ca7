"""Measures how quick `rondo view` is on a large run: `.venv/bin/python -m bench.view --articles 100000`.

Makes a run folder of two rounds with invented articles and summaries (a tenth of the articles held out, four samples of
each training article in each round), starts `rondo view` on it, and times what its page asks for: the page with its
first list while the index of the articles is being made, the making of the index, every filter, a search by text, an
article, and the page of a second `rondo view`, which finds the index. Beside the seconds on the clock are those of CPU
time that the server took, which do not grow when the machine has other work.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow as pa

from bench.print_table import print_table
from pipeline.config.loader import parse_config
from pipeline.evaluation.report.page.index import FILTERS
from pipeline.storage import parts
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import round_folder, write_settings
from pipeline.storage.schema import COLUMNS

_PART = 1000  # rows of a part
_WORDS = [a + b for a in "ba de fi go ku la me ni po ru sa te vi".split() for b in "n rk st l m ndo ric tal".split()]


def make_run(folder: str, articles: int, words: int) -> None:
    """Make a run folder. Each article has about `words` words, each summary a tenth of them."""
    ledger = Ledger(folder)
    settings = {"run": folder, "rounds": 2, "policy": {"model": "m"}, "judge": {"kind": "cloze"}}
    write_settings(ledger, parse_config({**settings, "articles": {"path": "a.jsonl"}}))
    tables: dict[str, list[str]] = {}
    for start in range(0, articles, _PART):
        for address, rows in _tables_of(range(start, min(start + _PART, articles)), words):
            arrays = {name: pa.array([row[name] for row in rows], COLUMNS[name]) for name in rows[0]}
            table = pa.table({**arrays, "skipped": pa.nulls(len(rows), pa.string())})
            parts.write_part(table, f"{folder}/{address}", "bench")
            tables[address] = []
    for address in tables:
        names = parts.list_parts(f"{folder}/{address}")["parts"]
        counts = parts.count_rows(f"{folder}/{address}", names)
        record = {"build": address, "recipe": {}, "parts": names, "in": counts.rows, "kept": counts.kept}
        ledger.finish(address, {**record, "skipped": {}, "tally": dict(counts.tally)})


def _tables_of(numbers: range, words: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The rows of these articles in each table of the run."""
    rng = random.Random(numbers.start)
    asked = []
    for number in numbers:
        text = _text(rng, words)
        question = {"question_id": "q", "question": "Which ____ is it?", "options": ["first", "second"], "answer": 0}
        row = {"article_id": f"article-{number:07d}", "article": text, "questions": [question] * 5}
        asked.append({**row, "split": "train" if number % 10 else "eval"})
    yield "questions", asked
    held_out, train = ([row for row in asked if row["split"] == split] for split in ("eval", "train"))
    for number in range(3):
        if held_out:
            rows = [_judged(row, rng, words, 1 if number else 3) for row in held_out]
            yield f"{round_folder(number)}/evaluation", rows
        if number and train:
            rows = [_judged(row, rng, words, 4) for row in train]
            yield f"{round_folder(number)}/scores", rows
            pair = {"chosen": 1, "rejected": 0, "reason": "more right answers", "weight": None}
            yield f"{round_folder(number)}/pairs", [{**row, "pairs": [pair]} for row in rows]


def _judged(row: dict[str, Any], rng: random.Random, words: int, count: int) -> dict[str, Any]:
    """The row with `count` summaries and their scores."""
    summaries, scores = [], []
    for _ in range(count):
        text, answers = _text(rng, words // 10), [rng.choice(("A", "B", "unsure")) for _ in range(5)]
        reason = "length" if rng.random() < 0.05 else "stop"
        summaries.append({"text": text, "token_ids": [1] * (words // 8), "finish_reason": reason})
        faults = {"repeated": rng.random() / 5, "copied": 0.2, "lead_copied": 0.1, "off_topic_end": 0.0}
        right = answers.count("A")
        score = {"answers": answers, "correct": right, "unread": 0, "words": words // 10, "invalid_chars": 0}
        scores.append({**score, "value": float(right), "items": [1.0] * 5, "faults": faults})
    return {**row, "writer": "w", "summaries": summaries, "scores": scores}


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(_WORDS, k=words)).capitalize() + "."


class Viewer:
    """A `rondo view` in a process of its own, and a client that holds its token."""

    def __init__(self, folder: str, cache: str):
        command = [sys.executable, "-m", "jobs.cli", "view", folder]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "XDG_CACHE_HOME": cache}
        )
        assert self.process.stdout is not None
        link = re.search(r"(http://\S+/)\?token=(\S+)", self.process.stdout.readline())
        assert link is not None, "rondo view printed no link"
        self.client = httpx.Client(base_url=link[1], headers={"Authorization": f"Bearer {link[2]}"}, timeout=600)
        self.cpu_seconds = 0.0
        self.take_cpu_seconds()  # that of its start

    def take_cpu_seconds(self) -> float:
        """CPU time that the server has taken since the last call."""
        times, before = psutil.Process(self.process.pid).cpu_times(), self.cpu_seconds
        self.cpu_seconds = times.user + times.system
        return self.cpu_seconds - before

    def close(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait()

    def ask(self, path: str, **query: Any) -> tuple[float, Any]:
        """Seconds, and the answer."""
        started = time.perf_counter()
        answer = self.client.get(path, params=query)
        answer.raise_for_status()
        return time.perf_counter() - started, answer

    def articles(self, **query: Any) -> tuple[float, Any]:
        seconds, answer = self.ask("api/articles", **{"round": 2, "split": "", **query})
        return seconds, answer.json()

    def first_page(self) -> tuple[float, Any]:
        """What the browser asks for before it shows the first list."""
        seconds = sum(self.ask(path)[0] for path in ("", "api/overview", "api/rounds"))
        listing, answer = self.articles()
        return seconds + listing, answer


def measure(folder: str, cache: str) -> list[dict[str, str]]:
    """The time of each thing that the page asks for."""
    lines: list[dict[str, str]] = []

    def line(what: str, seconds: float, found: Any = "") -> None:
        cpu, counted = f"{viewer.take_cpu_seconds():.2f}", f"{found:,}" if found != "" else ""
        lines.append({"what": what, "seconds": f"{seconds:.2f}", "CPU": cpu, "articles": counted})

    viewer = Viewer(folder, cache)
    try:
        seconds, answer = viewer.first_page()
        line("first page, without an index", seconds)
        started = time.perf_counter() - seconds
        while answer["progress"] is not None:
            time.sleep(0.1)
            answer = viewer.articles()[1]
        total = answer["total"]
        line("until the index is made, once", time.perf_counter() - started, total)
        for only in FILTERS:
            seconds, answer = viewer.articles(only=only)
            line(f"filter {only}", seconds, answer["total"])
        first, second = (item["id"] for item in viewer.articles(split="train", offset=total // 2, limit=2)[1]["items"])
        seconds, answer = viewer.ask("api/article", id=first)
        line("an article", seconds)
        line("an article of the same parts", viewer.ask("api/article", id=second)[0])
        text = f'"{answer.json()["article"][30:48]}"'
        seconds, answer = viewer.articles(text=text)
        line(f"search for {text!r}", seconds, answer["total"])
        line("the same search, page 2", viewer.articles(text=text, offset=50)[0])
    finally:
        viewer.close()
    viewer = Viewer(folder, cache)
    try:
        line("first page of the next rondo view", viewer.first_page()[0])
    finally:
        viewer.close()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--articles", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=400, help="of an article")
    parser.add_argument("--keep", metavar="FOLDER", help="make the run here, or use the one that is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = os.path.abspath(options.keep or f"{temporary}/run")
        if not Path(folder, "config.yaml").exists():
            make_run(folder, options.articles, options.words)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet")) / 2**20
        lines = measure(folder, temporary)
    print_table(f"rondo view of {options.articles:,} articles, {size:,.0f} MiB of tables", lines)


if __name__ == "__main__":
    main()
