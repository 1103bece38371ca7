"""A run: makes each artifact at its address, or finds it made, or refuses to serve a stale one.

What a stage is given, when its rows are all there, and what its record says. Left out: what is made and what is stale
(`survey.py`), how rows are stored (`tables.py`) and what the stages do.
"""

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pipeline.config import Alignment, Config, UserError
from pipeline.config.hardware import driver_node_options
from pipeline.execution.dry_run import DryRun, address_of
from pipeline.execution.progress import Display, StageProgress, summarize_record
from pipeline.execution.resources import provide_resources
from pipeline.stages.base import Stage
from pipeline.storage import parts, streams, tables
from pipeline.storage.files import remove_folder
from pipeline.storage.ledger import Artifact, Ledger, utc_now
from pipeline.storage.provenance import git_commit, package_versions


class Runner(DryRun):
    """What `play` makes things with. Arguments as of `Survey`, and `display`, what the person sees."""

    def __init__(self, config: Config | Alignment, ledger: Ledger, display: Display, remake: str | None = None):
        super().__init__(config, ledger, remake)
        self.display = display

    def reuse(self, found: Artifact) -> Artifact:
        if "training" in found.record:
            remove_folder(f"{found.uri}/checkpoints")  # in case it was cut off between its record and this
        self.display.line(found.address, f"reused  {summarize_record(found.record)}", style="dim")
        return found

    def make(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact:
        job = self._begin(stage, inputs, address)
        began = time.monotonic()
        if _by_row(stage, inputs):
            return self._stream([job])[0]
        with self.display.working([address], None, "rows" if stage.writes else "steps") as (tick,):
            if stage.writes:
                given = [streams.stream_table(self.ledger, each) if _is_table(each) else each for each in inputs]
                try:
                    said = self._whole(self._call(job, given, tick), job, tick)
                except UserError:
                    self.ledger.clear(address)  # nothing of it can be gone on with
                    raise
            else:
                said = self._call(job, inputs, tick)
        return self._finish(job, said, began)

    def _whole(self, rows: Any, job: "_Job", tick: StageProgress) -> dict[str, Any]:
        """Write a table in one go, and say what its record should."""
        self.ledger.check_held()
        table = tables.begin_table(job.made.uri, _name_of_attempt())
        for count in streams.write_rows(rows, table):
            tick.advance(count)
        self.ledger.check_held()
        said = tables.finish_table(table, expected=None)
        assert said is not None, "nothing was expected of it"
        return said

    def chain(self, *links: Sequence[Any], into: str = "") -> tuple[Artifact, ...]:
        """Where policy, judge and trainer have their own places, one pipeline: no row waits for the table to end."""
        if not self.config.hardware.together:
            return super().chain(*links, into=into)
        made: list[Artifact] = []
        jobs: list[_Job] = []
        for stage, *others in links:
            inputs, address = (*made[-1:], *others), address_of(stage, into)
            found = self.look(stage, inputs, address)
            if found is None:
                jobs.append(self._begin(stage, inputs, address))
            made.append(found or jobs[-1].made)
        return (*made[: len(made) - len(jobs)], *(self._stream(jobs) if jobs else ()))

    def _begin(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> "_Job":
        """Note what is begun, or find that this very thing was begun before and goes on."""
        recipe, begun = self.recipe(stage, inputs), self.ledger.begun(address)
        if begun is None or begun["recipe"] != recipe or not (stage.resumes or _by_row(stage, inputs)):
            self.ledger.clear(address)
            begun = {"build": uuid.uuid4().hex[:12], "recipe": recipe}
            self.ledger.begin(address, begun)
        return _Job(stage, tuple(inputs), Artifact(self.ledger.root, address, {**begun, "parts": []}))

    def _stream(self, jobs: "list[_Job]") -> list[Artifact]:
        """Make tables, each from the one before, as one pipeline; what was written before it was cut off stays."""
        began, there = time.monotonic(), -1
        # One pass is the rule; another one for as long as the last has added something that can be seen.
        while there < (there := sum(len(parts.list_parts(job.made.uri)["parts"]) for job in jobs)):
            if (said := self._pass(jobs)) is not None:
                return [self._finish(job, some, began, jobs) for job, some in zip(jobs, said, strict=True)]
        raise UserError(
            f"{jobs[-1].made.uri}: not every article has come through, as far as can be seen from here: run= must be a "
            "folder that every node shares, or a URI such as s3://bucket/run"
        )

    def _pass(self, jobs: "list[_Job]") -> list[dict[str, Any]] | None:
        """Make what is missing of the jobs' tables. None if some of it is missing still."""
        drafts: list[tables.Draft] = []
        self.ledger.check_held()
        for job in jobs:
            drafts.append(
                tables.begin_table(job.made.uri, _name_of_attempt(), within=drafts[-1].ids if drafts else None)
            )
        if dropped := sum(table.dropped for table in drafts):
            self.display.warn(f"{dropped} parts that cannot be used were removed: their articles are made again")
        source, first = jobs[0].inputs[0], jobs[0].stage.split
        total = _count(source, first)
        names = [job.made.address for job in jobs]
        with self.display.working(names, total) as ticks, ExitStack() as stack:
            for tick, table in zip(ticks, drafts, strict=True):
                tick.resume(len(table.ids))
            seen = stack.enter_context(_told(ticks, drafts)) if len(jobs) > 1 and total else None
            stream, there, kept = None, source.record["parts"], total
            for job, table, tick in zip(jobs, drafts, ticks, strict=True):
                left, uri = kept - len(table.ids), job.inputs[0].uri
                rest = streams.stream_parts(uri, there, job.stage.split, but=table.ids) if left else None
                # Of no rows come no rows, and no engine need start to say so.
                given = rest.union(stream) if rest and stream else rest or stream
                if given:
                    rows = self._call(job, (given, *job.inputs[1:]), tick)
                    if job is not jobs[-1]:
                        stream = streams.write_through(rows, table, seen)
                    else:
                        for count in streams.write_rows(rows, table):
                            tick.advance(count)
                there, kept = table.adopted, parts.count_rows(table.uri, table.adopted).kept
        self.ledger.check_held()
        said: list[dict[str, Any]] = []
        expected = source.record["ids"]
        for job, table in zip(jobs, drafts, strict=True):
            split = job.stage.split
            found = tables.finish_table(table, {s: n for s, n in expected.items() if split in (None, s)})
            if found is None:
                return None
            said.append(found)
            expected = found["ids"]
        return said

    def _call(self, job: "_Job", given: Sequence[Any], tick: StageProgress) -> Any:
        stage = job.stage
        settings = {name.rsplit(".", 1)[-1]: self.setting(name) for name in stage.settings}
        root, address = self.ledger.root, job.made.address
        equipment = provide_resources(stage.uses, self.config, job.inputs, root, address, tick)
        return stage(*(_give(stage, each) for each in given), **settings, **equipment)

    def _finish(self, job: "_Job", said: dict[str, Any], began: float, beside: "Sequence[_Job]" = ()) -> Artifact:
        others = [other.made.address for other in beside if other is not job]
        record = {
            "build": job.made.build,
            "recipe": job.made.record["recipe"],
            **said,
            "made": utc_now(),
            "seconds": round(time.monotonic() - began, 2),
            **({"together_with": others} if others else {}),
            "writer": next((artifact.build for artifact in job.inputs if "model" in artifact.record), None),
            "judge": self.config.judge.model or self.config.judge.kind if isinstance(self.config, Config) else None,
            "packages": package_versions(),
            "commit": git_commit(),
        }
        artifact = self.ledger.finish(job.made.address, record)
        if job.stage.resumes:
            remove_folder(
                f"{artifact.uri}/checkpoints"
            )  # thrice the weights, and of no use to a policy that is finished
        self.display.line(artifact.address, summarize_record(record))
        self.check_limits(job.stage, artifact)
        return artifact


@dataclass(frozen=True, eq=False)
class _Job:
    """An artifact that is being made: `made` has its address, and of its record build and recipe."""

    stage: Stage
    inputs: tuple[Artifact, ...]
    made: Artifact


@contextmanager
def _told(ticks: Sequence[StageProgress], drafts: Sequence[tables.Draft]) -> Iterator[Any]:
    """Show how far all tables of a pipeline but the last are: their rows are written elsewhere.

    Yields:
        whom the writers tell.
    """
    import ray

    seen, over = ray.remote(streams.WriteProgress).options(**driver_node_options()).remote(), threading.Event()
    shown = list(zip(ticks, drafts, strict=True))[:-1]

    def show() -> None:
        while not over.wait(1.0):
            with suppress(ray.exceptions.RayError):  # it was on a node that is gone: nothing but a bar
                found = ray.get(seen.read.remote())
                for tick, table in shown:
                    if more := len(table.ids) + found.get(table.uri, 0) - tick.done:
                        tick.advance(more)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
        ray.kill(seen)


def _by_row(stage: Stage, inputs: Sequence[Artifact]) -> bool:
    """Whether what is made of these is made row by row, of the first."""
    return bool(stage.writes and inputs and _is_table(inputs[0]) and not stage.whole)


def _is_table(artifact: Artifact) -> bool:
    return "parts" in artifact.record


def _give(stage: Stage, given: Any) -> Any:
    """Of a policy what a stage that makes rows knows it by; all else as it is."""
    if not stage.writes or not isinstance(given, Artifact):
        return given
    return given.record["digest"] if stage.name == "references" else given.build


def _name_of_attempt() -> str:
    return uuid.uuid4().hex[:8]


def _count(table: Artifact, split: str | None) -> int:
    return table.record["kept"] if split is None else table.record["tally"].get(split, 0)
