"""Tables that go on where they were cut off, and pipelines of several: each article once, whatever was there before."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from judges.base import Prompt, Skip, user
from pipeline.config import Config
from pipeline.engines.pool import Pool
from pipeline.engines.scripted import ScriptedEngine
from pipeline.hardware import EngineHardware
from pipeline.ledger import Ledger
from pipeline.progress import Display
from pipeline.rows import COLUMNS, each
from pipeline.run import Run
from pipeline.stage import stage

pytestmark = pytest.mark.usefixtures("ray_cluster")

HARDWARE = EngineHardware(cpus_per_replica=0.5, batch_size=4)


def settings(run, **more):
    return Config.model_validate(
        {
            "run": str(run),
            "articles": {"path": "articles.jsonl"},
            "policy": {"model": "none"},
            "judge": {"kind": "cloze"},
            **more,
        }
    )


@stage("articles", version=1, writes=("article_id", "article", "split"))
def corpus():
    for start in range(0, 40, 10):
        rows = range(start, start + 10)
        values = {
            "article_id": [f"a{i}" for i in rows],
            "article": [f"text {i}" for i in rows],
            "split": ["eval" if i % 4 == 3 else "train" for i in rows],
            "skipped": ["empty" if i == 7 else None for i in rows],
        }
        yield pa.table({name: pa.array(column, COLUMNS[name]) for name, column in values.items()})


def script(prompt, sample):
    if prompt.messages[0]["content"] == "text 5":
        raise ValueError("prompt too long")
    return f"about {prompt.messages[0]['content']}"


def _write(engine, rows):
    replies = engine.generate([Prompt(user(row["article"]), 50) for row in rows])
    return [
        Skip(reply.error)
        if reply.error
        else {"writer": "w", "summaries": [vars(s) for s in reply.samples], "tally": {"tokens_out": 3}}
        for reply in replies
    ]


@stage("summaries", version=1, writes=("writer", "summaries"), split="train")
def write(rows):
    return Pool(lambda: ScriptedEngine(script), HARDWARE).map(rows, _write, write.writes)


def _score(engine, rows):
    return [{"second_scores": [], "tally": {"judged": 1}} for row in rows]


@stage("scores", version=1, writes=("second_scores",))
def judge(rows):
    return Pool(lambda: ScriptedEngine(script), HARDWARE).map(rows, _score, judge.writes)


def _pair(row):
    return Skip("all ties") if row["article_id"] in ("a0", "a1") else {"pairs": []}


@stage("pairs", version=1, writes=("pairs",))
def pair(rows):
    return each(rows, _pair, pair.writes)


def _anchor(engine, rows):
    return [{"reference_digest": "d"} for row in rows]


@stage("references", version=1, writes=("reference_digest",))
def anchor(rows):
    return Pool(lambda: ScriptedEngine(script), HARDWARE).map(rows, _anchor, anchor.writes)


LINKS = ((judge,), (pair,), (anchor,))
TRAIN = {f"a{i}" for i in range(40) if i % 4 != 3 and i != 7}


def play(config):
    run = Run(config, Ledger(config.run), Display())
    articles = run.produce(corpus)
    return articles, *run.chain((write, articles), *LINKS, into="round-01")


def rows(folder, skipped=False):
    found = Path(folder, "skipped") if skipped else Path(folder)
    return [row for part in sorted(found.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]


def check(folder, made):
    articles, summaries, scores, pairs, references = made
    assert (articles.record["in"], articles.record["kept"], articles.record["skipped"]) == (40, 39, {"empty": 1})
    assert (summaries.record["in"], summaries.record["skipped"]) == (30, {"prompt too long": 1})
    assert summaries.record["tally"]["tokens_out"] == 87
    assert scores.record["tally"]["judged"] == scores.record["kept"] == 29
    assert (pairs.record["in"], pairs.record["kept"], pairs.record["skipped"]) == (29, 27, {"all ties": 2})
    assert references.record["in"] == references.record["kept"] == 27
    for table in made:
        kept = [row["article_id"] for row in rows(folder / table.address)]
        assert len(kept) == len(set(kept)) == table.record["kept"]
        left = rows(folder / table.address, skipped=True)
        assert len(left) == sum(table.record["skipped"].values())
        assert sorted(table.record["parts"]) == sorted(p.name for p in (folder / table.address).glob("*.parquet"))
        assert not list((folder / table.address).rglob("*.tmp"))
    assert {row["article_id"] for row in rows(folder / "round-01/summaries")} == TRAIN - {"a5"}


@pytest.mark.parametrize("together", [False, True])
def test_a_chain_is_the_same_rows_together_or_in_turn(tmp_path, together):
    made = play(settings(tmp_path, hardware={"together": together}))
    check(tmp_path, made)
    again = play(settings(tmp_path, hardware={"together": not together}))
    assert [table.build for table in again] == [table.build for table in made]
