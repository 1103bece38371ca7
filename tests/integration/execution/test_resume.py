"""Tables that go on where they were cut off, and pipelines of several: each article once, whatever was there before."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.data.expressions import col

from judges.base import Prompt, Skip, user
from pipeline.config import Config, UserError
from pipeline.config.hardware import EngineHardware
from pipeline.execution.progress import Display
from pipeline.execution.runner import Runner
from pipeline.inference.pool import EnginePool
from pipeline.inference.scripted import ScriptedEngine
from pipeline.stages.base import Stage, stage
from pipeline.storage.ledger import Ledger
from pipeline.storage.schema import COLUMNS, map_rows
from tests.helpers.cli import wait_for

pytestmark = pytest.mark.usefixtures("ray_cluster")

STAGES = ("summaries", "scores", "pairs", "references")
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


class Work:
    """The stages of a round, which note in `folder` what they compute, and break where a file there says so."""

    def __init__(self, folder):
        self.folder, self.error = Path(folder), UserError
        pool = EnginePool(lambda: ScriptedEngine(script), HARDWARE).map
        made = {
            "summaries": (lambda rows: pool(rows, self.write, SAMPLED), SAMPLED, "train"),
            "scores": (lambda rows: pool(rows, self.score, ("second_scores",)), ("second_scores",), None),
            "pairs": (lambda rows: map_rows(rows, self.pair, ("pairs",)), ("pairs",), None),
            "references": (lambda rows: pool(rows, self.anchor, ANCHORED), ANCHORED, None),
        }
        self.stages = [
            Stage(name, function, version=1, writes=writes, split=split)
            for name, (function, writes, split) in made.items()
        ]

    def note(self, name, rows):
        """Note what is computed; break after so many rows as the file `break-NAME` says."""
        log, limit = self.folder / f"{name}.log", self.folder / f"break-{name}"
        with log.open("a") as file:
            file.write("".join(row["article_id"] + "\n" for row in rows))
        if limit.exists() and len(log.read_text().split()) > int(limit.read_text()):
            raise self.error(f"{name} breaks here")

    def computed(self, stage):
        log = self.folder / f"{stage}.log"
        return log.read_text().split() if log.exists() else []

    def write(self, engine, rows):
        self.note("summaries", rows)
        replies = engine.generate([Prompt(user(row["article"]), 50) for row in rows])
        return [
            Skip(reply.error)
            if reply.error
            else {"writer": "w", "summaries": [vars(s) for s in reply.samples], "tally": {"tokens_out": 3}}
            for reply in replies
        ]

    def score(self, engine, rows):
        self.note("scores", rows)
        return [{"second_scores": [], "tally": {"judged": 1}} for _ in rows]

    def pair(self, row):
        self.note("pairs", [row])
        return Skip("all ties") if row["article_id"] in ("a0", "a1") else {"pairs": []}

    def anchor(self, engine, rows):
        self.note("references", rows)
        return [{"reference_digest": "d"} for _ in rows]


SAMPLED, ANCHORED = ("writer", "summaries"), ("reference_digest",)
TRAIN = {f"a{i}" for i in range(40) if i % 4 != 3 and i != 7}


def play(config, work):
    run = Runner(config, Ledger(config.run), Display())
    articles = run.produce(corpus)
    first, *others = work.stages
    return articles, *run.produce_chain((first, articles), *((stage,) for stage in others), into="round-01")


def break_once(config, work, stage, after):
    """Play until a stage breaks, which it does once it has computed so many rows; then it is mended."""
    switch = work.folder / f"break-{stage}"
    switch.write_text(str(after))
    with pytest.raises(UserError, match=f"{stage} breaks here"):
        play(config, work)
    switch.unlink()


def rows(folder, skipped=False):
    found = Path(folder, "skipped") if skipped else Path(folder)
    return [row for part in sorted(found.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]


def ids(folder):
    return {row["article_id"] for skipped in (False, True) for row in rows(folder, skipped)}


def check_counts(made):
    articles, summaries, scores, pairs, references = made
    assert (articles.record["in"], articles.record["kept"], articles.record["skipped"]) == (40, 39, {"empty": 1})
    assert (summaries.record["in"], summaries.record["skipped"]) == (30, {"prompt too long": 1})
    assert summaries.record["tally"]["tokens_out"] == 87
    assert scores.record["tally"]["judged"] == scores.record["kept"] == 29
    assert (pairs.record["in"], pairs.record["kept"], pairs.record["skipped"]) == (29, 27, {"all ties": 2})
    assert references.record["in"] == references.record["kept"] == 27


def check(folder, made):
    check_counts(made)
    for table in made:
        kept = [row["article_id"] for row in rows(folder / table.address)]
        assert len(kept) == len(set(kept)) == table.record["kept"]
        left = rows(folder / table.address, skipped=True)
        assert len(left) == sum(table.record["skipped"].values())
        assert sorted(table.record["parts"]) == sorted(p.name for p in (folder / table.address).glob("*.parquet"))
        assert not list((folder / table.address).rglob("*.tmp"))
    assert {row["article_id"] for row in rows(folder / "round-01/summaries")} == TRAIN - {"a5"}


@pytest.fixture
def work(tmp_path):
    (tmp_path / "work").mkdir()
    return Work(tmp_path / "work")


@pytest.mark.parametrize("together", [False, True])
def test_a_chain_is_the_same_rows_together_or_in_turn(tmp_path, work, together):
    made = play(settings(tmp_path, hardware={"together": together}), work)
    check(tmp_path, made)
    again = play(settings(tmp_path, hardware={"together": not together}), work)
    assert [table.build for table in again] == [table.build for table in made]
    for name in STAGES:
        assert sorted(work.computed(name)) == sorted(set(work.computed(name)))


@pytest.mark.parametrize("together", [False, True])
def test_what_is_written_is_not_computed_again(tmp_path, work, together):
    """Broken once in every stage: each time the same command goes on, at last it is through."""
    config = settings(tmp_path, hardware={"together": together})
    builds = {}
    for broken, following in zip(STAGES, (*STAGES[1:], None), strict=True):
        break_once(config, work, broken, after=11)
        for path in tmp_path.rglob("begun.json"):
            address, build = str(path.parent.relative_to(tmp_path)), json.loads(path.read_text())["build"]
            assert builds.setdefault(address, build) == build, "it went on, and was not begun anew"
        written = {name: ids(tmp_path / "round-01" / name) for name in STAGES}
        noted = {name: len(work.computed(name)) for name in STAGES}
        if following:
            break_once(config, work, following, after=0)  # so far, and no further
        for name in STAGES:
            assert written[name].isdisjoint(work.computed(name)[noted[name] :]), name
    made = play(config, work)
    check(tmp_path, made)
    for table in made[1:]:
        assert builds.get(table.address, table.build) == table.build, "it went on, and was not begun anew"


@pytest.mark.parametrize("kind", [UserError, KeyError])
def test_engines_end_with_their_pipeline_whoever_keeps_its_error(tmp_path, work, kind):
    """As a notebook does; what is called next wants their CPUs and GPUs."""

    def taken():
        return ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)

    before, work.error = taken(), kind
    (work.folder / "break-scores").write_text("11")
    with pytest.raises(Exception, match="scores breaks here") as kept:
        play(settings(tmp_path, hardware={"together": True}), work)
    wait_for(lambda: taken() <= before)
    assert kept.value.__traceback__


def test_a_finished_table_with_a_damaged_part_is_named(tmp_path, work):
    config = settings(tmp_path)
    play(config, work)
    for record in tmp_path.glob("round-01/*/record.json"):
        if record.parent.name != "summaries":
            shutil.rmtree(record.parent)
    part = max((tmp_path / "round-01/summaries").glob("part-*"), key=lambda path: path.stat().st_size)
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"round-01/summaries/part-.* is damaged or gone .*--remake"):
        play(config, work)
    again = Runner(config, Ledger(config.run), Display(), remake="round-01/summaries")
    first, *others = work.stages
    made = again.produce_chain((first, again.produce(corpus)), *((stage,) for stage in others), into="round-01")
    check(tmp_path, (again.produce(corpus), *made))


def test_a_table_of_no_rows_starts_no_engine(tmp_path):
    def never():
        raise AssertionError("an engine was started for nothing")

    @stage("summaries", version=1, writes=SAMPLED, split="nobody")
    def write(rows):
        return EnginePool(never, HARDWARE).map(rows, lambda engine, some: [], SAMPLED)

    for together in (False, True):
        config = settings(tmp_path / str(together), hardware={"together": together})
        run = Runner(config, Ledger(config.run), Display())
        made = run.produce_chain((write, run.produce(corpus)), (Work(tmp_path).stages[2],))
        assert [table.record["in"] for table in made] == [0, 0]


def test_rows_that_cannot_be_seen_from_here_are_no_table(tmp_path, work):
    """Those of one article never come through, as if a worker wrote them to a disk of its own."""

    @stage("scores", version=1, writes=("second_scores",))
    def elsewhere(rows):
        return map_rows(
            rows.filter(expr=col("article_id") != "a3"), lambda row: {"second_scores": []}, ("second_scores",)
        )

    config = settings(tmp_path)
    run = Runner(config, Ledger(config.run), Display())
    with pytest.raises(UserError, match="run= must be a folder that every node shares"):
        run.produce(elsewhere, run.produce(corpus))
    assert not (tmp_path / "scores/record.json").exists()
