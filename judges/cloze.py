"""A judge without a model: it blanks out names and numbers in the article's own sentences.

Cheap, exact about what it claims, and blind to paraphrase: a second opinion, and what makes a whole round testable on
real text with no LLM. `reply` plays the model's part, so this judge goes through the same engines, stages and tables.
"""

import hashlib
import random
import re
from collections.abc import Sequence

from judges.base import LETTERS, UNSURE, Answer, Prompt, Question, Skip, shuffled, user, vet

_NUMBER = r"\d[\d,.]*\d|\d"
_NAME = r"[A-Z][\w'’-]+(?: [A-Z][\w'’-]+)*"
_SPOT = re.compile(rf"(?P<number>{_NUMBER})|(?P<name>{_NAME})")
_BLANK = "____"


class ClozeJudge:
    """Fill-in questions from the article's own sentences. Arguments as of `McqJudge`."""

    def __init__(self, questions: int = 5, options: int = 5, seed: int = 0):
        self.questions, self.options, self.seed = questions, options, seed

    def ask_questions(self, article: str) -> Prompt:
        return Prompt(user(article), max_tokens=1 << 20)

    def ask_answers(self, passage: str, questions: Sequence[Question]) -> Prompt:
        lines = "\n".join("\t".join([question.question, *question.options]) for question in questions)
        return Prompt(user(lines) + user(passage), max_tokens=1 << 20)

    def reply(self, prompt: Prompt, sample: int = 0) -> str:
        """What a model would have answered. `sample` is there for the scripted engine and changes nothing."""
        texts = [message["content"] for message in prompt.messages]
        if len(texts) == 1:
            return "\n".join(self._write(texts[0]))
        questions, passage = texts
        return "\n".join(_choose(line, passage) for line in questions.split("\n"))

    def _write(self, article: str) -> list[str]:
        """Up to `questions` lines: the blanked sentence, the right option, then others of its kind."""
        sentences = [" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s+|\n+", article)]
        spots = [(s, m) for s in sentences for m in _SPOT.finditer(s) if m.start() > 0 or m["number"]]
        pools = {kind: list(dict.fromkeys(m[kind] for _, m in spots if m[kind])) for kind in ("number", "name")}
        rng = random.Random(f"{self.seed}\n{article}")
        rng.shuffle(spots)
        lines: list[str] = []
        used: set[str] = set()
        apart: dict[tuple[str, str], list[str]] = {}  # by sentence and kind: those that are not in it
        for sentence, match in spots:
            key, kind = match[0], "number" if match["number"] else "name"
            blanked = sentence[: match.start()] + _BLANK + sentence[match.end() :]
            if key in used or sentence in used or _holds(blanked, key):
                continue
            # One in the sentence would give itself away.
            if (sentence, kind) not in apart:
                apart[sentence, kind] = [other for other in pools[kind] if not _holds(sentence, other)]
            if len(apart[sentence, kind]) < self.options - 1:
                continue
            # An option that is part of the key, or holds it, would be right as well.
            others = [other for other in apart[sentence, kind] if not _holds(other, key) and not _holds(key, other)]
            if len(others) < self.options - 1:
                continue
            used |= {key, sentence}
            options = [key, *rng.sample(others, self.options - 1)]
            lines.append("\t".join([blanked, *options]))
            if len(lines) == self.questions:
                break
        return lines

    def read_questions(self, reply: str) -> list[Question | Skip]:
        read: list[Question | Skip] = []
        for line in filter(None, reply.split("\n")):
            text, *options = line.split("\t")
            if len(options) != self.options:
                read.append(Skip("question unread"))
                continue
            digest = hashlib.sha256(line.encode("utf-8", "surrogatepass")).hexdigest()[:12]
            read.append(shuffled(Question(digest, text, tuple(options), 0), self.seed))
        return vet(read)

    def read_answers(self, reply: str, questions: Sequence[Question]) -> list[Answer]:
        said = reply.split("\n")
        if len(said) != len(questions):
            return [None] * len(questions)
        return [
            word if word in (UNSURE, *LETTERS[: len(question.options)]) else None
            for word, question in zip(said, questions, strict=True)
        ]


def _choose(line: str, passage: str) -> str:
    """The option whose sentence in the passage is most like the blanked one; unsure if none or several are."""
    sentence, *options = line.split("\t")
    wanted = _words(sentence)
    best = [0.0] * len(options)
    for said in re.split(r"(?<=[.!?])\s+|\n+", passage):
        overlap = len(wanted & _words(said)) / max(1, len(wanted))
        for i, option in enumerate(options):
            if _holds(said, option):
                best[i] = max(best[i], overlap)
    top = max(best)
    if top == 0 or best.count(top) > 1:
        return UNSURE
    return LETTERS[best.index(top)]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _holds(text: str, part: str) -> bool:
    """Whether `part` is in the text, with no letter, digit or _ before it or after."""
    at = text.find(part)
    while at >= 0:
        end = at + len(part)
        if not (at > 0 and _in_word(text[at - 1])) and not (end < len(text) and _in_word(text[end])):
            return True
        at = text.find(part, at + 1)
    return False


def _in_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_"
