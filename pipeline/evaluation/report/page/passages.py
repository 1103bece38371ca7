"""Finds the passages of an article that a score comes from, where the judge's method tells."""

from collections.abc import Mapping, Sequence
from typing import Any

from judges.cloze.matching import BLANK
from judges.likelihood.judge import LikelihoodJudge
from pipeline.config.judging import JudgeSettings


def question_passage(question: Mapping[str, Any]) -> str | None:
    """The sentence that a question with a blank was cut from: its text with the right option. None without a blank.

    The page marks the sentence only if the article has it. White space may differ.
    """
    text, options, answer = question["question"], question["options"], question["answer"]
    return text.replace(BLANK, options[answer], 1) if BLANK in text else None


def item_passages(judge: JudgeSettings, article: str) -> Sequence[str]:
    """The passages that the items of a score are about, in their order: key sentences of the judge `likelihood`.

    Empty for other judges.
    """
    return LikelihoodJudge(**judge.settings).key_sentences(article) if judge.kind == "likelihood" else ()
