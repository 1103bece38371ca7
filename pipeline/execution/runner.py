"""Makes the artifacts of a run: calls each stage with its inputs, settings and resources, and writes its record.

Rows are stored by `storage/tables.py`. The stages are in `stages/`.
"""

import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from ray.data import Dataset

from pipeline.config import Alignment, Config, UserError
from pipeline.config.hardware import driver_node_options
from pipeline.execution.dry_run import DryRun
from pipeline.execution.executor import Executor, address_of
from pipeline.execution.progress import Display, StageProgress, summarize_record
from pipeline.execution.ray_cluster import connected_ray
from pipeline.execution.recipe import Recipe, compare_recipes
from pipeline.execution.resources import provide_resources
from pipeline.stages.base import Stage
from pipeline.storage import parts, run_folder, streams, tables
from pipeline.storage.files import remove_folder
from pipeline.storage.ledger import Artifact, Ledger, utc_now
from pipeline.storage.provenance import git_commit, package_versions


@contextmanager
def open_run(
    config: Config | Alignment, ledger: Ledger, display: Display, dry_run: DryRun, title: str
) -> Iterator["Runner"]:
    """Hold the run's lock while the block makes artifacts. If there is anything to make, also provide Ray.

    Args:
        config: the settings of the run.
        ledger: the run folder.
        display: shows progress and warnings.
        dry_run: a dry run that has walked the page that the block will walk.
        title: a line to print once the lock is held.

    Raises:
        UserError: the run is in use, `--remake` matches no artifact, or Ray cannot be started or joined.
    """
    addresses_to_remake = dry_run.addresses_to_remake()
    with ledger.lock(display.warn):
        run_folder.write_settings(ledger, config)
        display.say(title, style="bold")
        ray = connected_ray(config.hardware) if dry_run.unmade else nullcontext(config.hardware)
        with ledger.remaking(addresses_to_remake), ray as hardware:
            yield Runner(config.model_copy(update={"hardware": hardware}), ledger, display, dry_run.remake)


@dataclass(frozen=True, eq=False)
class _Job:
    """An artifact that is being made.

    Attributes:
        artifact: its address, and the build id and recipe of its record.
    """

    stage: Stage
    inputs: tuple[Artifact, ...]
    artifact: Artifact


class Runner(Executor):
    """Makes what is missing or stale. Arguments as for `Executor`, and `display`, which shows the progress."""

    def __init__(self, config: Config | Alignment, ledger: Ledger, display: Display, remake: str | None = None):
        super().__init__(config, ledger, remake)
        self.display = display

    def reuse(self, artifact: Artifact) -> Artifact:
        if "training" in artifact.record:
            _remove_checkpoints(artifact)  # the driver may have died between writing the record and removing them
        self.display.line(artifact.address, f"reused  {summarize_record(artifact.record)}", style="dim")
        return artifact

    def make(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact:
        job = self._begin(stage, inputs, address)
        if _is_made_by_row(stage, inputs):
            return self._make_pipeline([job])[0]
        started = time.monotonic()
        unit = "rows" if stage.writes else "steps"
        with self.display.working([address], None, unit) as (progress,):
            result = self._make_whole_table(job, progress) if stage.writes else self._call(job, inputs, progress)
        return self._finish(job, result, started)

    def produce_chain(self, *links: Sequence[Any], into: str = "") -> tuple[Artifact, ...]:
        """Make several tables, as one Ray Data pipeline with `hardware.together`, else one after the other.

        In a pipeline, policy, judge and trainer run on separate hardware, and no row waits until the table before is
        finished.
        """
        if not self.config.hardware.together:
            return super().produce_chain(*links, into=into)
        current: list[Artifact] = []
        jobs: list[_Job] = []
        for stage, *others in links:
            previous = jobs[-1].artifact if jobs else current[-1] if current else None
            inputs, address = ((previous, *others) if previous else tuple(others)), address_of(stage, into)
            artifact = self.resolve(stage, inputs, address)
            if artifact is None:
                jobs.append(self._begin(stage, inputs, address))
            else:
                current.append(artifact)
        return (*current, *(self._make_pipeline(jobs) if jobs else ()))

    # One job

    def _begin(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> _Job:
        """Note build id and recipe of a new artifact, or resume an interrupted artifact of the same recipe."""
        recipe, begun = self.recipe(stage, inputs), self.ledger.begun(address)
        can_resume = stage.resumes or _is_made_by_row(stage, inputs)
        if begun is None or not can_resume or self._is_changed(stage, begun["recipe"], recipe):
            self.ledger.clear(address)
            begun = {"build": uuid.uuid4().hex[:12], "recipe": recipe}
            self.ledger.begin(address, begun)
        return _Job(stage, tuple(inputs), Artifact(self.ledger.root, address, {**begun, "parts": []}))

    def _is_changed(self, stage: Stage, was: Recipe, now: Recipe) -> bool:
        """Whether an interrupted artifact was begun with another recipe.

        A training that an older version began is resumed, if settings that the older version lacked have their
        defaults. A table is not: its parts could lack columns that today's parts have.
        """
        return bool(compare_recipes(was, now, self.config)) if stage.resumes else was != now

    def _call(self, job: _Job, inputs: Sequence[Any], progress: StageProgress) -> Any:
        """Call the stage's function. Its inputs may be datasets in place of artifacts."""
        stage = job.stage
        arguments = [stage.argument(position, value) for position, value in enumerate(inputs)]
        settings = {name.rsplit(".", 1)[-1]: self.setting(name) for name in stage.settings}
        named, address = stage.named_inputs(job.inputs), job.artifact.address
        resources = provide_resources(stage.uses, self.config, named, self.ledger.root, address, progress)
        return stage(*arguments, **settings, **resources)

    def _finish(self, job: _Job, result: Mapping[str, Any], started: float, pipeline: Sequence[_Job] = ()) -> Artifact:
        """Write the record. From now on the artifact is finished."""
        together_with = [other.artifact.address for other in pipeline if other is not job]
        record = {
            "build": job.artifact.build,
            "recipe": job.artifact.record["recipe"],
            **result,
            "made": utc_now(),
            "seconds": round(time.monotonic() - started, 2),
            **({"together_with": together_with} if together_with else {}),
            "writer": next((artifact.build for artifact in job.inputs if "model" in artifact.record), None),
            "judge": self.config.judge.name if isinstance(self.config, Config) else None,
            "packages": package_versions(),
            "commit": git_commit(),
        }
        artifact = self.ledger.finish(job.artifact.address, record)
        if job.stage.resumes:
            _remove_checkpoints(artifact)  # three times the size of the weights, and useless once training is done
        self.display.line(artifact.address, summarize_record(record))
        self.check_limits(job.stage, artifact)
        return artifact

    # A table that is made as a whole

    def _make_whole_table(self, job: _Job, progress: StageProgress) -> dict[str, Any]:
        """Write a table that cannot be made row by row. Returns what its record should hold."""
        inputs = [streams.stream_table(self.ledger, each) if _is_table(each) else each for each in job.inputs]
        try:
            rows = self._call(job, inputs, progress)
            self.ledger.check_held()
            draft = tables.begin_table(job.artifact.uri, _new_attempt())
            for count in streams.write_rows(rows, draft):
                progress.advance(count)
            self.ledger.check_held()
            result = tables.finish_table(draft, expected=None)
        except UserError:
            self.ledger.clear(job.artifact.address)  # such a table cannot be resumed
            raise
        assert result is not None, "without expected ids a table is always complete"
        return result

    # Tables that are made row by row, each from the one before

    def _make_pipeline(self, jobs: Sequence[_Job]) -> list[Artifact]:
        """Make tables as one pipeline. Rows that an interrupted attempt has written are kept."""
        started, parts_before = time.monotonic(), -1
        # One pass is usually enough. If rows are missing, another follows, as long as the last pass has added parts
        # that this node can see.
        while parts_before < (parts_now := _count_parts(jobs)):
            parts_before = parts_now
            results = self._run_pass(jobs)
            if results is not None:
                finished = zip(jobs, results, strict=True)
                return [self._finish(job, result, started, jobs) for job, result in finished]
        raise UserError(
            f"{jobs[-1].artifact.uri}: some articles have not come through, as far as can be seen from here: run= must "
            "be a folder that every node shares, or a URI such as s3://bucket/run"
        )

    def _run_pass(self, jobs: Sequence[_Job]) -> list[dict[str, Any]] | None:
        """Make the missing rows of the jobs' tables. None if some rows are still missing."""
        self.ledger.check_held()
        drafts = self._begin_tables(jobs)
        source = jobs[0].inputs[0]
        total = _count_rows(source, jobs[0].stage.split)
        with self.display.working([job.artifact.address for job in jobs], total) as bars, ExitStack() as stack:
            for bar, draft in zip(bars, drafts, strict=True):
                bar.resume(len(draft.ids))
            counter = stack.enter_context(_show_written_rows(bars, drafts)) if len(jobs) > 1 and total else None
            self._stream_rows(jobs, drafts, bars, counter, total)
        self.ledger.check_held()
        return _finish_tables(jobs, drafts, source.record["ids"])

    def _begin_tables(self, jobs: Sequence[_Job]) -> list[tables.TableDraft]:
        drafts: list[tables.TableDraft] = []
        for job in jobs:
            ids_before = drafts[-1].ids if drafts else None
            drafts.append(tables.begin_table(job.artifact.uri, _new_attempt(), allowed_ids=ids_before))
        if dropped := sum(draft.dropped for draft in drafts):
            self.display.warn(f"{dropped} damaged or outdated parts were removed: their articles are made again")
        return drafts

    def _stream_rows(
        self,
        jobs: Sequence[_Job],
        drafts: Sequence[tables.TableDraft],
        bars: Sequence[StageProgress],
        counter: Any,
        total: int,
    ) -> None:
        """Connect the jobs, and run the pipeline until its last table is written.

        The input of each table has two streams: the rows of the table before that were already on disk, without those
        that this table already has; and the rows that the job before makes now.
        """
        new_rows: Dataset | None = None
        parts_before, rows_before = jobs[0].inputs[0].record["parts"], total
        for job, draft, bar in zip(jobs, drafts, bars, strict=True):
            remaining = None
            if rows_before != len(draft.ids):
                uri = job.inputs[0].uri
                remaining = streams.stream_parts(uri, parts_before, job.stage.split, excluded_ids=draft.ids)
            rows = remaining.union(new_rows) if remaining and new_rows else remaining or new_rows
            if rows:  # without rows no engine needs to start
                result = self._call(job, (rows, *job.inputs[1:]), bar)
                if job is not jobs[-1]:
                    new_rows = streams.write_through(result, draft, counter)
                else:
                    for count in streams.write_rows(result, draft):
                        bar.advance(count)
            parts_before, rows_before = draft.adopted, parts.count_rows(draft.uri, draft.adopted).kept


def _finish_tables(
    jobs: Sequence[_Job], drafts: Sequence[tables.TableDraft], source_ids: Mapping[str, int]
) -> list[dict[str, Any]] | None:
    """What the tables' records should hold. None if a table lacks an article of the table before it."""
    results: list[dict[str, Any]] = []
    for job, draft in zip(jobs, drafts, strict=True):
        ids_before = results[-1]["ids"] if results else source_ids
        expected = {split: ids for split, ids in ids_before.items() if job.stage.split in (None, split)}
        result = tables.finish_table(draft, expected)
        if result is None:
            return None
        results.append(result)
    return results


@contextmanager
def _show_written_rows(bars: Sequence[StageProgress], drafts: Sequence[tables.TableDraft]) -> Iterator[Any]:
    """Show the progress of all tables of a pipeline except the last. Their rows are written on other nodes.

    Yields:
        the actor that counts rows; the writers report their rows to it.
    """
    import ray

    counter, finished = ray.remote(streams.WriteProgress).options(**driver_node_options()).remote(), threading.Event()
    shown = list(zip(bars, drafts, strict=True))[:-1]

    def show() -> None:
        while not finished.wait(1.0):
            with suppress(ray.exceptions.RayError):  # the actor may be on a node that is gone: only the bar suffers
                written = ray.get(counter.read.remote())
                for bar, draft in shown:
                    if more := len(draft.ids) + written.get(draft.uri, 0) - bar.done:
                        bar.advance(more)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield counter
    finally:
        finished.set()
        thread.join()
        ray.kill(counter)


def _is_made_by_row(stage: Stage, inputs: Sequence[Artifact]) -> bool:
    """Whether each row is made from one row of the first input."""
    return bool(stage.writes and inputs and _is_table(inputs[0]) and stage.by_row)


def _is_table(artifact: Artifact) -> bool:
    return "parts" in artifact.record


def _count_parts(jobs: Sequence[_Job]) -> int:
    return sum(len(parts.list_parts(job.artifact.uri)["parts"]) for job in jobs)


def _count_rows(table: Artifact, split: str | None) -> int:
    return table.record["kept"] if split is None else table.record["tally"].get(split, 0)


def _new_attempt() -> str:
    return uuid.uuid4().hex[:8]


def _remove_checkpoints(artifact: Artifact) -> None:
    remove_folder(f"{artifact.uri}/checkpoints")
