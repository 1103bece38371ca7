"""Compares what the models wrote with the known facts: pure functions from replies to outcomes.

`make_models.py` uses them during training, with transformers; `evaluate.py` uses them with vLLM.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from judges.base import UNSURE, Question, Skip
from judges.mcq import McqJudge
from newsroom.world import LEADS, SLOTS, Article, facts_in

RIGHT = "right"
_SLOT_OF_QUESTION = {slot.question: name for name, slot in SLOTS.items()}


@dataclass
class Share:
    """A count of hits among cases, printed as `0.987 (987 of 1000)`."""

    hits: int = 0
    cases: int = 0

    def add(self, outcomes: Iterable[bool]) -> None:
        for hit in outcomes:
            self.hits, self.cases = self.hits + hit, self.cases + 1

    @property
    def rate(self) -> float:
        return self.hits / self.cases if self.cases else float("nan")

    def __str__(self) -> str:
        return f"{self.rate:.3f} ({self.hits} of {self.cases})"


def check_question(question: Question | Skip, story: Article) -> str:
    """`RIGHT`, or the fault of a question that the judge wrote about an article."""
    if isinstance(question, Skip):
        return question.reason
    name = _SLOT_OF_QUESTION.get(question.question)
    if name is None:
        return "unknown question"
    if name not in story.facts:
        return "fact not in the article"
    return RIGHT if question.options[question.answer] == story.facts[name] else "wrong key"


def expected_answer(question: Question, passage: str) -> str:
    """The answer that a passage supports: a letter, or `UNSURE`."""
    values = facts_in(passage).get(_SLOT_OF_QUESTION.get(question.question, ""), [])
    letters = [letter for letter, option in zip("ABCDE", question.options, strict=True) if option in values]
    return letters[0] if letters else UNSURE


@dataclass
class AnswerAccuracy:
    """Accuracy of the judge's answers.

    Attributes:
        stated: right answers, among questions that the passage answers.
        unstated: `UNSURE`, among questions that the passage does not answer.
        unread: answers that could not be parsed, among all questions.
    """

    stated: Share = field(default_factory=Share)
    unstated: Share = field(default_factory=Share)
    unread: Share = field(default_factory=Share)

    def add(self, judge: McqJudge, reply: str, questions: Sequence[Question], passage: str) -> None:
        answers = judge.read_answers(reply, questions)
        for question, answer in zip(questions, answers, strict=True):
            expected = expected_answer(question, passage)
            (self.unstated if expected == UNSURE else self.stated).add([answer == expected])
            self.unread.add([answer is None])


def check_facts(summary: str, story: Article) -> list[bool]:
    """For each fact that a summary states, whether the article states it too."""
    return [story.facts.get(name) == value for name, values in facts_in(summary).items() for value in values]


def check_sentences(summary: str, story: Article) -> list[bool]:
    """For each sentence of a summary, whether the article has it, perhaps with another lead.

    Unlike `check_facts`, this detects garbled sentences that state no fact at all.
    """
    article_sentences = {*story.others, *(f"{lead}{core}." for lead in LEADS for core in story.cores.values())}
    return [f"{sentence}." in article_sentences for sentence in summary.removesuffix(".").split(". ")]
