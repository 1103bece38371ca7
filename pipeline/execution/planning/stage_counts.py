"""Estimates the counts that each stage's record will hold: rows kept, prompts, tokens, pairs, steps.

The counts follow from the number of rows that come in, from the lengths of prompts in a sample (`prompt_lengths.py`),
and from the rows kept and tokens written per row in earlier records (`throughput.py`). Without such a record a count is
the most that the settings allow, and the estimate says so. A stage without a `workload` gets the counts per row of its
earlier records.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import Config
from pipeline.execution.planning.prompt_lengths import JudgePromptLengths, PromptLengths
from pipeline.execution.planning.throughput import STEPS, StageThroughput, Throughput
from pipeline.inference.base import SUMMARIES, TOKENS_CACHED, TOKENS_IN, TOKENS_OUT, TOKENS_THOUGHT
from pipeline.judging.factory import AnyJudge, asks_questions, make_judge
from pipeline.judging.scoring.scored import compares, judge_reorders
from pipeline.judging.tallies import JUDGED, PAIRS
from pipeline.stages.base import JUDGE_ENGINES, Stage
from pipeline.stages.drift import COMPARED
from pipeline.stages.summaries import BASELINES
from pipeline.storage.ledger import Artifact

_EXAMPLE_ARTICLE = "This is the first sentence of an article. The second sentence says a little more."
_TREE_TOKENS = "tree tokens"  # in a tally: the tokens of article trees, which training computes in each epoch


@dataclass
class StageEstimate:
    """The estimate for one artifact of the run.

    Attributes:
        state: "made", "to make", or "stale".
        rows: rows that come in; None for a policy that is registered.
        tally: expected counts, by the names of a record.
        prompts: requests to a model.
        at_most: the tally is the most that the settings allow; no earlier run measured it.
        seconds: the time; None if no rate is known.
        start_known: the start of engines was measured separately from their rate.
        gpus: GPUs in use while the artifact is made.
        dollars: the cost; None if it is unknown.
        notes: sentences about the estimate for the user.
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
        """Whether a model is used, but no rate is known, so the time is unknown."""
        return self.seconds is None and bool(self.tally.get(TOKENS_IN))

    @property
    def gpu_hours(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.gpus / 3600


@dataclass(frozen=True)
class StageCounts:
    """Counts rows and tokens of planned stages.

    Attributes:
        settings: the settings of the planned run.
        lengths: the lengths of its prompts.
        throughput: the throughput that earlier runs measured.
    """

    settings: Config
    lengths: PromptLengths
    throughput: Throughput

    def estimate(
        self,
        stage: Stage,
        inputs: Sequence[Artifact],
        rows: int,
        before: dict[str, float],
        estimate: StageEstimate,
    ) -> tuple[float, dict[str, float]]:
        """Count the rows that a stage keeps, and its tally. Adds the number of prompts to `estimate`.

        Args:
            stage: the stage.
            inputs: its inputs.
            rows: the number of rows that come in.
            before: the tally of the table with these rows.
            estimate: the estimate to complete.
        """
        measured = self.throughput.of(stage)
        kept = rows * measured.share_kept if measured and measured.rows else float(rows)
        reply = _ReplyTokens(measured, estimate)
        tally: dict[str, float] = {}
        match stage.workload:
            case "questions":
                tally = self._questions(stage, rows, reply, estimate)
            case "sampling":
                tally = self._samples(stage, inputs, rows, reply, estimate)
            case "judging":
                tally = self._scores(stage, rows, before, reply, estimate)
            case "pairs":
                pairs_per_row = measured.each(PAIRS) if measured else None
                tally = {PAIRS: rows * (self._max_pairs() if pairs_per_row is None else pairs_per_row)}
            case "references":
                tally = self._references(rows, before, measured, estimate)
            case "training":
                tally = self._training(rows, before)
            case "drift":
                estimate.rows = round(rows * COMPARED)
            case _ if measured:
                tally = {what: rows * count / max(1, measured.rows) for what, count in measured.tally.items()}
        if measured and tally.get(TOKENS_IN) and (cached := measured.each(TOKENS_CACHED, TOKENS_IN)):
            tally[TOKENS_CACHED] = tally[TOKENS_IN] * cached
        return kept, tally

    def _questions(self, stage: Stage, rows: int, reply: "_ReplyTokens", estimate: StageEstimate) -> dict[str, float]:
        """Questions about each article, and the replies that check them."""
        section = _judge_section(stage)
        judge = getattr(self.settings, section)
        questions = self.settings.questions.for_judge(judge)
        # From the whole article and from nothing; and from the whole article for each further check that asks.
        from_article = int(questions.check) + len({"single_key", "important"} & set(questions.more_checks))
        checks = from_article + int(questions.check)
        for each in judge.single_judges(section).values():
            if each.model and asks_questions(make_judge(each, self.settings.seed)):
                own = self.settings.questions.for_judge(each)
                further = len({"single_key", "important"} & set(own.more_checks))
                estimate.prompts += rows * (1 + 2 * int(own.check) + further)
        lengths: JudgePromptLengths | None = getattr(self.lengths, section)
        if lengths is None:
            return {}
        max_reply = lengths.question_limit + checks * lengths.answer_limit
        check_tokens = checks * (lengths.answers + self._question_tokens(lengths)) + from_article * lengths.passage
        return {TOKENS_IN: rows * (lengths.article + check_tokens), TOKENS_OUT: rows * reply.tokens(max_reply)}

    def _samples(
        self,
        stage: Stage,
        inputs: Sequence[Artifact],
        rows: int,
        reply: "_ReplyTokens",
        estimate: StageEstimate,
    ) -> dict[str, float]:
        """Summaries by a policy: one prompt for each article, however many samples it gives."""
        estimate.prompts += rows
        is_served = any("served" in artifact.record for artifact in inputs)
        if self.lengths.prompt is None or is_served:
            return {}
        is_training = "summaries" in stage.settings
        n = self.settings.summaries.n if is_training else 1
        texts = n + (len(BASELINES) if "baselines" in stage.settings else 0)
        max_tokens = (self.settings.summaries if is_training else self.settings.evaluation).max_tokens
        # An evaluation samples one summary for each row; the tally of the base's counts the baselines too.
        tokens = reply.tokens(max_tokens + self.thought_budget, SUMMARIES if is_training else None)
        return {TOKENS_IN: rows * self.lengths.prompt, TOKENS_OUT: rows * n * tokens, SUMMARIES: rows * texts}

    def _scores(
        self,
        stage: Stage,
        rows: int,
        before: dict[str, float],
        reply: "_ReplyTokens",
        estimate: StageEstimate,
    ) -> dict[str, float]:
        """Answers from each summary. Equal summaries of an article are judged once."""
        section = _judge_section(stage)
        asks_again = "evaluation.ask_again" in stage.settings
        summaries = before.get(SUMMARIES, before.get(JUDGED, float(rows)))
        if section == "judge" and not asks_again:
            summaries = before.get(SUMMARIES, rows * self.settings.summaries.n)
            distinct = reply.measured.each(JUDGED) if reply.measured else None
            summaries = summaries if distinct is None else min(summaries, rows * distinct)
        tally = {JUDGED: summaries}
        share_again = self.settings.evaluation.ask_again if asks_again else 0.0
        passages = summaries + share_again * rows
        is_training = section == "judge" and not asks_again
        for judge in self._judges_with_models(section):
            if asks_questions(judge):
                estimate.prompts += round(passages)
            else:
                each = _count_prompts(judge, round(summaries / max(1, rows)), anchored=not is_training)
                estimate.prompts += round(rows * each * (1 + (share_again if judge_reorders(judge) else 0.0)))
        lengths: JudgePromptLengths | None = getattr(self.lengths, section)
        if lengths is None:
            return tally
        prompt = lengths.answers + self._question_tokens(lengths) + self._summary_tokens(lengths, estimate)
        answers = reply.tokens(lengths.answer_limit, JUDGED)
        return tally | {TOKENS_IN: passages * prompt, TOKENS_OUT: passages * answers}

    def _judges_with_models(self, section: str) -> list[AnyJudge]:
        """The judge, or the members of a jury, that ask a model."""
        singles = getattr(self.settings, section).single_judges(section)
        return [make_judge(each, self.settings.seed, name) for name, each in singles.items() if each.model]

    def _references(
        self, rows: int, before: dict[str, float], measured: StageThroughput | None, estimate: StageEstimate
    ) -> dict[str, float]:
        """Tokens of the article trees, which hold the paired summaries. These are at most all summaries."""
        tokens = measured.each(TOKENS_IN) if measured else None
        if tokens is None and self.lengths.prompt is not None:
            summary = self._written_tokens(estimate)
            tokens, estimate.at_most = self.lengths.prompt + self.settings.summaries.n * summary, True
        trees = rows * (tokens or 0.0)
        computed = {TOKENS_IN: trees} if self.settings.references.source == "trainer" else {}
        return {PAIRS: before.get(PAIRS, 0), _TREE_TOKENS: trees, **computed}

    def _training(self, rows: int, before: dict[str, float]) -> dict[str, float]:
        training, pairs = self.settings.training, before.get(PAIRS, 0)
        share, epochs = 1 - training.eval_fraction, training.num_train_epochs
        weight = rows if self.settings.pairs.selection == "all" else pairs  # all pairs of an article weigh as one
        return {
            PAIRS: pairs * share * epochs,
            STEPS: math.ceil(weight * share / training.pairs_per_step) * epochs,
            TOKENS_IN: before.get(_TREE_TOKENS, before.get(TOKENS_IN, 0)) * share * epochs,
        }

    def _question_tokens(self, lengths: JudgePromptLengths) -> float:
        """Tokens of an article's questions in a prompt: as in earlier runs, else the longest reply with questions."""
        return lengths.questions if lengths.questions is not None else lengths.question_limit

    @property
    def thought_budget(self) -> int:
        """The most tokens of a thought of the policy."""
        thinking = self.settings.policy.thinking
        return thinking.budget if thinking else 0

    def _written_tokens(self, estimate: StageEstimate, thoughts: bool = True) -> float:
        """Tokens that the policy writes for a summary: as measured by earlier runs, else the limit.

        Args:
            thoughts: whether to count what it thinks before the summary.
        """
        measured = [entry for (stage, _), entry in self.throughput.measured.items() if stage == "summaries"]
        known = measured[0].each(TOKENS_OUT, SUMMARIES) if measured else None
        if known is None:
            estimate.at_most = True
            return self.settings.summaries.max_tokens + (self.thought_budget if thoughts else 0)
        thought = 0.0 if thoughts else measured[0].each(TOKENS_THOUGHT, SUMMARIES) or 0.0
        return known - thought

    def _summary_tokens(self, lengths: JudgePromptLengths, estimate: StageEstimate) -> float:
        """Tokens of a summary by the judge's tokenizer, scaled by how the two tokenizers differ on articles."""
        ratio = lengths.passage / self.lengths.article if self.lengths.article else 1.0
        return self._written_tokens(estimate, thoughts=False) * ratio

    def _max_pairs(self) -> int:
        n, pairs = self.settings.summaries.n, self.settings.pairs
        return {"best_worst": 1, "all": n * (n - 1) // 2}.get(pairs.selection, pairs.max_per_article)


class _ReplyTokens:
    """Tokens of a reply: as measured, else the limit. With the limit, the estimate is marked "at most"."""

    def __init__(self, measured: StageThroughput | None, estimate: StageEstimate):
        self.measured, self.estimate = measured, estimate

    def tokens(self, most: int, per: str | None = None) -> float:
        known = self.measured.each(TOKENS_OUT, per) if self.measured else None
        if known is None:
            self.estimate.at_most = True
            return most
        return known


def _count_prompts(judge: Any, summaries: int, anchored: bool) -> int:
    """How many prompts a scoring judge makes for an article with so many distinct summaries."""
    anchor = {"anchor": "0"} if anchored and compares(judge) else {}
    return len(judge.ask_scores(_EXAMPLE_ARTICLE, [f"Summary {number}." for number in range(summaries)], **anchor))


def _judge_section(stage: Stage) -> str:
    """The section of the configuration that describes the judge which a stage uses."""
    return next(section for section, engine in JUDGE_ENGINES.items() if engine in stage.uses)
