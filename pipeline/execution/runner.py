"""Makes the artifacts of a run: calls each stage with its inputs, settings and resources, and writes its record.

Rows are stored by `storage/tables.py`. The stages are in `stages/`.
"""

import importlib
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from ray.data import Dataset

from pipeline.config import Alignment, Config, UserError
from pipeline.config.hardware import TrainerHardware, driver_node_options
from pipeline.execution.dry_run import DryRun
from pipeline.execution.executor import Executor, address_of
from pipeline.execution.planning import articles_left
from pipeline.execution.preflight import choose_sharding
from pipeline.execution.progress import (
    Display,
    StageProgress,
    publishing_progress,
    start_seconds,
    summarize_record,
)
from pipeline.execution.ray_cluster import connected_ray, gpu_memory_here, gpu_memory_of_cluster
from pipeline.execution.recipe import Recipe, compare_recipes
from pipeline.execution.resources import provide_resources
from pipeline.inference.actors.residents import ResidentPools
from pipeline.judging.remedies import cut_off_note, few_pairs_note
from pipeline.stages.base import JUDGE_ENGINES, Stage
from pipeline.storage import parts, run_folder, streams, tables
from pipeline.storage.files import remove_folder
from pipeline.storage.ledger import Artifact, Ledger, utc_now
from pipeline.storage.model_files.card import CARD
from pipeline.storage.model_files.card.public_names import public_names
from pipeline.storage.model_files.card.writing import read_license, write_policy_card
from pipeline.storage.provenance import git_commit, package_versions

if TYPE_CHECKING:
    from pipeline.training.ray_job.driver import TrainingWorkers


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
        if "RAY_ADDRESS" not in os.environ:  # before Ray starts, which checks that there are so many GPUs
            config = config.model_copy(update={"hardware": choose_sharding(config, gpu_memory_here)})
        ray = connected_ray(config.hardware) if dry_run.unmade else nullcontext(config.hardware)
        progress = publishing_progress(display, ledger, dry_run.visited)
        with ledger.remaking(addresses_to_remake), progress, ray as hardware:
            config = config.model_copy(update={"hardware": hardware})
            if any(use.endswith("_scorer") for stage in dry_run.unmade.values() for use in stage.uses):
                config = config.model_copy(update={"hardware": choose_sharding(config, gpu_memory_of_cluster)})
                if config.hardware.trainer.shard_references:
                    display.say("references and drift: the policy is sharded as in training")
            with Runner(config, ledger, display, dry_run.remake, dry_run.unmade) as runner:
                yield runner


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
    """Makes what is missing or stale. As a context manager, it ends the engines that stayed, also after a failure.

    Args:
        config, ledger, remake: as for `Executor`.
        display: shows the progress.
        unmade: the stages that will probably be made, by address. Articles that their models cannot read are counted,
            and what they use starts ahead of them.
    """

    def __init__(
        self,
        config: Config | Alignment,
        ledger: Ledger,
        display: Display,
        remake: str | None = None,
        unmade: Mapping[str, Stage] = MappingProxyType({}),
    ):
        super().__init__(config, ledger, remake)
        self.display = display
        self._uses = {use for stage in unmade.values() for use in stage.uses}
        base = f"{run_folder.round_folder(0)}/"
        self._base_samples = any("policy_engine" in unmade[each].uses for each in unmade if each.startswith(base))
        self._trainings = sum(stage.workload == "training" for stage in unmade.values())  # at most
        self._limits_warned_of: set[str] = set()  # token limits: one warning for each is enough
        self._workers: TrainingWorkers | None = None
        self._import_thread: threading.Thread | None = None  # imports what starts them
        self._write_progress: Any = None  # the actor that counts rows for the progress bars; None: not needed so far
        hardware = config.hardware
        self.residents = ResidentPools(in_turn=not hardware.together, keep=hardware.keep_engines)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._workers is not None:
                self._workers.close()
            self.residents.end()
        finally:
            if self._workers is not None:
                self._workers.end()
        self._write_progress = None  # Ray ends an actor without handles

    def reuse(self, artifact: Artifact) -> Artifact:
        if "training" in artifact.record:
            _remove_checkpoints(artifact)  # the driver may have died between writing the record and removing them
        self.display.finished.add(artifact.address)
        self.display.line(artifact.address, f"reused  {summarize_record(artifact.record)}", style="dim")
        return artifact

    def make(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact:
        job = self._begin(stage, inputs, address)
        if _is_made_by_row(stage, inputs):
            return self._make_pipeline([job])[0]
        self.residents.begin_stages()
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
        resources = provide_resources(
            stage.uses, self.config, named, self.ledger.root, address, progress, self.display.warn, self.residents
        )
        if "trainer" in resources and not stage.writes:  # the stage trains
            with self._lent_workers(resources["trainer"]) as resources["trainer"]:
                return stage(*arguments, **settings, **resources)
        return stage(*arguments, **settings, **resources)

    @contextmanager
    def _lent_workers(self, hardware: TrainerHardware) -> Iterator[Any]:
        """Lend the training workers while the block runs. They stay if there is another training that needs them."""
        workers = self._make_workers(self.residents.lend_hardware(hardware))
        try:
            yield workers
        finally:
            self._trainings -= 1
            if not self.residents.keeps_workers(hardware):
                workers.end()  # the next stage may need their GPUs' memory
            elif self._trainings < 1:
                workers.close()

    def _make_workers(self, hardware: TrainerHardware) -> "TrainingWorkers":
        from pipeline.training.ray_job.driver import TrainingWorkers

        if self._workers is None:
            self._workers = TrainingWorkers(hardware, f"{self.ledger.root}/{run_folder.WORKERS}")
            self.residents.workers = self._workers
        return self._workers

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
        if (start := start_seconds(record)) is not None:
            record["start_seconds"] = round(start, 2)
        if "training" in record:
            self._write_card(replace(job.artifact, record=record))
        artifact = self.ledger.finish(job.artifact.address, record)
        if job.stage.resumes:
            _remove_checkpoints(artifact)  # three times the size of the weights, and useless once training is done
        self.display.finished.add(artifact.address)
        self.display.line(artifact.address, summarize_record(record))
        if "tally" in record:
            self._warn_of_cut_off(job, streams.Written(record["in"], record["tally"]), is_complete=True)
        if job.stage.workload == "reading" and not job.inputs:
            self._say_what_is_left(artifact)
        if job.stage.workload == "pairs" and (note := few_pairs_note(record, self._rounds_config)):
            self.display.warn(f"{artifact.address}: {note}")
        self.check_limits(job.stage, artifact)
        return artifact

    def _write_card(self, policy: Artifact) -> None:
        """Put a model card into the folder of a policy that was just trained."""
        names = public_names(self.ledger, self.config)
        license = read_license(self.config.policy.model)
        card = write_policy_card(self.ledger, self.config, policy, names, license)
        self.ledger.write(f"{policy.address}/{CARD}", card)

    @property
    def _rounds_config(self) -> Config:
        assert isinstance(self.config, Config), "only a run of rounds samples, judges and pairs"
        return self.config

    def _say_what_is_left(self, articles: Artifact) -> None:
        """Before anything costly: warn if the corpus leaves far fewer articles than the settings ask for."""
        record = articles.record
        if note := articles_left.skipped_note(record, self._rounds_config.articles):
            self.display.warn(f"{articles.address}: {note}")
        rows = tables.read_some_rows(self.ledger, articles, articles_left.SAMPLED, ("split", "article"))
        texts = [(row["split"], row["article"]) for row in rows]
        for too_long in articles_left.find_too_long(self._rounds_config, texts, record["tally"], self._uses):
            self.display.warn(f"{articles.address}: {too_long}")

    def _warn_of_cut_off(self, job: _Job, written: streams.Written, is_complete: bool = False) -> None:
        """Warn once if a token limit cuts off most replies of a stage: while it runs, not only when it is finished."""
        limit = _token_limit(job.stage)
        if limit is None or limit in self._limits_warned_of:
            return
        if note := cut_off_note(limit, self._rounds_config, written.rows, written.tally, is_complete):
            self._limits_warned_of.add(limit)
            self.display.warn(f"{job.artifact.address}: {note}")

    # A table that is made as a whole

    def _make_whole_table(self, job: _Job, progress: StageProgress) -> dict[str, Any]:
        """Write a table that cannot be made row by row. Returns what its record should hold."""
        inputs = [streams.stream_table(self.ledger, each) if _is_table(each) else each for each in job.inputs]
        try:
            rows = self._call(job, inputs, progress)
            self.ledger.check_held()
            draft = tables.begin_table(job.artifact.uri, _new_attempt())
            for written in streams.write_rows(rows, draft):
                progress.advance(written.rows)
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
        self.residents.begin_stages()
        drafts = self._begin_tables(jobs)
        source = jobs[0].inputs[0]
        total = _count_rows(source, jobs[0].stage.splits)
        with self.display.working([job.artifact.address for job in jobs], total) as bars, ExitStack() as stack:
            for bar, draft in zip(bars, drafts, strict=True):
                bar.resume(len(draft.ids))
            shows_others = len(jobs) > 1 and total
            counter = stack.enter_context(self._show_written_rows(jobs, bars, drafts)) if shows_others else None
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
                remaining = streams.stream_parts(uri, parts_before, job.stage.splits, excluded_ids=draft.ids)
            rows = remaining.union(new_rows) if remaining and new_rows else remaining or new_rows
            if rows:  # without rows no engine needs to start
                result = self._call(job, (rows, *job.inputs[1:]), bar)
                if job is not jobs[-1]:
                    new_rows = streams.write_through(result, draft, counter)
                else:
                    self._start_ahead(bar)
                    so_far = streams.Written()
                    for written in streams.write_rows(result, draft):
                        bar.advance(written.rows)
                        so_far += written
                        self._warn_of_cut_off(job, so_far)
                        self._start_workers_ahead()
            parts_before, rows_before = draft.adopted, parts.count_rows(draft.uri, draft.adopted).kept

    def _start_ahead(self, bar: StageProgress) -> None:
        """While the run's first engines start, start the base's engine: both are mostly imports, on one core."""
        if not self._base_samples:
            return
        self._base_samples = False
        folder = run_folder.round_folder(0)
        policy = Artifact(self.ledger.root, f"{folder}/policy", {"model": self._rounds_config.policy.model})
        (engines,) = provide_resources(
            ("policy_engine",),
            self.config,
            {"policy": policy},
            self.ledger.root,
            f"{folder}/exam",
            bar,
            self.display.warn,
            self.residents,
        ).values()
        engines.start_ahead()

    def _start_workers_ahead(self) -> None:
        """While the run's first engines work, start the training workers, because engines at work leave cores idle."""
        hardware = self.config.hardware.trainer
        if self._workers is not None or not self._trainings or not self.residents.keeps_workers(hardware):
            return
        if self._import_thread is None:
            # It takes seconds, in which this thread has rows to take.
            module = "pipeline.training.ray_job.driver"
            self._import_thread = threading.Thread(target=importlib.import_module, args=[module], daemon=True)
            self._import_thread.start()
        elif not self._import_thread.is_alive():
            self.residents.start_workers_ahead(self._make_workers(hardware), hardware)

    @contextmanager
    def _show_written_rows(
        self, jobs: Sequence[_Job], bars: Sequence[StageProgress], drafts: Sequence[tables.TableDraft]
    ) -> Iterator[Any]:
        """Show the progress of all tables of a pipeline except the last. Their rows are written on other nodes.

        Yields:
            the actor that counts rows; the writers report their rows to it.
        """
        import ray

        if self._write_progress is None:  # one for all pipelines: each start of a process takes a second
            self._write_progress = ray.remote(streams.WriteProgress).options(**driver_node_options()).remote()
        counter, finished = self._write_progress, threading.Event()
        attempts = [draft.attempt for draft in drafts[:-1]]
        shown = list(zip(jobs, bars, drafts, strict=True))[:-1]

        def show() -> None:
            while not finished.wait(1.0):
                with suppress(ray.exceptions.RayError):  # the actor may be on a node that is gone: only the bar suffers
                    written_rows = ray.get(counter.read.remote(attempts))
                    for (job, bar, draft), written in zip(shown, written_rows, strict=True):
                        if more := len(draft.ids) + written.rows - bar.done:
                            bar.advance(more)
                        self._warn_of_cut_off(job, written)

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield counter
        finally:
            finished.set()
            thread.join()


def _finish_tables(
    jobs: Sequence[_Job], drafts: Sequence[tables.TableDraft], source_ids: Mapping[str, int]
) -> list[dict[str, Any]] | None:
    """What the tables' records should hold. None if a table lacks an article of the table before it."""
    results: list[dict[str, Any]] = []
    for job, draft in zip(jobs, drafts, strict=True):
        ids_before = results[-1]["ids"] if results else source_ids
        expected = {split: ids for split, ids in ids_before.items() if split in (job.stage.splits or ids_before)}
        result = tables.finish_table(draft, expected)
        if result is None:
            return None
        results.append(result)
    return results


def _is_made_by_row(stage: Stage, inputs: Sequence[Artifact]) -> bool:
    """Whether each row is made from one row of the first input."""
    return bool(stage.writes and inputs and _is_table(inputs[0]) and stage.by_row)


def _token_limit(stage: Stage) -> str | None:
    """What decides how many tokens the replies of a stage may have, as `cut_off_note` names it. None: no engine."""
    if "policy_engine" in stage.uses:
        return "summaries.max_tokens" if "summaries" in stage.settings else "evaluation.max_tokens"
    return next((section for section, engine in JUDGE_ENGINES.items() if engine in stage.uses), None)


def _is_table(artifact: Artifact) -> bool:
    return "parts" in artifact.record


def _count_parts(jobs: Sequence[_Job]) -> int:
    return sum(len(parts.list_parts(job.artifact.uri)["parts"]) for job in jobs)


def _count_rows(table: Artifact, splits: Sequence[str]) -> int:
    tally = table.record["tally"]
    return sum(tally.get(split, 0) for split in splits) if splits else table.record["kept"]


def _new_attempt() -> str:
    return uuid.uuid4().hex[:8]


def _remove_checkpoints(artifact: Artifact) -> None:
    remove_folder(f"{artifact.uri}/checkpoints")
