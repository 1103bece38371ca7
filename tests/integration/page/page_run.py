"""A run folder with hostile texts, made by a script, and the page of it in a browser."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs.show.run_data import RunData
from jobs.show.view import serving
from pipeline.evaluation.report.metrics import collect_metrics
from pipeline.evaluation.report.render import write_report
from pipeline.round import rounds
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import write_settings
from tests.helpers.scripted_rounds import ScriptedRounds, settings

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> [a](javascript:alert(1)) "
    "<!-- {{ 7*7 }} \u202eRTL \u05e9\u05dc\u05d5\u05dd 🙂 \ufffe \u2028 " + "W" * 4000
)
ARTICLES = 100
FLAGGED = {"cut_off": {3, 50}, "repeated": {4, 51, 52}, "unread": {6}}


def text_of(number: int) -> str:
    body = f"Story {number}. The bridge of Oslo\nwas built in 19{number:02d}. Rain fell."
    return f"{HOSTILE} {body}" if number == 7 else body


class RunWithTexts(ScriptedRounds):
    """Scripted rounds whose tables can be read: each article has a question with a blank, and samples with a pair."""

    def make(self, stage, inputs, address):
        if stage.name not in ("questions", "scores", "pairs") or address.startswith("test/"):
            return super().make(stage, inputs, address)
        split = None if stage.name == "questions" else "train"
        rows = [self.asked(i) for i in range(ARTICLES) if split is None or i % 5 == 0]
        if stage.name != "questions":
            rows = [row | self.judged(i * 5, [i % 3, 1 + i % 2]) for i, row in enumerate(rows)]
        if stage.name == "pairs":
            pair = {"chosen": 1, "rejected": 0, "reason": HOSTILE, "weight": None}
            rows = [row | {"pairs": [pair], "tally": [{"what": "pairs", "count": 1}]} for row in rows]
        result = self.write(address, rows)
        self.made[address] = ()
        record = {"build": f"b-{address}", "recipe": self.recipe(stage, inputs), "seconds": 1.0, **result}
        return self.ledger.finish(address, record)

    def asked(self, number: int) -> dict[str, Any]:
        question = {"question_id": "q", "question": f"The bridge of ____ was built in 19{number:02d}.", "answer": 1}
        return {
            "article_id": HOSTILE[:60] if number == 7 else f"a{number:03d}",
            "article": text_of(number),
            "split": "eval" if number % 5 else "train",
            "questions": [question | {"options": [HOSTILE, "Oslo", "Bergen"]}],
        }

    def heldout_rows(self, number, is_test=False):
        for i in range(ARTICLES):
            if i % 5:
                yield self.asked(i) | self.judged(i, [(i * (number + 3)) % 4] * (1 if number else 3), bool(number))

    def judged(self, i: int, right: list[int], may_have_flags: bool = False) -> dict[str, Any]:
        has = {flag: may_have_flags and i in articles for flag, articles in FLAGGED.items()}
        text = HOSTILE if i == 7 else f"Oslo has a bridge of 19{i:02d}."
        faults = {"repeated": 0.5 if has["repeated"] else 0.0, "copied": 0.0, "lead_copied": 0.0, "off_topic_end": 0.0}
        return {
            "writer": "w",
            "summaries": [
                {"text": text, "token_ids": [1], "finish_reason": "length" if has["cut_off"] else "stop"} for _ in right
            ],
            "scores": [
                {
                    "answers": [None if has["unread"] else "B" if count else "A"],
                    "correct": count,
                    "unread": int(has["unread"]),
                    "words": 6,
                    "invalid_chars": 0,
                    "value": float(count),
                    "items": [float(count > 0)],
                    "faults": faults | {"other_language": None},
                }
                for count in right
            ],
            "skipped": None,
        }


def make_run(folder: Path) -> RunWithTexts:
    """A run of two rounds with its report."""
    skills = [0, 0, 0]
    config = settings(folder, skills, "pairs.preference=accuracy_only", "articles.test_fraction=0.1")
    run = RunWithTexts(config, Ledger(config.run), skills, drift=[3.0])
    finished = []
    for current in rounds(run):
        finished[current.number :] = [current]
    for number in (1, 2):
        steps = [f'{{"step": {i}, "loss": {1 / (i + number)}, "kl": {i / 9}}}' for i in range(500)]
        run.ledger.write(f"round-{number:02d}/policy/metrics.jsonl", "\n".join([*steps, '{"step": 500, "lo']))
    write_settings(run.ledger, config)
    write_report(collect_metrics(finished, config, run.ledger), [], config, run.ledger)
    return run


@contextmanager
def served(data: RunData) -> Iterator[str]:
    """Serve a run from a thread. Gives the link of the page."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = serving(data, 0)
    try:
        yield asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(30)
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def find_chromium() -> str:
    """The Chromium of this machine. Skips the test where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed (Debian: apt-get install chromium)")
    return path
