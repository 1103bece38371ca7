"""A judge without a model: its questions are sentences of the article with a name or a number blanked out.

This judge is cheap and never guesses, but it does not recognise a paraphrase. Use it as a second opinion, and to test a
whole round on real text without an LLM. `reply` stands in for the model, so this judge uses the same engines, stages
and tables as a judge with a model.
"""

import hashlib
import random
import re
from collections.abc import Sequence

from judges.base import LETTERS, UNSURE, Answer, ModelFreeJudge, Prompt, Question, Skip, shuffled, user, vet

_NUMBER = r"\d[\d,.]*\d|\d"
_NAME = r"[A-Z][\w'’-]+(?: [A-Z][\w'’-]+)*"
_SPOT = re.compile(rf"(?P<number>{_NUMBER})|(?P<name>{_NAME})")
_BLANK = "____"


class ClozeJudge(ModelFreeJudge):
    """Fill-in questions from the sentences of the article. Arguments as in `McqJudge`."""

    def __init__(self, questions: int = 5, options: int = 5, seed: int = 0):
        self.questions, self.options, self.seed = questions, options, seed

    def ask_questions(self, article: str) -> Prompt:
        return Prompt(user(article), max_tokens=1 << 20)

    def ask_answers(self, passage: str, questions: Sequence[Question]) -> Prompt:
        lines = "\n".join("\t".join([question.question, *question.options]) for question in questions)
        return Prompt(user(lines) + user(passage), max_tokens=1 << 20)

    def reply(self, prompt: Prompt, sample: int = 0) -> str:
        """Write the reply in place of a model. `sample` changes nothing."""
        texts = [message["content"] for message in prompt.messages]
        if len(texts) == 1:
            return "\n".join(self._write(texts[0]))
        questions, passage = texts
        return "\n".join(_choose(line, passage) for line in questions.split("\n"))

    def _write(self, article: str) -> list[str]:
        """Return up to `questions` lines. Each has a sentence with a blank, the right option, and wrong options.

        The wrong options are of the same kind as the right one: all are numbers, or all are names.
        """
        sentences = [" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s+|\n+", article)]
        spots = [(s, m) for s in sentences for m in _SPOT.finditer(s) if m.start() > 0 or m["number"]]
        pools = {kind: list(dict.fromkeys(m[kind] for _, m in spots if m[kind])) for kind in ("number", "name")}
        rng = random.Random(f"{self.seed}\n{article}")
        rng.shuffle(spots)
        lines: list[str] = []
        used: set[str] = set()
        outside: dict[tuple[str, str], list[str]] = {}  # by sentence and kind: the values that are not in the sentence
        for sentence, match in spots:
            key, kind = match[0], "number" if match["number"] else "name"
            blanked = sentence[: match.start()] + _BLANK + sentence[match.end() :]
            if key in used or sentence in used or _holds(blanked, key):
                continue
            # The reader could exclude a wrong option that is in the sentence, without reading the passage.
            if (sentence, kind) not in outside:
                outside[sentence, kind] = [value for value in pools[kind] if not _holds(sentence, value)]
            if len(outside[sentence, kind]) < self.options - 1:
                continue
            # An option that is part of the key, or contains it, would be right as well.
            wrong = [value for value in outside[sentence, kind] if not _holds(value, key) and not _holds(key, value)]
            if len(wrong) < self.options - 1:
                continue
            used |= {key, sentence}
            options = [key, *rng.sample(wrong, self.options - 1)]
            lines.append("\t".join([blanked, *options]))
            if len(lines) == self.questions:
                break
        return lines

    def read_questions(self, reply: str) -> list[Question | Skip]:
        questions: list[Question | Skip] = []
        for line in filter(None, reply.split("\n")):
            text, *options = line.split("\t")
            if len(options) != self.options:
                questions.append(Skip("question unread"))
                continue
            digest = hashlib.sha256(line.encode("utf-8", "surrogatepass")).hexdigest()[:12]
            questions.append(shuffled(Question(digest, text, tuple(options), 0), self.seed))
        return vet(questions)

    def read_answers(self, reply: str, questions: Sequence[Question]) -> list[Answer]:
        lines = reply.split("\n")
        if len(lines) != len(questions):
            return [None] * len(questions)
        return [
            line if line in (UNSURE, *LETTERS[: len(question.options)]) else None
            for line, question in zip(lines, questions, strict=True)
        ]


def _choose(line: str, passage: str) -> str:
    """Choose the option whose sentence in the passage has the most words of the blanked one. A tie gives unsure."""
    blanked, *options = line.split("\t")
    blanked_words = _words(blanked)
    best = [0.0] * len(options)
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", passage):
        overlap = len(blanked_words & _words(sentence)) / max(1, len(blanked_words))
        for i, option in enumerate(options):
            if _holds(sentence, option):
                best[i] = max(best[i], overlap)
    top = max(best)
    if top == 0 or best.count(top) > 1:
        return UNSURE
    return LETTERS[best.index(top)]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _holds(text: str, part: str) -> bool:
    """Return whether `part` is in the text, with no letter, digit or _ right before or after it."""
    at = text.find(part)
    while at >= 0:
        end = at + len(part)
        if not (at > 0 and _in_word(text[at - 1])) and not (end < len(text) and _in_word(text[end])):
            return True
        at = text.find(part, at + 1)
    return False


def _in_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_"
