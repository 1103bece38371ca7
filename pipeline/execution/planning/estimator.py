"""Estimates a run before it starts: which artifacts it would make, and their prompts, tokens, time and cost.

The estimator is a dry run whose placeholders hold the counts that a record would have. The counts come from existing
tables, from the token counts of a sample of the articles (`prompt_lengths.py`), and from what earlier records kept and
wrote for each row (`throughput.py`). Without such a record they are the most that the settings allow. Memory is in
`gpu_memory.py`.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from pipeline.config import Config
from pipeline.execution.dry_run import DryRun
from pipeline.execution.executor import NOT_MADE
from pipeline.execution.planning import articles_left
from pipeline.execution.planning.articles_left import Text, TooLong
from pipeline.execution.planning.prompt_lengths import measure_prompts
from pipeline.execution.planning.stage_counts import StageCounts, StageEstimate
from pipeline.execution.planning.throughput import StageThroughput, Throughput, computed_tokens
from pipeline.execution.recipe import Change
from pipeline.inference.base import TOKENS_CACHED, TOKENS_IN, TOKENS_OUT
from pipeline.stages.articles import read_articles
from pipeline.stages.base import JUDGE_ENGINES, Stage
from pipeline.storage import parts
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.schema import SPLITS

_SAMPLED_ARTICLES = 200  # articles that are tokenized


class Estimator(DryRun):
    """Walks the page of a run. The attributes are complete after the walk.

    Args:
        config: the settings of the run.
        ledger: the run folder.
        throughput: the throughput that earlier runs measured.
        gpu_price: dollars for an hour of a GPU; None: unknown.

    Attributes:
        estimates: one for each artifact.
        too_long: the articles that a model cannot read, by the section of the settings that names the model.
        articles_note: a note if far fewer articles are left than the settings ask for, else empty.
    """

    def __init__(self, config: Config, ledger: Ledger, throughput: Throughput, gpu_price: float | None = None):
        super().__init__(config, ledger)
        self.settings, self.throughput, self.gpu_price = config, throughput, gpu_price
        self.estimates: list[StageEstimate] = []
        self.too_long: dict[str, TooLong] = {}
        self.articles_note = ""
        self._articles: list[str] = []
        self._pipeline_uses: set[str] = set()  # resources of all tables of the pipeline in progress

    @functools.cached_property
    def counts(self) -> StageCounts:
        """Counts of rows and tokens. Available once the walk has reached the articles."""
        rows_with_questions: list[dict[str, Any]] = []
        for root in (self.ledger.root, *self.throughput.used):
            ledger = Ledger(root)
            for address in ("questions", "second_questions"):
                if table := ledger.find(address):
                    rows_with_questions += islice(_read_columns(ledger, table, address), _SAMPLED_ARTICLES)
        lengths = measure_prompts(self.settings, self._articles, rows_with_questions)
        return StageCounts(self.settings, lengths, self.throughput)

    # What an executor decides

    def reuse(self, artifact: Artifact) -> Artifact:
        record = artifact.record
        self.estimates.append(StageEstimate(artifact.address, "made", record.get("in"), tally=record.get("tally", {})))
        if artifact.address == "articles":
            rows = _read_columns(self.ledger, artifact, "split", "article")
            self._sample_articles([(row["split"], row["article"]) for row in rows], record)
        return artifact

    def produce_chain(self, *links: Sequence[Any], into: str = "") -> tuple[Artifact, ...]:
        """Tables that run as one pipeline hold the resources of all of them until the last is finished."""
        if self.settings.hardware.together:
            self._pipeline_uses = {use for stage, *_ in links for use in stage.uses}
        artifacts = super().produce_chain(*links, into=into)
        self._pipeline_uses = set()
        return artifacts

    def refuse(self, stage: Stage, inputs: Sequence[Artifact], address: str, changes: Sequence[Change]) -> Artifact:
        """A run would stop here. The estimate continues as if the artifact were made again."""
        state = "made" if self.ledger.find(address) else "begun"
        artifact = self.make(stage, inputs, address)
        reasons = "; ".join(map(str, changes))
        self.estimates[-1].notes.append(f"{state} by another recipe ({reasons}): run with --remake {address}")
        return artifact

    def make(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact:
        is_stale = self.ledger.find(address) is not None
        estimate = StageEstimate(address, "stale" if is_stale else "to make")
        record = self._expected_record(stage, inputs, estimate)
        self.estimates.append(estimate)
        self.unmade[address] = stage
        return Artifact(self.ledger.root, address, {"build": NOT_MADE, **record})

    # What a record would hold

    def _expected_record(self, stage: Stage, inputs: Sequence[Artifact], estimate: StageEstimate) -> dict[str, Any]:
        if stage.workload == "reading":
            return self._read_articles(estimate)
        table = next((artifact.record for artifact in inputs if "kept" in artifact.record), None)
        if table is None:
            return self._expected_policy(stage)
        before = dict(table.get("tally", {}))
        by_split = {split: before[split] for split in stage.splits or SPLITS if split in before}
        rows = round(sum(by_split.values())) if stage.splits and by_split else table["kept"]
        estimate.rows, estimate.gpus = rows, self._gpus_in_use(stage, inputs)
        estimate.at_most = table.get("at most", False) and stage.workload in ("references", "training")
        kept, estimate.tally = self.counts.estimate(stage, inputs, rows, before, estimate)
        self._add_time_and_cost(stage, estimate)
        if not stage.writes:
            return {"model": self.settings.policy.model}
        kept_by_split = {split: count * kept / max(1, rows) for split, count in by_split.items()}
        fitting = self._fitting(stage, inputs, kept_by_split)
        kept -= sum(kept_by_split.values()) - sum(fitting.values())
        tally = {**fitting, **estimate.tally}
        return {"in": rows, "kept": max(1, round(kept)), "tally": tally, "at most": estimate.at_most}

    def _expected_policy(self, stage: Stage) -> dict[str, Any]:
        """The record of a policy that is registered: the base, or a model at a server."""
        for name in stage.settings:
            if name.startswith("compare."):
                served = self.setting(name)
                return {"model": served.model, "served": served.model_dump()}
        return {"model": self.settings.policy.model}

    def _read_articles(self, estimate: StageEstimate) -> dict[str, Any]:
        """Read the corpus as the stage does. This is exact, and cheap compared with everything else."""
        splits: Counter[str] = Counter()
        skipped: Counter[str] = Counter()
        texts: list[Text] = []
        for table in read_articles(articles=self.settings.articles):
            for row in table.to_pylist():
                if row["skipped"] is None:
                    splits[row["split"]] += 1
                    texts.append((row["split"], row["article"]))
                else:
                    skipped[row["skipped"]] += 1
        estimate.rows = len(texts) + skipped.total()
        record = {
            "in": estimate.rows,
            "kept": len(texts),
            "skipped": dict(skipped.most_common()),
            "tally": {split: splits[split] for split in SPLITS},
        }
        self._sample_articles(texts, record)
        return record

    def _sample_articles(self, texts: Sequence[Text], record: dict[str, Any]) -> None:
        """Sample evenly over the corpus, whatever its order. Also find out how many articles are left."""
        self._articles = [article for _, article in _draw(texts, _SAMPLED_ARTICLES)]
        self.articles_note = articles_left.skipped_note(record, self.settings.articles)
        drawn = _draw(texts, articles_left.SAMPLED)
        found = articles_left.find_too_long(self.settings, drawn, Counter(split for split, _ in texts))
        self.too_long = {each.section: each for each in found}

    def _fitting(self, stage: Stage, inputs: Sequence[Artifact], splits: dict[str, float]) -> dict[str, float]:
        """The rows of each split that a stage keeps, at most as many as its model can read."""
        section = {"sampling": "policy", "questions": "judge"}.get(stage.workload or "", "")
        too_long = self.too_long.get(section)
        if too_long is None or any("served" in artifact.record for artifact in inputs):
            return splits
        return {split: min(count, too_long.left.get(split, 0)) for split, count in splits.items()}

    # Time and cost

    def _gpus_in_use(self, stage: Stage, inputs: Sequence[Artifact]) -> float:
        """GPUs that are in use while a stage runs."""
        hardware, uses = self.settings.hardware, self._pipeline_uses | set(stage.uses)
        gpus: list[float] = []
        if "policy_engine" in uses and not any("served" in artifact.record for artifact in inputs):
            gpus.append(hardware.policy.replicas.max * hardware.policy.gpus_per_replica)
        for section, engine in JUDGE_ENGINES.items():
            judge = getattr(self.settings, section)
            if engine in uses and judge and judge.model and not judge.served:
                gpus.append(hardware.judge.replicas.max * hardware.judge.gpus_per_replica)
        scores_references = "reference_scorer" in uses and self.settings.references.source == "trainer"
        trains = not stage.writes and "trainer" in stage.uses
        if scores_references or trains or uses & {"policy_scorer", "base_scorer"}:
            gpus.append(hardware.trainer.workers * hardware.trainer.gpus_per_worker)
        if not gpus:
            return 0.0
        return sum(gpus) if hardware.together else max(gpus)

    def _add_time_and_cost(self, stage: Stage, estimate: StageEstimate) -> None:
        measured = self.throughput.of(stage)
        uses_a_model = {"policy_engine", "trainer", *JUDGE_ENGINES.values()} & set(stage.uses)
        if measured and uses_a_model:
            width = self._relative_width(stage, measured)
            if width is None:
                estimate.notes.append(
                    "its rate was measured without GPUs, or with another number of GPUs for each engine"
                )
            else:
                work = computed_tokens(estimate.tally) or estimate.rows or 0
                estimate.seconds = measured.time(work, width)
                estimate.start_known = measured.start_known
        if self.gpu_price is not None and estimate.gpu_hours is not None:
            estimate.dollars = estimate.gpu_hours * self.gpu_price
        for section, engine in JUDGE_ENGINES.items():
            judge = getattr(self.settings, section)
            if engine in stage.uses and judge.served and TOKENS_IN in estimate.tally:
                price = self.settings.hardware.servers[judge.served.server].price_of(judge.model or "")
                if price is not None:
                    tokens = [estimate.tally.get(name, 0.0) for name in (TOKENS_IN, TOKENS_CACHED, TOKENS_OUT)]
                    estimate.dollars = (estimate.dollars or 0.0) + price.cost_micro_usd(*tokens) / 1e6

    def _relative_width(self, stage: Stage, measured: StageThroughput) -> float | None:
        """The planned number of engines divided by the measured one. None if the GPUs per engine differ."""
        planned_hardware, measured_hardware = self.settings.hardware, measured.hardware
        widths = []
        for section, engines in (("policy", {"policy_engine"}), ("judge", set(JUDGE_ENGINES.values()))):
            if engines & set(stage.uses):
                planned_engine = getattr(planned_hardware, section)
                measured_engine = getattr(measured_hardware, section)
                if planned_engine.gpus_per_replica != measured_engine.gpus_per_replica:
                    return None
                widths.append(planned_engine.replicas.max / measured_engine.replicas.max)
        if "trainer" in stage.uses:
            if planned_hardware.trainer.gpus_per_worker != measured_hardware.trainer.gpus_per_worker:
                return None
            widths.append(planned_hardware.trainer.workers / measured_hardware.trainer.workers)
        return min(widths)


def _draw(texts: Sequence[Text], most: int) -> Sequence[Text]:
    return texts[:: max(1, len(texts) // most)][:most]


def _read_columns(ledger: Ledger, table: Artifact, *columns: str) -> Iterable[dict[str, Any]]:
    for name in table.record["parts"]:
        yield from parts.read_part(f"{ledger.root}/{table.address}", name, columns).to_pylist()
