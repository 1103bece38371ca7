"""What a judge is: it asks and it reads, and something else runs the model.

A judge turns an article into a prompt for questions, a passage into a prompt for answers, and replies back into
values. It knows nothing of engines, batches or files, so a judge can be tried with a pencil. Standard library only.
"""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

LETTERS = "ABCDEFGHIJ"
UNSURE = "unsure"


@dataclass(frozen=True)
class Question:
    """A multiple-choice question. `answer` is the index of the right one of `options`."""

    question_id: str
    question: str
    options: tuple[str, ...]
    answer: int

    @property
    def letter(self) -> str:
        """The letter of the right option."""
        return LETTERS[self.answer]


@dataclass(frozen=True)
class Skip:
    """Something left out, and why. The reason is counted, so it is one of few and names no data."""

    reason: str


# What was read of an answer: an option's letter, `UNSURE`, or None where nothing could be read.
# None is not a wrong answer: it is kept apart all the way to the report.
Answer = str | None


@dataclass(frozen=True)
class Prompt:
    """One request to a model: chat messages, the shape its reply must have, and how to sample it.

    `regex` constrains decoding (None: free text); `temperature` 0 is greedy; `n` samples share one prefill; with
    `logprobs` each sample comes with its log-probability, and that of each of its tokens. `quotes` are the parts of the
    messages that somebody else wrote, word for word: an engine sees to it that no special token comes of them.
    """

    messages: tuple[dict[str, str], ...]
    max_tokens: int
    regex: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    n: int = 1
    logprobs: bool = False
    quotes: tuple[str, ...] = ()


class Judge(Protocol):
    """Asks for questions about an article, and for answers to them from a passage alone."""

    def ask_questions(self, article: str) -> Prompt: ...

    def read_questions(self, reply: str) -> list[Question | Skip]: ...

    def ask_answers(self, passage: str, questions: Sequence[Question]) -> Prompt: ...

    def read_answers(self, reply: str, questions: Sequence[Question]) -> list[Answer]: ...


def user(text: str) -> tuple[dict[str, str], ...]:
    """A conversation of one user message (no system role: some chat templates refuse one)."""
    return ({"role": "user", "content": text},)


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put `values` where `template` says `{name}`, in one pass.

    Not `str.format`: an article full of braces must neither fail nor be read as a template itself.

    >>> fill("Read: {article} {x}", {"article": "a {article} b"})
    'Read: a {article} b {x}'
    """
    return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), template)


# A label before an option (`A) Oslo`), an option that is a letter, and words about other options: the options are in
# another order when they are answered, and have other letters.
_LETTER = re.compile(r"\(?[A-J]\)?[.:]?|(\([A-J]\)|[A-J][):]) .*", re.IGNORECASE)
_DOTTED = re.compile(r"[A-J]\. .*")  # `A. Oslo`; but so does `J. Smith` begin, and so only if all options do
_OTHERS = re.compile(
    r"\b(all|none|any|both|neither|either|some) of the above\b|\b(all|none|any|both|neither|either) of these\b"
    # A letter is a capital, and no word: "answer a letter", "the choice I made".
    r"|\b(both|neither|either) (?-i:[A-J]) (and|or|nor) (?-i:[A-J])\b"
    r"|\b(option|answer|choice) (?-i:[A-HJ]\b|I\b(?! [a-z]))",
    re.IGNORECASE,
)


def vet(read: Sequence[Question | Skip]) -> list[Question | Skip]:
    """Drop what is no well-formed question, each with its reason: what any judge does with what it read.

    Kept are questions with one key among options that are distinct (case and the marks around them aside), none of
    which names a letter or speaks of the others; and of a question that is there twice, the first.
    """
    vetted: list[Question | Skip] = []
    seen = set()
    for question in read:
        if isinstance(question, Question):
            asked = " ".join(re.findall(r"\w+", question.question.casefold())) or question.question
            if fault := _fault(question):
                question = Skip(fault)
            elif asked in seen:
                question = Skip("question asked twice")
            else:
                seen.add(asked)
        vetted.append(question)
    return vetted


def _fault(question: Question) -> str | None:
    options = [option.casefold().strip(" .,;:!?'\"‘’“”") for option in question.options]
    if "" in options or len(set(options)) < len(options):
        return "options not distinct"
    if not 0 <= question.answer < len(options):
        return "no key among the options"
    if any(map(_LETTER.fullmatch, question.options)) or all(map(_DOTTED.fullmatch, question.options)):
        return "option names a letter"
    if any(map(_OTHERS.search, (question.question, *question.options))):
        return "option speaks of others"
    return None


def line_logps(tokens: Iterable[tuple[str, float]], lines: int) -> list[float | None]:
    """What each of a reply's first `lines` lines has of its log-probability, in nats; None for one that it has not.

    Args:
        tokens: each token's text and log-probability. One that holds the end of a line and the next one's beginning
            counts where it begins; line breaks before any words count with what follows them.
    """
    logps: list[float | None] = [None] * lines
    said = ""
    for text, logp in tokens:
        words = text.lstrip("\n")
        line = (said + text[: len(text) - len(words)] if words else said).lstrip().count("\n")
        said += text
        if line < lines:
            logps[line] = (logps[line] or 0.0) + logp
    return logps


def shuffled(question: Question, seed: int) -> Question:
    """The same question with its options in another order, drawn from `seed` and the question's own words.

    A model that writes questions favours a position for the key, and one that answers favours a letter; both are
    met by shuffling here. The order does not depend on the row's place in a table, so it survives any re-run.
    """
    order = list(range(len(question.options)))
    random.Random(f"{seed}\n{question.question}\n{question.options}").shuffle(order)
    options = tuple(question.options[i] for i in order)
    return replace(question, options=options, answer=order.index(question.answer))
