"""Marks for what the models wrote, given what is true: pure functions from replies to outcomes.

Left out: running a model. `make_models` does it with transformers as it trains, `examine` with vLLM.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from judges.base import UNSURE, Question, Skip
from judges.mcq import McqJudge
from newsroom.world import LEADS, SLOTS, Article, facts_in

RIGHT = "right"
_SLOT_OF = {slot.question: name for name, slot in SLOTS.items()}


@dataclass
class Share:
    """How many of how many, printed as `0.987 (987 of 1000)`."""

    hits: int = 0
    of: int = 0

    def add(self, hits: Iterable[bool]) -> None:
        for hit in hits:
            self.hits, self.of = self.hits + hit, self.of + 1

    @property
    def rate(self) -> float:
        return self.hits / self.of if self.of else float("nan")

    def __str__(self) -> str:
        return f"{self.rate:.3f} ({self.hits} of {self.of})"


def mark_question(read: Question | Skip, story: Article) -> str:
    """`right`, or what is wrong with a question that the judge wrote about `story`."""
    if isinstance(read, Skip):
        return read.reason
    name = _SLOT_OF.get(read.question)
    if name is None:
        return "unknown question"
    if name not in story.facts:
        return "fact not in the article"
    return RIGHT if read.options[read.answer] == story.facts[name] else "wrong key"


def expected(question: Question, passage: str) -> str:
    """The answer that `passage` supports: a letter, or `UNSURE`."""
    told = facts_in(passage).get(_SLOT_OF.get(question.question, ""), [])
    letters = [letter for letter, option in zip("ABCDE", question.options, strict=True) if option in told]
    return letters[0] if letters else UNSURE


@dataclass
class AnswerMarks:
    """Answers that the passage supports, answers it does not, and lines that could not be read."""

    told: Share = field(default_factory=Share)
    untold: Share = field(default_factory=Share)
    unread: Share = field(default_factory=Share)

    def add(self, judge: McqJudge, reply: str, questions: Sequence[Question], passage: str) -> None:
        answers = judge.read_answers(reply, questions)
        for question, answer in zip(questions, answers, strict=True):
            right = expected(question, passage)
            (self.untold if right == UNSURE else self.told).add([answer == right])
            self.unread.add([answer is None])


def mark_summary(summary: str, story: Article) -> list[bool]:
    """For each fact that the summary tells: is it the article's?"""
    return [story.facts.get(name) == value for name, values in facts_in(summary).items() for value in values]


def mark_sentences(summary: str, story: Article) -> list[bool]:
    """For each sentence of the summary: does the article say it, if perhaps after another lead?

    It sees what `mark_summary` does not: sentences so garbled that they tell no fact at all.
    """
    own = {*story.others, *(f"{lead}{core}." for lead in LEADS for core in story.cores.values())}
    return [f"{sentence}." in own for sentence in summary.removesuffix(".").split(". ")]
