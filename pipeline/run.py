"""A run: makes each artifact at its address, or finds it made, or refuses to serve a stale one.

Between the page that says what is made (`round.py`, `alignment.py`) and the folder that keeps it (`ledger.py`): the
recipe of a stage, what it is given, what its record says. Left out: how rows are stored (`tables.py`) and what the
stages do.
"""

import re
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pipeline import parts, tables
from pipeline.config import Alignment, Config, UserError
from pipeline.contents import fingerprint
from pipeline.equipment import equip
from pipeline.ledger import Artifact, Ledger, differences, now
from pipeline.progress import Display, Tick, summary
from pipeline.stage import Stage
from pipeline.versions import commit, packages

UNMADE = "(to be made)"  # as a build: of what a survey finds is still to be made
_PASSES = 3  # over a table, until each article has come through: one is the rule
_LIMITS = ("max_skipped", "max_unread", "check_articles", "max_difference")


class Survey:
    """Goes over a page such as `round.py` and makes nothing: says of each artifact what a run would do with it.

    Args:
        config: what decides the result, and the hardware.
        ledger: the run's folder.
        remake: the address of an artifact to make again although it is there.

    Attributes:
        unmade: after a walk, what is to be made, by address.
    """

    def __init__(self, config: Config | Alignment, ledger: Ledger, remake: str | None = None):
        self.config, self.ledger, self.remake = config, ledger, remake
        self.seen: list[str] = []
        self.unmade: dict[str, Stage] = {}

    def produce(self, stage: Stage, *inputs: Artifact, into: str = "") -> Artifact:
        """The artifact if it is made and current; else a placeholder for one that is to be made.

        Raises:
            UserError: it is there by another recipe, and nobody asked to remake it.
        """
        address = _address(stage, into)
        return self.look(stage, inputs, address) or self.make(stage, inputs, address)

    def chain(self, *links: Sequence[Any], into: str = "") -> tuple[Artifact, ...]:
        """Tables of which each is made from the one before.

        Args:
            links: each a stage and what it is given. The first's inputs begin with the table that it is made from;
                the others' are what is given beside the table before.
        """
        made: list[Artifact] = []
        for stage, *inputs in links:
            made.append(self.produce(stage, *made[-1:], *inputs, into=into))
        return tuple(made)

    def look(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact | None:
        """What is there, if it is current; None if it is to be made. Raises UserError as `produce`."""
        self.seen.append(address)
        found = self.ledger.find(address)
        changed = differences(found.record["recipe"], self.recipe(stage, inputs)) if found else []
        if found and not changed and not self._asked(address, found):
            self.check_limits(stage, found)
            return self.reuse(found)
        # Inputs differ alone where one was made again, which somebody asked for: what follows is made again unasked.
        # Not so where nothing but another policy is begun with: that is a setting's doing, once it is known which one.
        chosen = all(map(_other_policy, changed)) and all(artifact.build != UNMADE for artifact in inputs)
        settings = changed if chosen else [line for line in changed if not line.startswith("inputs.")]
        if settings and address != self.remake:
            return self.refuse(address, settings)
        return None

    def reuse(self, found: Artifact) -> Artifact:
        return found

    def refuse(self, address: str, changed: list[str]) -> Artifact:
        lines = "\n".join(f"  {line}" for line in changed)
        raise UserError(
            f"{self.ledger.root}/{address} was made by another recipe:\n{lines}\n"
            f"Make it and what follows again with --remake {address}, or give the run a new name: run=…"
        )

    def make(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact:
        self.unmade[address] = stage
        # What follows sees a build that no record names, and so is to be made too.
        return Artifact(self.ledger.root, address, {"build": UNMADE, "kept": 1})

    def check_remake(self) -> None:
        """After a walk: raises UserError if no artifact has the address that is to be remade."""
        if self.remake is not None and self.remake not in self.seen:
            raise UserError(f"--remake {self.remake}: there is no such artifact; there are {', '.join(self.seen)}")

    def _asked(self, address: str, found: Artifact) -> bool:
        """Whether it is to be remade although it is current: once, however often the command is cut off."""
        return address == self.remake and self.ledger.to_remake(address) in (None, found.build)

    def recipe(self, stage: Stage, inputs: Sequence[Artifact]) -> dict[str, Any]:
        """What decides a stage's result. Inputs are named by build: making one again is not making it equal."""
        return {
            "stage": stage.name,
            "version": stage.version,
            "settings": {name: _without_limits(_plain(self.setting(name))) for name in stage.settings},
            "contents": {name: fingerprint(self.setting(name)) for name in stage.contents},
            "inputs": {artifact.address: artifact.build for artifact in inputs},
        }

    def setting(self, name: str) -> Any:
        """A section or a value of the configuration, by its dotted name; None of a section that is None."""
        value: Any = self.config
        for part in name.split("."):
            if value is not None:
                value = value[part] if isinstance(value, dict) else getattr(value, part)
        return value

    def check_limits(self, stage: Stage, artifact: Artifact) -> None:
        """Raises UserError if more rows were skipped, or answers unread, than the settings allow."""
        record = artifact.record
        for name in stage.limits:
            limit = self.setting(name)
            if name.endswith("max_skipped"):
                share, what = sum(record["skipped"].values()) / max(1, record["in"]), "rows were skipped"
            else:
                tally = record["tally"]
                share, what = tally.get("unread", 0) / max(1, tally.get("answers", 0)), "answers could not be read"
            if share > limit:
                reasons = "".join(f"\n  {count:,} {reason}" for reason, count in record["skipped"].items())
                raise UserError(
                    f"{artifact.address}: {share:.1%} of {what}, and {name} allows {limit:.1%}{reasons}\n"
                    f"Look at {artifact.uri}/, mend the cause and --remake {artifact.address}, or go on with {name}=…"
                )


class Run(Survey):
    """What `play` makes things with. Arguments as of `Survey`, and `display`, what the person sees."""

    def __init__(self, config: Config | Alignment, ledger: Ledger, display: Display, remake: str | None = None):
        super().__init__(config, ledger, remake)
        self.display = display

    def reuse(self, found: Artifact) -> Artifact:
        self.display.line(found.address, f"reused  {summary(found.record)}", style="dim")
        return found

    def make(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact:
        job = self._begin(stage, inputs, address)
        began = time.monotonic()
        if _by_row(stage, inputs):
            return self._stream([job])[0]
        with self.display.working([address], None, "rows" if stage.writes else "steps") as (tick,):
            if stage.writes:
                given = [tables.of(self.ledger, each) if _is_table(each) else each for each in inputs]
                try:
                    said = self._whole(self._call(job, given, tick), job, tick)
                except UserError:
                    self.ledger.clear(address)  # nothing of it can be gone on with
                    raise
            else:
                said = self._call(job, inputs, tick)
        return self._finish(job, said, began)

    def _whole(self, rows: Any, job: "_Job", tick: Tick) -> dict[str, Any]:
        """Write a table in one go, and say what its record should."""
        table = tables.draft(job.made.uri, _name_of_attempt())
        for count in tables.write(rows, table):
            tick.advance(count)
        said = tables.finish(table, expected=None)
        assert said is not None, "nothing was expected of it"
        return said

    def chain(self, *links: Sequence[Any], into: str = "") -> tuple[Artifact, ...]:
        """Where policy, judge and trainer have their own places, one pipeline: no row waits for the table to end."""
        if not self.config.hardware.together:
            return super().chain(*links, into=into)
        made: list[Artifact] = []
        jobs: list[_Job] = []
        for stage, *others in links:
            inputs, address = (*made[-1:], *others), _address(stage, into)
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
        began = time.monotonic()
        for _ in range(_PASSES):
            if (said := self._pass(jobs)) is not None:
                return [self._finish(job, some, began, jobs) for job, some in zip(jobs, said, strict=True)]
        raise UserError(
            f"{jobs[-1].made.uri}: not every article has come through, as far as can be seen from here: run= must be a "
            "folder that every node shares, or a URI such as s3://bucket/run"
        )

    def _pass(self, jobs: "list[_Job]") -> list[dict[str, Any]] | None:
        """Make what is missing of the jobs' tables. None if some of it is missing still."""
        drafts: list[tables.Draft] = []
        for job in jobs:
            drafts.append(tables.draft(job.made.uri, _name_of_attempt(), within=drafts[-1].ids if drafts else None))
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
                rest = tables.rows(uri, there, job.stage.split, but=table.ids) if left else None
                # Of no rows come no rows, and no engine need start to say so.
                given = rest.union(stream) if rest and stream else rest or stream
                if given:
                    rows = self._call(job, (given, *job.inputs[1:]), tick)
                    if job is not jobs[-1]:
                        stream = tables.tap(rows, table, seen)
                    else:
                        for count in tables.write(rows, table):
                            tick.advance(count)
                there, kept = table.adopted, parts.count(table.uri, table.adopted).kept
        said: list[dict[str, Any]] = []
        expected = source.record["ids"]
        for job, table in zip(jobs, drafts, strict=True):
            split = job.stage.split
            found = tables.finish(table, {s: n for s, n in expected.items() if split in (None, s)})
            if found is None:
                return None
            said.append(found)
            expected = found["ids"]
        return said

    def _call(self, job: "_Job", given: Sequence[Any], tick: Tick) -> Any:
        stage = job.stage
        settings = {name.rsplit(".", 1)[-1]: self.setting(name) for name in stage.settings}
        root, address = self.ledger.root, job.made.address
        equipment = equip(stage.uses, self.config, job.inputs, root, address, tick)
        return stage(*(_give(stage, each) for each in given), **settings, **equipment)

    def _finish(self, job: "_Job", said: dict[str, Any], began: float, beside: "Sequence[_Job]" = ()) -> Artifact:
        others = [other.made.address for other in beside if other is not job]
        record = {
            "build": job.made.build,
            "recipe": job.made.record["recipe"],
            **said,
            "made": now(),
            "seconds": round(time.monotonic() - began, 2),
            **({"together_with": others} if others else {}),
            "writer": next((artifact.build for artifact in job.inputs if "model" in artifact.record), None),
            "judge": self.config.judge.model or self.config.judge.kind if isinstance(self.config, Config) else None,
            "packages": packages(),
            "commit": commit(),
        }
        artifact = self.ledger.finish(job.made.address, record)
        self.display.line(artifact.address, summary(record))
        self.check_limits(job.stage, artifact)
        return artifact


@dataclass(frozen=True, eq=False)
class _Job:
    """An artifact that is being made: `made` has its address, and of its record build and recipe."""

    stage: Stage
    inputs: tuple[Artifact, ...]
    made: Artifact


@contextmanager
def _told(ticks: Sequence[Tick], drafts: Sequence[tables.Draft]) -> Iterator[Any]:
    """Show how far all tables of a pipeline but the last are: their rows are written elsewhere.

    Yields:
        whom the writers tell.
    """
    import ray

    seen, over = tables.Seen.remote(), threading.Event()  # type: ignore[attr-defined]
    shown = list(zip(ticks, drafts, strict=True))[:-1]

    def show() -> None:
        while not over.wait(1.0):
            with suppress(ray.exceptions.RayError):  # it was on a node that is gone: nothing but a bar
                found = ray.get(seen.read.remote())
                for tick, table in shown:
                    tick.advance(len(table.ids) + found.get(table.uri, 0) - tick.done)

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


def _address(stage: Stage, into: str) -> str:
    return f"{into}/{stage.name}".lstrip("/")


def _name_of_attempt() -> str:
    return uuid.uuid4().hex[:8]


def _other_policy(line: str) -> bool:
    """Whether a difference between recipes is that the one or the other has no policy of this address."""
    return re.match(r"inputs\.\S*policy: (was null|.*, now null$)", line) is not None


def _count(table: Artifact, split: str | None) -> int:
    return table.record["kept"] if split is None else table.record["tally"].get(split, 0)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _without_limits(value: Any) -> Any:
    """A limit stops a run and changes no row: raising one must not make anything stale."""
    return {k: v for k, v in value.items() if k not in _LIMITS} if isinstance(value, dict) else value
