"""Tests that interrupted tables and pipelines of tables resume, with each article exactly once."""

import json
import shutil

import pytest
import ray
from ray.data.expressions import col

from pipeline.config import UserError
from pipeline.execution.progress import Display
from pipeline.execution.runner import Runner
from pipeline.inference.pool import EnginePool
from pipeline.stages.base import stage
from pipeline.storage.ledger import Ledger
from pipeline.storage.schema import map_rows
from tests.helpers.cli import wait_for
from tests.helpers.recovery import HARDWARE, SUMMARIES, Work, break_once, check, corpus, run_stages, settings
from tests.helpers.tables import read_rows

pytestmark = pytest.mark.usefixtures("ray_cluster")


STAGES = ("summaries", "scores", "pairs", "references")


def ids(folder):
    return {row["article_id"] for row in [*read_rows(folder), *read_rows(folder / "skipped")]}


@pytest.fixture
def work(tmp_path):
    (tmp_path / "work").mkdir()
    return Work(tmp_path / "work")


@pytest.mark.parametrize("together", [False, True])
def test_a_chain_makes_the_same_rows_together_or_in_turn(tmp_path, work, together):
    made = run_stages(settings(tmp_path, hardware={"together": together}), work)
    check(tmp_path, made)
    again = run_stages(settings(tmp_path, hardware={"together": not together}), work)
    assert [table.build for table in again] == [table.build for table in made]
    for name in STAGES:
        assert sorted(work.computed(name)) == sorted(set(work.computed(name)))


@pytest.mark.parametrize("together", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_written_rows_are_not_computed_again(tmp_path, work, together):
    """Every stage fails once. The same command resumes each time, and succeeds in the end."""
    config = settings(tmp_path, hardware={"together": together})
    builds = {}
    for broken, following in zip(STAGES, (*STAGES[1:], None), strict=True):
        break_once(config, work, broken, after=11)
        for path in tmp_path.rglob("begun.json"):
            address, build = str(path.parent.relative_to(tmp_path)), json.loads(path.read_text())["build"]
            assert builds.setdefault(address, build) == build, "it was resumed, not begun again"
        written = {name: ids(tmp_path / "round-01" / name) for name in STAGES}
        computed = {name: len(work.computed(name)) for name in STAGES}
        if following:
            break_once(config, work, following, after=0)  # stop at the first row of the next stage
        for name in STAGES:
            assert written[name].isdisjoint(work.computed(name)[computed[name] :]), name
    made = run_stages(config, work)
    check(tmp_path, made)
    for table in made[1:]:
        assert builds.get(table.address, table.build) == table.build, "it was resumed, not begun again"


@pytest.mark.parametrize("kind", [UserError, KeyError])
def test_engines_stop_when_their_pipeline_fails_even_if_the_exception_is_kept(tmp_path, work, kind):
    """A notebook keeps exceptions, and its next call needs the engines' CPUs and GPUs."""

    def cpus_in_use():
        return ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)

    before, work.error = cpus_in_use(), kind
    (work.folder / "break-scores").write_text("11")
    with pytest.raises(Exception, match="scores breaks here") as kept:
        run_stages(settings(tmp_path, hardware={"together": True}), work)
    wait_for(lambda: cpus_in_use() <= before)
    assert kept.value.__traceback__


def test_a_damaged_part_of_a_finished_table_is_reported(tmp_path, work):
    config = settings(tmp_path)
    run_stages(config, work)
    for record in tmp_path.glob("round-01/*/record.json"):
        if record.parent.name != "summaries":
            shutil.rmtree(record.parent)
    part = max((tmp_path / "round-01/summaries").glob("part-*"), key=lambda path: path.stat().st_size)
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"round-01/summaries/part-.* is damaged or gone .*--remake"):
        run_stages(config, work)
    with Runner(config, Ledger(config.run), Display(), remake="round-01/summaries") as again:
        work.residents = again.residents
        first, *others = work.stages
        made = again.produce_chain((first, again.produce(corpus)), *((stage,) for stage in others), into="round-01")
        check(tmp_path, (again.produce(corpus), *made))


def test_an_empty_table_starts_no_engine(tmp_path):
    def never():
        raise AssertionError("an engine was started without any rows")

    @stage("summaries", version=1, writes=SUMMARIES, splits=("nobody",))
    def write(rows):
        return EnginePool(never, HARDWARE).map(rows, lambda engine, some: [], SUMMARIES)

    for together in (False, True):
        config = settings(tmp_path / str(together), hardware={"together": together})
        run = Runner(config, Ledger(config.run), Display())
        made = run.produce_chain((write, run.produce(corpus)), (Work(tmp_path).stages[2],))
        assert [table.record["in"] for table in made] == [0, 0]


def test_a_table_with_rows_on_another_disk_is_not_finished(tmp_path, work):
    """The rows of one article never arrive, as if a worker wrote them to its own local disk."""

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
