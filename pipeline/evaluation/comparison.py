"""Compares the judged held-out summaries of two writers, and describes the summaries of one writer.

The rules that decide which summary is better are in `judging/preference.py`. Intervals are computed in `win_rate.py`.
The summaries are written by `stages/summaries.py` and scored by `stages/scores.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from judges.text.words import count_words
from pipeline.config import Config
from pipeline.config.judging import Pairs
from pipeline.config.run import Report
from pipeline.evaluation.fault_figures import fault_intervals, is_cut_off, mean_faults
from pipeline.evaluation.win_rate import WinRate, win_rate
from pipeline.judging.factory import score_kind
from pipeline.judging.preference import (
    Rule,
    Score,
    ScoreKind,
    evaluation_rules,
    faults_beyond_limits,
    judged_value,
    scores_to_compare,
    second_judge_rules,
)
from pipeline.storage.schema import Row


@dataclass(frozen=True)
class CountingSettings:
    """The settings by which finished evaluations are counted.

    Attributes:
        pairs: the section `pairs`, with the preference of the strict rule and its parameters.
        report: the section `report`, with the bootstrap's parameters and the length from which a summary is too long.
        seed: seed of the bootstrap.
        judge, second_judge: what the scores of each judge hold.
        same_scale: whether differences of the second judge's scores mean what those of the first judge's mean.
    """

    pairs: Pairs
    report: Report
    seed: int
    judge: ScoreKind = "answers"
    second_judge: ScoreKind = "answers"
    same_scale: bool = True

    @classmethod
    def from_config(cls, config: Config) -> "CountingSettings":
        judge, second = config.judge, config.second_judge or config.judge
        kinds = score_kind(judge, config.seed), score_kind(second, config.seed, "second_judge")
        same_scale = kinds[0] == kinds[1] and (kinds[0] != "value" or judge.kind == second.kind)
        return cls(config.pairs, config.report, config.seed, *kinds, same_scale)

    @property
    def second_pairs(self) -> Pairs:
        """`pairs` for the second judge's scores. The margin is one of the first judge's scale."""
        return self.pairs if self.same_scale else self.pairs.model_copy(update={"min_margin": 0.0})

    @property
    def threshold(self) -> int:
        """The number of right answers that a summary needs to count as accurate."""
        return self.pairs.threshold

    @property
    def rules(self) -> dict[str, Rule]:
        """The rules by which wins are counted, by name: `strict` and `reference`."""
        return evaluation_rules(self.pairs, self.judge)

    @property
    def second_rules(self) -> dict[str, Rule]:
        """The rules by which the second judge's scores are counted, by the same names, as far as they fit its kind."""
        return second_judge_rules(self.pairs, self.judge, self.second_judge)


def single_summary_rows(rows: Sequence[Row], place: int) -> list[Row]:
    """The rows of an evaluation with only the summary and score at index `place`, and this index as `place`."""
    return [
        row | {name: row[name][place : place + 1] for name in ("summaries", "scores")} | {"place": place}
        for row in rows
    ]


def compare_writers(
    ours: Sequence[Row], theirs: Sequence[Row], counting: CountingSettings, rules: Mapping[str, Rule] | None = None
) -> dict[str, WinRate | None]:
    """The win rate of `ours` over `theirs` by each rule; None if there is no article to compare.

    Args:
        ours, theirs: as for `verdicts_by_article`.
        counting: the settings.
        rules: the rules by name; None: those of the first judge.
    """
    return {
        name: win_rate(
            list(verdicts_by_article(ours, theirs, counting.pairs, rule).values()),
            resamples=counting.report.resamples,
            confidence=counting.report.confidence,
            seed=counting.seed,
        )
        for name, rule in (counting.rules if rules is None else rules).items()
    }


def verdicts_by_article(ours: Sequence[Row], theirs: Sequence[Row], pairs: Pairs, rule: Rule) -> dict[str, int]:
    """1 (win), 0 (tie) or -1 (loss) for each article that both have, by article id.

    Articles with an unread answer on either side are left out. A summary that was cut off by the token limit never
    wins: it is short because it is unfinished. A summary with a fault beyond a limit of `pairs` never wins either, as
    training never chooses it. If it would win, the verdict is a tie.

    Args:
        ours, theirs: rows of evaluations, one per article, of which the first summary counts.
    """
    theirs_by_article = {row["article_id"]: row for row in theirs}
    both = [
        (row, theirs_by_article[row["article_id"]])
        for row in sorted(ours, key=lambda row: row["article_id"])
        if row["article_id"] in theirs_by_article
    ]
    return {
        a["article_id"]: _compare(scores_to_compare(a, pairs)[0], scores_to_compare(b, pairs)[0], pairs, rule)
        for a, b in both
        if a["scores"][0]["unread"] == b["scores"][0]["unread"] == 0
    }


def _compare(ours: Score, theirs: Score, pairs: Pairs, rule: Rule) -> int:
    """The verdict of the rule, or a tie if the winner cannot win."""
    verdict = rule(ours, theirs, pairs)
    winner = {1: ours, -1: theirs}.get(verdict)
    if winner is None:
        return verdict
    return 0 if winner["finish_reason"] == "length" or faults_beyond_limits(winner, pairs) else verdict


def judge_agreement(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, Any]:
    """How often two judges agree on who wins.

    Args:
        first, second: the verdicts of each judge by article id.

    Returns:
        `n`, the number of articles with a verdict by both, and `same`, the share of them with equal verdicts.
        `decided`, the number of articles with no tie by either judge, and `same_winner`, the share of them with the
        same winner. A share of no articles is None.
    """
    both = [(first[article], second[article]) for article in first if article in second]
    decided = [(a, b) for a, b in both if a and b]
    return {
        "n": len(both),
        "same": float(np.mean([a == b for a, b in both])) if both else None,
        "decided": len(decided),
        "same_winner": float(np.mean([a == b for a, b in decided])) if decided else None,
    }


def describe_writer(rows: Sequence[Row], counting: CountingSettings) -> dict[str, Any]:
    """The figures of the reference setting for one writer: accuracy, length and faults of its first summaries.

    Returns:
        `unread`, the number of articles with an unread answer, and figures of the `n` other articles. `accuracy` is the
        share of summaries with at least `counting.threshold` right answers, `accuracy_above` the share with more.
        Compression is the number of words of the summary divided by that of the article. `fault_figures.mean_faults`
        has the faults of the text, which older tables lack, and `faults` gives their intervals. If `n` is 0, there are
        no figures beside `n` and `unread`.
        If the judge gives scores, `value_mean` takes the place of the figures about right answers.
    """
    read_rows = [row for row in rows if row["scores"][0]["unread"] == 0]
    scores = [row["scores"][0] for row in read_rows]
    if not scores:
        return {"n": 0, "unread": len(rows)}
    if counting.judge == "answers":
        correct = np.array([score["correct"] for score in scores])
        judged = {
            "questions_mean": float(np.mean([len(score["answers"]) for score in scores])),
            "correct_mean": float(correct.mean()),
            "accuracy": float((correct >= counting.threshold).mean()),
            "accuracy_above": float((correct > counting.threshold).mean()),
        }
    else:
        judged = {"value_mean": float(np.mean([judged_value(score) for score in scores]))}
    words = np.array([score["words"] for score in scores])
    compression = words / np.array([max(1, count_words(row["article"])) for row in read_rows])
    return {
        "n": len(scores),
        "unread": len(rows) - len(read_rows),
        **judged,
        "words_median": float(np.median(words)),
        "compression_median": float(np.median(compression)),
        "compression_mean": float(compression.mean()),
        "too_long": float((words >= counting.report.max_words).mean()),
        "cut_off": float(np.mean([is_cut_off(row) for row in read_rows])),
        "empty": float((words == 0).mean()),
        "invalid_chars": float(np.mean([score["invalid_chars"] > 0 for score in scores])),
        **mean_faults(read_rows),
        "faults": fault_intervals(read_rows, counting.report.confidence),
    }
