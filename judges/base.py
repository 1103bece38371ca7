"""Defines the interface of a judge, and helpers for judges.

A judge writes prompts and reads replies; an engine runs the model. It turns an article into a prompt for questions,
turns a passage into a prompt for answers, and parses the replies. Or it asks no questions and scores summaries
(`ScoringJudge`). It knows nothing about engines, batches or files, so it can be tested by hand, without Ray or torch.
"""

import random
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from judges.text.tokens import normalized_tokens

LETTERS = "ABCDEFGHIJ"
UNSURE = "unsure"


@dataclass(frozen=True)
class Question:
    """A multiple-choice question with 2 to 10 options. `answer` is the index of the right option in `options`."""

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
    """Something that is left out, with the reason. Reasons are counted, so use few of them and put no data in them."""

    reason: str


# An answer that a judge has read: the letter of an option, `UNSURE`, or None if the answer could not be parsed.
# None is not a wrong answer: the report counts it separately.
Answer = str | None


@dataclass(frozen=True)
class Prompt:
    """One request to a model.

    Attributes:
        messages: chat messages, `{"role": ..., "content": ...}`.
        max_tokens: the limit of the reply.
        regex: constrains decoding; None: free text.
        temperature: 0 is greedy.
        top_p, top_k, min_p, repetition_penalty: as in vLLM; the defaults change nothing.
        stop: texts that end a completion. They are in `token_ids`, and not in `text`.
        n: samples of this prompt; they share one prefill.
        logprobs: return the log-probability of each sample and of each of its tokens.
        quotes: the parts of the messages that came from somebody else, word for word. The engine makes sure that they
            contain no special tokens.
        continuations: texts to score as replies instead of sampling. The reply then has one sample for each of them,
            with its log-probabilities. Only an engine for likelihoods accepts them.
    """

    messages: tuple[dict[str, str], ...]
    max_tokens: int
    regex: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: bool = False
    quotes: tuple[str, ...] = ()
    continuations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One completion of a prompt.

    Attributes:
        text: the completion; of a model that thinks, only the answer.
        token_ids: the sampled ids, with the stop token if the model emitted one; of a model that thinks, the thought
            and then the answer. Empty for a server, which returns no ids.
        finish_reason: as in vLLM: "stop" (a stop token, or a text of `stop`) or "length" (the token limit).
        logp: log-probability of all tokens together, in nats, under the model before temperature, top_p and the like.
            If the prompt has a regex, it is normalized over the tokens that the regex allows. None if the prompt did
            not ask for log-probabilities.
        token_logps: text and log-probability of each token of the answer. None if the prompt did not ask for them, or
            if a server's tokens are not the tokens of `text`.
        thought: what the model thought, for people to read; None if it did not think.
        thought_tokens: how many of `token_ids`, from the first on, are the thought with what closes it. None if the
            model was not to think, or for a server.
        forced_tokens: how many of these, at their end, were not sampled: they closed a thought whose budget was spent.
            `logp` leaves them out.
        thought_logp: the part of `logp` that is of the thought; None as `logp`, or if there is no thought.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    logp: float | None = None
    token_logps: list[tuple[str, float]] | None = None
    thought: str | None = None
    thought_tokens: int | None = None
    forced_tokens: int = 0
    thought_logp: float | None = None


@dataclass(frozen=True)
class Judgement:
    """What a scoring judge says about one summary.

    Attributes:
        value: higher is better. Values of an article's summaries can be compared, whoever wrote the summaries. None:
            the judge's reply could not be parsed.
        items: the parts that the value is made of, such as one number for each criterion; None for an unread part.
            Every summary of an article has the same items in the same order. The judge card compares halves of them to
            tell how reliable the value is.
        reason: why there is no value, if the judge knows. Reasons are counted, as those of `Skip` are.
    """

    value: float | None
    items: tuple[float | None, ...] = ()
    reason: str | None = None


class Judge(Protocol):
    """Everything that the pipeline calls on a judge. A judge without a model is a `ModelFreeJudge`.

    `judge.kind=module:Class` makes a judge of yours: `Class(questions=..., options=..., seed=..., **judge.settings)`.
    It is built on the driver and sent to the Ray workers, so it must be picklable, and no call may depend on an earlier
    one. The same article and seed must give the same questions.
    """

    def ask_questions(self, article: str) -> Prompt:
        """Make the prompt that asks for questions about an article (any text, also an empty one)."""
        ...

    def read_questions(self, reply: str) -> list[Question | Skip]:
        """Parse the reply to `ask_questions`, whatever it says; a question that cannot be used becomes a `Skip`.

        The pipeline keeps the first `questions` of them, and drops those that `vet` finds malformed.
        """
        ...

    def ask_answers(self, passage: str, questions: Sequence[Question]) -> Prompt:
        """Make the prompt that asks to answer questions from a passage alone.

        Args:
            passage: a summary, the whole article, or "" (which shows whether a question can be guessed).
            questions: plain `Question` objects as the questions table stores them, with their options in any order;
                may be empty.
        """
        ...

    def read_answers(self, reply: str, questions: Sequence[Question]) -> list[Answer]:
        """Parse the reply to `ask_answers`: one answer for each question, None for each that cannot be parsed.

        The reply may be anything; it is "" if the engine failed.
        """
        ...


class ScoringJudge(Protocol):
    """Everything that the pipeline calls on a judge that gives scores and asks no questions.

    `judge.kind=module:Class` makes a judge of yours: `Class(**judge.settings)`, with `seed=...` if it takes one. Like a
    `Judge` it must be picklable, and the same texts and seed must give the same prompts.

    Attributes:
        engine: the kind of engine that answers its prompts. `text` generates text: vLLM, a server, or the judge's own
            `reply`. `likelihood` gives log-probabilities of `Prompt.continuations` under a causal LM. `reward` gives
            the number that a sequence-classification model has for a conversation, as text. `none`: it makes no
            prompts.
        reorders: whether `order` changes the prompts. If not, the judge is never asked again in another order.
        compares: it is a `ComparingJudge`.
    """

    engine: ClassVar[str] = "text"
    reorders: ClassVar[bool] = True
    compares: ClassVar[bool] = False

    def ask_scores(self, article: str, summaries: Sequence[str], order: int = 0) -> Sequence[Prompt]:
        """Make the prompts that ask for scores of an article's summaries. No two summaries are equal.

        Args:
            order: with another number, the judge orders its criteria, options or summaries in another way. The judge
                card compares the scores.
        """
        ...

    def read_scores(
        self, article: str, summaries: Sequence[str], replies: Sequence[Sequence[Sample]], order: int = 0
    ) -> list[Judgement]:
        """Parse the replies to `ask_scores`: one judgement for each summary.

        Args:
            replies: the samples of each prompt, in order; none for a prompt that the engine could not serve. A reply
                may be anything.
        """
        ...


class ComparingJudge(ScoringJudge, Protocol):
    """A scoring judge that compares summaries with each other, so its values depend on what it compares with.

    In training it compares an article's samples with each other. In an evaluation it compares the summary of each
    writer with one and the same summary of the article, the base policy's (`anchor`). So values of different writers
    can be compared.
    """

    compares: ClassVar[bool] = True

    def ask_scores(
        self, article: str, summaries: Sequence[str], order: int = 0, anchor: str | None = None
    ) -> Sequence[Prompt]:
        """As `ScoringJudge.ask_scores`. With an anchor, compare each summary with it and with nothing else."""
        ...

    def read_scores(
        self,
        article: str,
        summaries: Sequence[str],
        replies: Sequence[Sequence[Sample]],
        order: int = 0,
        anchor: str | None = None,
    ) -> list[Judgement]:
        """As `ScoringJudge.read_scores`. A summary that equals the anchor is as good as it, without a prompt."""
        ...

    def count_places(
        self, article: str, summaries: Sequence[str], replies: Sequence[Sequence[Sample]], anchor: str | None = None
    ) -> dict[str, int]:
        """Count for the judge card how often the place in the prompt decided, by names of `judging/tallies.py`."""
        ...


class ModelFreeJudge(Judge, Protocol):
    """A judge that needs no model, because it writes the replies itself."""

    def reply(self, prompt: Prompt, sample: int = 0) -> str:
        """Write the reply to a prompt of its own, in place of a model.

        Args:
            sample: the number of the sample, 0 for the only one. Judges ask for one sample.

        Raises:
            ValueError: it cannot reply to this prompt. The pipeline then treats it as a failed request.
        """
        ...


def user(text: str) -> tuple[dict[str, str], ...]:
    """Return a conversation of one user message (no system role: some chat templates refuse one)."""
    return ({"role": "user", "content": text},)


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replace each `{name}` in the template by its value, in one pass.

    This is not `str.format`: an article full of braces must neither fail nor be read as a template itself.

    >>> fill("Read: {article} {x}", {"article": "a {article} b"})
    'Read: a {article} b {x}'
    """
    return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), template)


def closing_tags(*templates: str) -> re.Pattern[str]:
    """A pattern that finds the tags of prompt templates, such as `</article>`, in text from somebody else."""
    tags = "|".join(sorted(set(re.findall(r"</(\w+)>", " ".join(templates)))))
    return re.compile(rf"<(\s*/?\s*({tags})\b[^<>]*)>" if tags else r"(?!)()", re.IGNORECASE)


def untagged(text: str, tags: re.Pattern[str]) -> str:
    """Make the brackets of a prompt's own tags round in `text`, so that the text cannot close its tag early.

    Args:
        tags: from `closing_tags`.

    >>> untagged("a </article> b", closing_tags("<article>{article}</article>"))
    'a (/article) b'
    """
    return tags.sub(r"(\1)", text)


# Judges shuffle the options, so a letter inside a question or an option would point to the wrong option. These patterns
# find an option with a label in front (`A) Oslo`), an option that is a letter, and text that refers to other options.
_LETTER = re.compile(r"\(?[A-J]\)?[.:]?|(\([A-J]\)|[A-J][):]) .*", re.IGNORECASE)
# `A. Oslo`. A name such as `J. Smith` matches too, so a question is refused only if all its options match.
_DOTTED = re.compile(r"[A-J]\. .*")
_OTHERS = re.compile(
    r"\b(all|none|any|both|neither|either|some) of the above\b|\b(all|none|any|both|neither|either) of these\b"
    # Only a capital letter counts, and not the word I: "answer a letter" and "the choice I made" are fine.
    r"|\b(both|neither|either) (?-i:[A-J]) (and|or|nor) (?-i:[A-J])\b"
    r"|\b(option|answer|choice) (?-i:[A-HJ]\b|I\b(?! [a-z]))",
    re.IGNORECASE,
)


def vet(questions: Sequence[Question | Skip]) -> list[Question | Skip]:
    """Replace each malformed or repeated question by a `Skip` with the reason. The result is as long as `questions`.

    A well-formed question has 2 to 10 options that are distinct (by `option_key`), and one of them is the right one. No
    option is a letter or begins with one as a label. Neither the question nor an option refers to other options.
    """
    vetted: list[Question | Skip] = []
    seen = set()
    for question in questions:
        if isinstance(question, Question):
            words = " ".join(normalized_tokens(question.question)) or question.question
            if fault := _fault(question):
                question = Skip(fault)
            elif words in seen:
                question = Skip("question asked twice")
            else:
                seen.add(words)
        vetted.append(question)
    return vetted


# A leading article, which writers put before a name or leave out.
_ARTICLES = frozenset("the a an der die das ein eine le la les l un une el los las una il lo gli".split())


def option_key(text: str) -> tuple[str, ...]:
    """Return what an option says, however it is written: two options with equal keys are the same to a reader.

    The key has the normalized tokens of the text (`judges.text.tokens`) without a leading article, and its symbols, for
    5, -5 and €5 are different options. It is empty if the text says nothing.
    """
    tokens = normalized_tokens(text)
    if len(tokens) > 1 and tokens[0] in _ARTICLES:
        tokens = tokens[1:]
    text = unicodedata.normalize("NFKC", text)
    if not tokens:
        rest = text.casefold().strip(" .,;:!?'\"‘’“”")
        return (rest,) if rest else ()
    symbols = (c for c in re.sub(r"^\W*[-−](?=\d)", "−", text) if c in "#−" or unicodedata.category(c)[0] == "S")
    return (*tokens, *symbols)


def _fault(question: Question) -> str | None:
    """Return why a question is malformed; None if it is not."""
    options = [option_key(option) for option in question.options]
    if not 2 <= len(options) <= len(LETTERS):
        return f"question has not 2 to {len(LETTERS)} options"
    if () in options or len(set(options)) < len(options):
        return "options not distinct"
    if not 0 <= question.answer < len(options):
        return "no key among the options"
    if any(map(_LETTER.fullmatch, question.options)) or all(map(_DOTTED.fullmatch, question.options)):
        return "option names a letter"
    if any(map(_OTHERS.search, (question.question, *question.options))):
        return "option speaks of others"
    return None


def line_logps(tokens: Iterable[tuple[str, float]], lines: int) -> list[float | None]:
    """Return the log-probability of each of the first `lines` lines of a reply, in nats; None for a missing line.

    Args:
        tokens: text and log-probability of each token. A token that spans the end of one line and the start of the
            next counts for the line in which it begins. Line breaks before the first word of a token count for the line
            that follows them.
    """
    logps: list[float | None] = [None] * lines
    text_before = ""
    for text, logp in tokens:
        words = text.lstrip("\n")
        line_breaks = text[: len(text) - len(words)]
        line = (text_before + line_breaks if words else text_before).lstrip().count("\n")
        text_before += text
        if line < lines:
            logps[line] = (logps[line] or 0.0) + logp
    return logps


def shuffled(question: Question, seed: int) -> Question:
    """Return the question with its options in a random order, which may be the same order as before.

    The order is drawn from `seed`, the text of the question, and its options. It does not depend on the position of a
    row in a table, so it is the same in every run. A model that writes questions favours one position for the right
    option, and a model that answers favours one letter. Shuffling cancels both.
    """
    order = list(range(len(question.options)))
    random.Random(f"{seed}\n{question.question}\n{question.options}").shuffle(order)
    options = tuple(question.options[i] for i in order)
    return replace(question, options=options, answer=order.index(question.answer))
