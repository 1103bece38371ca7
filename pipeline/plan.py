"""Before anything starts: what a run would make, what it reuses, and what that takes of prompts, tokens and time.

A survey whose placeholders carry the counts that a record would have. They are those of the tables that are there, of
the sampled articles' token counts (`lengths.py`), and of what earlier records kept and wrote of a row (`rates.py`);
where there is no such record, the most that the settings allow. Nothing is made, and no Ray is started. Left out:
memory (`memory.py`), and how it is shown (`jobs/plan.py`).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow.parquet as pq

from pipeline import tables
from pipeline.articles import read
from pipeline.config import Config
from pipeline.hardware import Price
from pipeline.ledger import Artifact, Ledger
from pipeline.lengths import Asked, Lengths, measure
from pipeline.rates import Measured, Rates, work
from pipeline.run import Survey
from pipeline.stage import Stage

_SAMPLE = 200  # articles that are tokenized


@dataclass
class Line:
    """One artifact of the run.

    Attributes:
        state: "made", "to make", or "stale".
        rows: that come in; None where it has none.
        tally: expected counts, as a record has them.
        prompts: requests to a model.
        at_most: the tally is what the settings allow, and not what was seen.
        seconds: None where no rate is known.
        gpus: in use meanwhile; dollars: None where unknown.
        notes: what a person should know of it.
    """

    address: str
    state: str
    rows: int | None = None
    prompts: int = 0
    tally: dict[str, float] = field(default_factory=dict)
    at_most: bool = False
    seconds: float | None = None
    start_known: bool = False
    gpus: float = 0
    dollars: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def gpu_hours(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.gpus / 3600


class Plan(Survey):
    """Walks the page of a run. After it, `lines` says of each artifact what it would take.

    Args:
        config, ledger: of the run.
        rates: of earlier runs.
        price: dollars for an hour of a GPU; None: not known.
    """

    def __init__(self, config: Config, ledger: Ledger, rates: Rates, price: float | None = None):
        super().__init__(config, ledger)
        self.settings, self.rates, self.price = config, rates, price
        self.lines: list[Line] = []
        self.corpus: list[str] = []
        self._lengths: Lengths | None = None

    @property
    def lengths(self) -> Lengths:
        """Of a sample of the articles; tokenized once."""
        if self._lengths is None:
            asked: list[dict[str, Any]] = []
            for root in (self.ledger.root, *self.rates.used):
                book = Ledger(root)
                for address in ("questions", "second_questions"):
                    if table := book.find(address):
                        asked += islice(_rows(book, table, address), _SAMPLE)
            self._lengths = measure(self.settings, self.corpus, asked)
        return self._lengths

    def reuse(self, found: Artifact) -> Artifact:
        record = found.record
        self.lines.append(Line(found.address, "made", record.get("in"), tally=record.get("tally", {})))
        if found.address == "articles":
            self._sample(row["article"] for row in _rows(self.ledger, found, "article"))
        return found

    def produce(self, stage: Stage, *inputs: Artifact, into: str = "") -> Artifact:
        self._asked_for = stage, inputs
        return super().produce(stage, *inputs, into=into)

    def refuse(self, address: str, changed: list[str]) -> Artifact:
        """A run would stop here; this goes on, to say what it would take to make it again."""
        made = self.make(*self._asked_for, address)
        self.lines[-1].notes.append(f"made by another recipe ({'; '.join(changed)}): run with --remake {address}")
        return made

    def make(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact:
        stale = self.ledger.find(address) is not None
        line = Line(address, "stale" if stale else "to make")
        record = self._expect(stage, inputs, line)
        self.lines.append(line)
        self.unmade[address] = stage
        return Artifact(self.ledger.root, address, {"build": "(to be made)", **record})

    def _sample(self, texts: Iterable[str]) -> None:
        """Evenly from all, whatever order they are in."""
        found = list(texts)
        self.corpus = found[:: max(1, len(found) // _SAMPLE)][:_SAMPLE]

    # What a stage's record would say

    def _expect(self, stage: Stage, inputs: Sequence[Artifact], line: Line) -> dict[str, Any]:
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
        kept, tally = self._counts(stage, inputs, rows, given, measured, line)
        line.tally = tally
        self._price(stage, inputs, measured, line)
        splits = {split: given.get(split, 0) * kept / max(1, table["kept"]) for split in ("train", "eval")}
        if stage.split:
            splits = {stage.split: kept}
        if not stage.writes:
            return {"model": self.settings.policy.model}
        return {"in": rows, "kept": max(1, round(kept)), "tally": {**splits, **tally}, "at most": line.at_most}

    def _articles(self, line: Line) -> dict[str, Any]:
        """Read as the stage reads them: exact, and cheap beside everything else."""
        counts: Counter[str] = Counter()
        texts: list[str] = []
        for table in read(articles=self.settings.articles):
            for row in table.to_pylist():
                counts[row["split"] if row["skipped"] is None else "skipped"] += 1
                if row["skipped"] is None:
                    texts.append(row["article"])
        self._sample(texts)
        line.rows = sum(counts.values())
        return {"in": line.rows, "kept": len(texts), "tally": {"train": counts["train"], "eval": counts["eval"]}}

    def _counts(
        self,
        stage: Stage,
        inputs: Sequence[Artifact],
        rows: int,
        given: dict[str, float],
        measured: Measured | None,
        line: Line,
    ) -> tuple[float, dict[str, float]]:
        """(rows kept, tally); fills in prompts."""
        config, name = self.settings, stage.name
        hired = any("served" in artifact.record or artifact.address.startswith("compare/") for artifact in inputs)
        kept = rows * measured.share_kept if measured and measured.rows else float(rows)
        reply = _Reply(measured, line)
        tally: dict[str, float] = {}
        if name in ("questions", "second_questions"):
            who = "judge" if name == "questions" else "second_judge"
            judge = getattr(config, who)
            if judge.model:
                line.prompts = rows * (3 if config.questions.check else 1)
            if asked := getattr(self.lengths, who):
                shown = self._shown(asked)
                checks = 2 * (asked.answers + shown) + asked.passage if config.questions.check else 0
                most = asked.question_limit + (2 * asked.answer_limit if config.questions.check else 0)
                tally = {"tokens_in": rows * (asked.article + checks), "tokens_out": rows * reply.of(most)}
        elif name in ("summaries", "exam", "evaluation", "scores", "second_scores"):
            wrote = judged = Counter[str]()
            passages = float(rows)
            if "policy_engine" in stage.uses:
                n = config.summaries.n if name == "summaries" else 1
                most = config.summaries.max_tokens if name == "summaries" else config.evaluation.max_tokens
                line.prompts += rows
                if self.lengths.prompt is not None and not hired:
                    # Where a judge's replies are in the same tally, sampling alone tells what a summary takes.
                    alone = "judge_engine" not in stage.uses
                    each = reply.of(most, "summaries") if alone else self._written(most, line)
                    wrote = Counter(tokens_in=rows * self.lengths.prompt, tokens_out=rows * n * each)
                    tally["summaries"] = rows * n
                if "baselines" in stage.settings:
                    passages, kept = 3.0 * rows, 3 * rows
            if who := next(
                (w for w, e in (("judge", "judge_engine"), ("second_judge", "second_engine")) if e in stage.uses), None
            ):
                if name == "scores":
                    summaries = given.get("summaries", rows * config.summaries.n)
                    distinct = measured.each("judged") if measured else None
                    passages = min(summaries, rows * distinct) if distinct else summaries
                    tally["judged"] = passages
                elif "baselines" not in stage.settings:
                    tally["judged"] = passages
                again = config.evaluation.ask_again * rows if name == "evaluation" else 0
                line.prompts += round(passages + again) if getattr(config, who).model else 0
                if asked := getattr(self.lengths, who):
                    each_in = asked.answers + self._shown(asked) + self._summary(asked, line)
                    alone = "policy_engine" not in stage.uses
                    each_out = reply.of(asked.answer_limit, "judged") if alone else self._answered(asked, line)
                    judged = Counter(tokens_in=(passages + again) * each_in, tokens_out=(passages + again) * each_out)
            total = wrote + judged
            tally |= {what: total[what] for what in ("tokens_in", "tokens_out") if total}
        elif name == "pairs":
            per = measured.each("pairs", None) if measured else None
            line.at_most = per is None
            tally = {"pairs": rows * (per if per is not None else self._pairs_at_most())}
            tally["summaries"] = given.get("summaries", 0)
        elif name == "references":
            each = measured.each("tokens_in") if measured else None
            if each is None and self.lengths.prompt is not None:
                written = self._written(config.summaries.max_tokens, line)
                each, line.at_most = self.lengths.prompt + config.summaries.n * written, True
            computed = config.references.source == "trainer"
            tally = {"pairs": given.get("pairs", 0), "tree_tokens": rows * (each or 0)}
            tally |= {"tokens_in": rows * (each or 0)} if computed else {}
        elif name == "policy":
            train = rows * (1 - config.training.eval_fraction)
            pairs = given.get("pairs", 0) * (1 - config.training.eval_fraction)
            trees = given.get("tree_tokens") or given.get("tokens_in", 0)
            epochs = config.training.num_train_epochs
            counted = train if config.pairs.selection == "all" else pairs
            tally = {
                "pairs": pairs * epochs,
                "steps": -(-counted // config.training.pairs_per_step) * epochs,
                "tokens_in": trees * (1 - config.training.eval_fraction) * epochs,
            }
        elif measured:  # a stage that this page does not know: as its records say
            tally = {what: rows * count / max(1, measured.rows) for what, count in measured.tally.items()}
        if measured and tally.get("tokens_in") and (cached := measured.each("tokens_cached", "tokens_in")):
            tally["tokens_cached"] = tally["tokens_in"] * cached
        return kept, tally

    def _shown(self, asked: Asked) -> float:
        """Tokens of an article's questions in a prompt: as earlier runs asked them, else the longest reply."""
        return asked.questions if asked.questions is not None else asked.question_limit

    def _written(self, most: int, line: Line) -> float:
        """Tokens that the policy writes for a summary."""
        return self._known("summaries", "summaries", most, line)

    def _answered(self, asked: Asked, line: Line) -> float:
        """Tokens that the judge writes to answer an article's questions."""
        return self._known("scores", "judged", asked.answer_limit, line)

    def _known(self, name: str, per: str, most: int, line: Line) -> float:
        found = [measured for (stage, _), measured in self.rates.measured.items() if stage == name]
        known = found[0].each("tokens_out", per) if found else None
        line.at_most |= known is None
        return most if known is None else known

    def _summary(self, asked: Asked, line: Line) -> float:
        """Tokens of a summary by the judge's tokenizer: in the proportion of the two on articles."""
        ratio = asked.passage / self.lengths.article if self.lengths.article else 1.0
        return self._written(self.settings.summaries.max_tokens, line) * ratio

    def _pairs_at_most(self) -> int:
        n, pairs = self.settings.summaries.n, self.settings.pairs
        return {"best_worst": 1, "all": n * (n - 1) // 2}.get(pairs.selection, pairs.max_per_article)

    # What that takes

    def _gpus(self, stage: Stage, inputs: Sequence[Artifact]) -> float:
        """GPUs in use while a stage runs."""
        hardware, config = self.settings.hardware, self.settings
        engines = []
        if "policy_engine" in stage.uses and not any(a.address.startswith("compare/") for a in inputs):
            engines.append(hardware.policy.replicas * hardware.policy.gpus_per_replica)
        for who, engine in (("judge", "judge_engine"), ("second_judge", "second_engine")):
            if engine in stage.uses and (judge := getattr(config, who)) and judge.model and not judge.served:
                engines.append(hardware.judge.replicas * hardware.judge.gpus_per_replica)
        scores = "scorer" in stage.uses and config.references.source == "trainer"
        if scores or (not stage.writes and "trainer" in stage.uses):
            engines.append(hardware.trainer.workers * hardware.trainer.gpus_per_worker)
        return (sum(engines) if hardware.together else max(engines)) if engines else 0.0

    def _price(self, stage: Stage, inputs: Sequence[Artifact], measured: Measured | None, line: Line) -> None:
        asks = {"policy_engine", "judge_engine", "second_engine", "scorer", "trainer"} & set(stage.uses)
        if measured and asks:
            width = self._width(stage, measured)
            if width is None:
                line.notes.append("its rate was measured without GPUs, or on another number of them for each engine")
            else:
                line.seconds = measured.time(work(line.tally) or line.rows or 0, width)
                line.start_known = measured.started > 0
        if self.price is not None and line.gpu_hours is not None:
            line.dollars = line.gpu_hours * self.price
        judge = self.settings.judge
        if "judge_engine" in stage.uses and judge.served and "policy_engine" not in stage.uses:
            price = self.settings.hardware.servers[judge.served.server].prices.get(judge.model or "")
            if price is not None and "tokens_in" in line.tally:
                line.dollars = (line.dollars or 0.0) + _cost(price, line.tally)

    def _width(self, stage: Stage, measured: Measured) -> float | None:
        """How many times as many engines there are as were measured; None where they are of another kind."""
        ours, theirs = self.settings.hardware, measured.hardware
        widths = []
        for which, engines in (("policy", {"policy_engine"}), ("judge", {"judge_engine", "second_engine"})):
            if engines & set(stage.uses):
                now, then = getattr(ours, which), getattr(theirs, which)
                if now.gpus_per_replica != then.gpus_per_replica:
                    return None
                widths.append(now.replicas / then.replicas)
        if {"scorer", "trainer"} & set(stage.uses):
            if ours.trainer.gpus_per_worker != theirs.trainer.gpus_per_worker:
                return None
            widths.append(ours.trainer.workers / theirs.trainer.workers)
        return min(widths)


class _Reply:
    """Tokens of a reply: as measured, else at most, which the line then says."""

    def __init__(self, measured: Measured | None, line: Line):
        self.measured, self.line = measured, line

    def of(self, most: int, per: str | None = None) -> float:
        known = self.measured.each("tokens_out", per) if self.measured else None
        if known is None:
            self.line.at_most = True
            return most
        return known


def _cost(price: Price, tally: dict[str, float]) -> float:
    cached = tally.get("tokens_cached", 0.0)
    of_cached = price.cached if price.cached is not None else price.input
    dollars = (tally["tokens_in"] - cached) * price.input + cached * of_cached + tally["tokens_out"] * price.output
    return dollars / 1e6


def _rows(ledger: Ledger, table: Artifact, column: str) -> Iterable[dict[str, Any]]:
    for part in tables.parts(ledger, table):
        with ledger.fs.open_input_file(part) as file:
            yield from pq.ParquetFile(file).read(columns=[column]).to_pylist()
