"""Before anything starts: what a run would make, what it reuses, and what that takes of prompts, tokens and time.

A survey whose placeholders carry the counts that a record would have. They are those of the tables that are there, of
the sampled articles' token counts (`lengths.py`), and of what earlier records kept and wrote of a row (`rates.py`);
where there is no such record, the most that the settings allow. Nothing is made, and no Ray is started. Left out:
memory (`memory.py`), and how it is shown (`jobs/plan.py`).
"""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from pipeline.config import Config
from pipeline.config.hardware import Price
from pipeline.execution.dry_run import UNMADE, DryRun
from pipeline.execution.planning.prompt_lengths import measure_prompts
from pipeline.execution.planning.stage_counts import StageCounts, StageEstimate
from pipeline.execution.planning.throughput import StageThroughput, Throughput, computed_tokens
from pipeline.stages.articles import read_articles
from pipeline.stages.base import Stage
from pipeline.storage import parts
from pipeline.storage.ledger import Artifact, Ledger

_SAMPLE = 200  # articles that are tokenized


class Estimator(DryRun):
    """Walks the page of a run. After it, `lines` says of each artifact what it would take.

    Args:
        config, ledger: of the run.
        rates: of earlier runs.
        price: dollars for an hour of a GPU; None: not known.
    """

    def __init__(self, config: Config, ledger: Ledger, rates: Throughput, price: float | None = None):
        super().__init__(config, ledger)
        self.settings, self.rates, self.price = config, rates, price
        self.lines: list[StageEstimate] = []
        self.corpus: list[str] = []
        self.pipeline: set[str] = set()  # what the tables use that are walked over as one pipeline

    @functools.cached_property
    def counts(self) -> StageCounts:
        """What stages would count, by a sample of the articles, which are read by now."""
        asked: list[dict[str, Any]] = []
        for root in (self.ledger.root, *self.rates.used):
            book = Ledger(root)
            for address in ("questions", "second_questions"):
                if table := book.find(address):
                    asked += islice(_rows(book, table, address), _SAMPLE)
        return StageCounts(self.settings, measure_prompts(self.settings, self.corpus, asked), self.rates)

    def reuse(self, found: Artifact) -> Artifact:
        record = found.record
        self.lines.append(StageEstimate(found.address, "made", record.get("in"), tally=record.get("tally", {})))
        if found.address == "articles":
            self._sample(row["article"] for row in _rows(self.ledger, found, "article"))
        return found

    def produce(self, stage: Stage, *inputs: Artifact, into: str = "") -> Artifact:
        self._asked_for = stage, inputs
        return super().produce(stage, *inputs, into=into)

    def chain(self, *links: Sequence[Any], into: str = "") -> tuple[Artifact, ...]:
        """Tables that are made as one pipeline hold what all of them use, until the last is made."""
        self.pipeline = {use for stage, *_ in links for use in stage.uses} if self.settings.hardware.together else set()
        made = super().chain(*links, into=into)
        self.pipeline = set()
        return made

    def refuse(self, address: str, changed: list[str]) -> Artifact:
        """A run would stop here; this goes on, to say what it would take to make it again."""
        done = "made" if self.ledger.find(address) else "begun"
        made = self.make(*self._asked_for, address)
        self.lines[-1].notes.append(f"{done} by another recipe ({'; '.join(changed)}): run with --remake {address}")
        return made

    def make(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact:
        stale = self.ledger.find(address) is not None
        line = StageEstimate(address, "stale" if stale else "to make")
        record = self._expect(stage, inputs, line)
        self.lines.append(line)
        self.unmade[address] = stage
        return Artifact(self.ledger.root, address, {"build": UNMADE, **record})

    def _sample(self, texts: Iterable[str]) -> None:
        """Evenly from all, whatever order they are in."""
        found = list(texts)
        self.corpus = found[:: max(1, len(found) // _SAMPLE)][:_SAMPLE]

    # What a stage's record would say

    def _expect(self, stage: Stage, inputs: Sequence[Artifact], line: StageEstimate) -> dict[str, Any]:
        if stage.name == "articles":
            return self._articles(line)
        table = next((artifact.record for artifact in inputs if "kept" in artifact.record), None)
        measured = self.rates.of(stage)
        if table is None:  # a policy that is adopted, or hired
            return {"model": self.settings.policy.model}
        rows = table["kept"] if stage.split is None else round(table.get("tally", {}).get(stage.split, table["kept"]))
        line.rows = rows
        line.gpus = self._gpus(stage, inputs)
        given = dict(table.get("tally", {}))
        line.at_most = table.get("at most", False) and stage.name in ("references", "policy")
        kept, tally = self.counts.of(stage, inputs, rows, given, line)
        line.tally = tally
        self._price(stage, inputs, measured, line)
        splits = {split: given.get(split, 0) * kept / max(1, table["kept"]) for split in ("train", "eval")}
        if stage.split:
            splits = {stage.split: kept}
        if not stage.writes:
            return {"model": self.settings.policy.model}
        return {"in": rows, "kept": max(1, round(kept)), "tally": {**splits, **tally}, "at most": line.at_most}

    def _articles(self, line: StageEstimate) -> dict[str, Any]:
        """Read as the stage reads them: exact, and cheap beside everything else."""
        counts: Counter[str] = Counter()
        texts: list[str] = []
        for table in read_articles(articles=self.settings.articles):
            for row in table.to_pylist():
                counts[row["split"] if row["skipped"] is None else "skipped"] += 1
                if row["skipped"] is None:
                    texts.append(row["article"])
        self._sample(texts)
        line.rows = sum(counts.values())
        return {"in": line.rows, "kept": len(texts), "tally": {"train": counts["train"], "eval": counts["eval"]}}

    # What that takes

    def _gpus(self, stage: Stage, inputs: Sequence[Artifact]) -> float:
        """GPUs in use while a stage runs."""
        hardware, config = self.settings.hardware, self.settings
        engines, uses = [], self.pipeline | set(stage.uses)
        if "policy_engine" in uses and not any(a.address.startswith("compare/") for a in inputs):
            engines.append(hardware.policy.replicas.max * hardware.policy.gpus_per_replica)
        for who, engine in (("judge", "judge_engine"), ("second_judge", "second_engine")):
            if engine in uses and (judge := getattr(config, who)) and judge.model and not judge.served:
                engines.append(hardware.judge.replicas.max * hardware.judge.gpus_per_replica)
        scores = stage.name == "drift" or ("scorer" in uses and config.references.source == "trainer")
        if scores or (not stage.writes and "trainer" in stage.uses):
            engines.append(hardware.trainer.workers * hardware.trainer.gpus_per_worker)
        return (sum(engines) if hardware.together else max(engines)) if engines else 0.0

    def _price(
        self, stage: Stage, inputs: Sequence[Artifact], measured: StageThroughput | None, line: StageEstimate
    ) -> None:
        asks = {"policy_engine", "judge_engine", "second_engine", "scorer", "trainer"} & set(stage.uses)
        if measured and asks:
            width = self._width(stage, measured)
            if width is None:
                line.notes.append("its rate was measured without GPUs, or on another number of them for each engine")
            else:
                line.seconds = measured.time(computed_tokens(line.tally) or line.rows or 0, width)
                line.start_known = measured.started > 0
        if self.price is not None and line.gpu_hours is not None:
            line.dollars = line.gpu_hours * self.price
        for who, engine in (("judge", "judge_engine"), ("second_judge", "second_engine")):
            judge = getattr(self.settings, who)
            if engine in stage.uses and judge.served:
                price = self.settings.hardware.servers[judge.served.server].prices.get(judge.model or "")
                if price is not None and "tokens_in" in line.tally:
                    line.dollars = (line.dollars or 0.0) + _cost(price, line.tally)

    def _width(self, stage: Stage, measured: StageThroughput) -> float | None:
        """How many times as many engines there are as were measured; None where they are of another kind."""
        ours, theirs = self.settings.hardware, measured.hardware
        widths = []
        for which, engines in (("policy", {"policy_engine"}), ("judge", {"judge_engine", "second_engine"})):
            if engines & set(stage.uses):
                now, then = getattr(ours, which), getattr(theirs, which)
                if now.gpus_per_replica != then.gpus_per_replica:
                    return None
                widths.append(now.replicas.max / then.replicas.max)
        if {"scorer", "trainer"} & set(stage.uses):
            if ours.trainer.gpus_per_worker != theirs.trainer.gpus_per_worker:
                return None
            widths.append(ours.trainer.workers / theirs.trainer.workers)
        return min(widths)


def _cost(price: Price, tally: dict[str, float]) -> float:
    cached = tally.get("tokens_cached", 0.0)
    of_cached = price.cached if price.cached is not None else price.input
    dollars = (tally["tokens_in"] - cached) * price.input + cached * of_cached + tally["tokens_out"] * price.output
    return dollars / 1e6


def _rows(ledger: Ledger, table: Artifact, column: str) -> Iterable[dict[str, Any]]:
    for name in table.record["parts"]:
        yield from parts.read_part(f"{ledger.root}/{table.address}", name, [column]).to_pylist()
