"""What each stage's record would count, before it is made: rows kept, prompts, tokens, pairs, steps.

Of the rows that come in, of how long the prompts of a sample are (`lengths.py`), and of what earlier records kept and
wrote of a row (`rates.py`); where there is no such record, the most that the settings allow, which the line then says.
A stage whose name is not known here is taken as its records have it. Left out: time and money (`plan.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.config import Config
from pipeline.execution.planning.prompt_lengths import JudgePromptLengths, PromptLengths
from pipeline.execution.planning.throughput import StageThroughput, Throughput
from pipeline.stages.base import Stage
from pipeline.stages.drift import COMPARED
from pipeline.stages.summaries import BASELINES
from pipeline.storage.ledger import Artifact


@dataclass
class StageEstimate:
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
    def untimed(self) -> bool:
        """It asks a model, and there is no rate that would say for how long."""
        return self.seconds is None and bool(self.tally.get("tokens_in"))

    @property
    def gpu_hours(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.gpus / 3600


@dataclass(frozen=True)
class StageCounts:
    """What is known of a run that is planned: its settings, its prompts' lengths, and what was measured."""

    settings: Config
    lengths: PromptLengths
    rates: Throughput

    def of(
        self,
        stage: Stage,
        inputs: Sequence[Artifact],
        rows: int,
        given: dict[str, float],
        line: StageEstimate,
    ) -> tuple[float, dict[str, float]]:
        """(rows kept, tally) of a stage that is given so many rows of a table with this tally; fills in prompts."""
        name, measured = stage.name, self.rates.of(stage)
        kept = rows * measured.share_kept if measured and measured.rows else float(rows)
        reply = _Reply(measured, line)
        tally: dict[str, float] = {}
        if name in ("questions", "second_questions"):
            tally = self._questions(name, rows, reply, line)
        elif name in ("summaries", "exam", "evaluation", "scores", "second_scores"):
            if "policy_engine" in stage.uses:
                tally = self._sampled(stage, inputs, rows, reply, line)
            else:
                who = "judge" if "judge_engine" in stage.uses else "second_judge"
                tally = self._judged(stage, who, rows, given, reply, line)
        elif name == "pairs":
            each = measured.each("pairs") if measured else None
            tally = {"pairs": rows * (self._pairs_at_most() if each is None else each)}
        elif name == "references":
            tally = self._referred(rows, given, measured, line)
        elif name == "policy":
            tally = self._trained(rows, given)
        elif name == "drift":
            line.rows = round(rows * COMPARED)  # of those that come in
        elif measured:  # a stage that is not known here: as its records say
            tally = {what: rows * count / max(1, measured.rows) for what, count in measured.tally.items()}
        if measured and tally.get("tokens_in") and (cached := measured.each("tokens_cached", "tokens_in")):
            tally["tokens_cached"] = tally["tokens_in"] * cached
        return kept, tally

    def _questions(self, name: str, rows: int, reply: "_Reply", line: StageEstimate) -> dict[str, float]:
        """Questions about each article, and answers to them from all of it and from nothing."""
        who = "judge" if name == "questions" else "second_judge"
        check = self.settings.questions.check
        if getattr(self.settings, who).model:
            line.prompts = rows * (3 if check else 1)
        asked: JudgePromptLengths | None = getattr(self.lengths, who)
        if asked is None:
            return {}
        most = asked.question_limit + (2 * asked.answer_limit if check else 0)
        checks = 2 * (asked.answers + self._shown(asked)) + asked.passage if check else 0
        return {"tokens_in": rows * (asked.article + checks), "tokens_out": rows * reply.of(most)}

    def _sampled(
        self, stage: Stage, inputs: Sequence[Artifact], rows: int, reply: "_Reply", line: StageEstimate
    ) -> dict[str, float]:
        """Summaries by the policy: one prompt an article, whatever the number of samples."""
        line.prompts += rows
        hired = any(artifact.address.startswith("compare/") for artifact in inputs)
        if self.lengths.prompt is None or hired:
            return {}
        training = stage.name == "summaries"
        n = self.settings.summaries.n if training else 1
        texts = n + (len(BASELINES) if "baselines" in stage.settings else 0)
        most = (self.settings.summaries if training else self.settings.evaluation).max_tokens
        each = reply.of(most, "summaries" if training else None)  # of an exam a row has one that was sampled
        return {"tokens_in": rows * self.lengths.prompt, "tokens_out": rows * n * each, "summaries": rows * texts}

    def _judged(
        self, stage: Stage, who: str, rows: int, given: dict[str, float], reply: "_Reply", line: StageEstimate
    ) -> dict[str, float]:
        """Answers from each summary; equal ones of an article are judged once."""
        passages = given.get("summaries", given.get("judged", float(rows)))  # of a second judge, what the first judged
        if stage.name == "scores":
            summaries = given.get("summaries", rows * self.settings.summaries.n)
            distinct = reply.measured.each("judged") if reply.measured else None
            passages = summaries if distinct is None else min(summaries, rows * distinct)
        tally = {"judged": passages}
        if stage.name == "evaluation":
            passages += self.settings.evaluation.ask_again * rows
        if getattr(self.settings, who).model:
            line.prompts += round(passages)
        asked: JudgePromptLengths | None = getattr(self.lengths, who)
        if asked is None:
            return tally
        each = asked.answers + self._shown(asked) + self._summary(asked, line)
        said = reply.of(asked.answer_limit, "judged")
        return tally | {"tokens_in": passages * each, "tokens_out": passages * said}

    def _referred(
        self, rows: int, given: dict[str, float], measured: StageThroughput | None, line: StageEstimate
    ) -> dict[str, float]:
        """Article trees of what is paired: at most of all summaries."""
        each = measured.each("tokens_in") if measured else None
        if each is None and self.lengths.prompt is not None:
            written = self._written(self.settings.summaries.max_tokens, line)
            each, line.at_most = self.lengths.prompt + self.settings.summaries.n * written, True
        trees = rows * (each or 0.0)
        computed = {"tokens_in": trees} if self.settings.references.source == "trainer" else {}
        return {"pairs": given.get("pairs", 0), "tree tokens": trees, **computed}

    def _trained(self, rows: int, given: dict[str, float]) -> dict[str, float]:
        training, pairs = self.settings.training, given.get("pairs", 0)
        part, epochs = 1 - training.eval_fraction, training.num_train_epochs
        counted = rows if self.settings.pairs.selection == "all" else pairs  # all pairs of an article weigh as one
        return {
            "pairs": pairs * part * epochs,
            "steps": math.ceil(counted * part / training.pairs_per_step) * epochs,
            "tokens_in": given.get("tree tokens", given.get("tokens_in", 0)) * part * epochs,
        }

    def _shown(self, asked: JudgePromptLengths) -> float:
        """Tokens of an article's questions in a prompt: as earlier runs asked them, else the longest reply."""
        return asked.questions if asked.questions is not None else asked.question_limit

    def _written(self, most: int, line: StageEstimate) -> float:
        """Tokens that the policy writes for a summary."""
        return self._known("summaries", "summaries", most, line)

    def _known(self, name: str, per: str, most: int, line: StageEstimate) -> float:
        found = [measured for (stage, _), measured in self.rates.measured.items() if stage == name]
        known = found[0].each("tokens_out", per) if found else None
        line.at_most |= known is None
        return most if known is None else known

    def _summary(self, asked: JudgePromptLengths, line: StageEstimate) -> float:
        """Tokens of a summary by the judge's tokenizer: in the proportion of the two on articles."""
        ratio = asked.passage / self.lengths.article if self.lengths.article else 1.0
        return self._written(self.settings.summaries.max_tokens, line) * ratio

    def _pairs_at_most(self) -> int:
        n, pairs = self.settings.summaries.n, self.settings.pairs
        return {"best_worst": 1, "all": n * (n - 1) // 2}.get(pairs.selection, pairs.max_per_article)


class _Reply:
    """Tokens of a reply: as measured, else at most, which the line then says."""

    def __init__(self, measured: StageThroughput | None, line: StageEstimate):
        self.measured, self.line = measured, line

    def of(self, most: int, per: str | None = None) -> float:
        known = self.measured.each("tokens_out", per) if self.measured else None
        if known is None:
            self.line.at_most = True
            return most
        return known
