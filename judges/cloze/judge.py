"""The class of the judge. Its `reply` stands in for a model, so it uses the same engines, stages and tables."""

import hashlib
from collections.abc import Sequence

from judges.base import LETTERS, UNSURE, Answer, ModelFreeJudge, Prompt, Question, Skip, shuffled, user, vet
from judges.cloze.matching import Passage, choose
from judges.cloze.questions import write_questions


class ClozeJudge(ModelFreeJudge):
    """Fill-in questions from the sentences of the article. Arguments as in `McqJudge`.

    Five questions are few for a score. This judge writes and answers 20 in some milliseconds, so ask for as many.
    """

    def __init__(self, questions: int = 5, options: int = 5, seed: int = 0):
        self.questions, self.options, self.seed = questions, options, seed

    def ask_questions(self, article: str) -> Prompt:
        return Prompt(user(article), max_tokens=1 << 20)

    def ask_answers(self, passage: str, questions: Sequence[Question]) -> Prompt:
        lines = "\n".join(_line([question.question, *question.options]) for question in questions)
        return Prompt(user(lines) + user(passage), max_tokens=1 << 20)

    def reply(self, prompt: Prompt, sample: int = 0) -> str:
        """Write the reply in place of a model. `sample` changes nothing."""
        texts = [message["content"] for message in prompt.messages]
        if len(texts) == 1:
            return "\n".join(map(_line, write_questions(texts[0], self.questions, self.options, self.seed)))
        questions, text = texts
        passage = Passage(text)
        return "\n".join(_answer(line, passage) for line in questions.split("\n"))

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


def _line(parts: Sequence[str]) -> str:
    """Question and options as one line. White space inside them must not look like the end of one."""
    return "\t".join(" ".join(part.split()) for part in parts)


def _answer(line: str, passage: Passage) -> str:
    question, *options = line.split("\t")
    choice = choose(question, options, passage) if options else None
    return UNSURE if choice is None else LETTERS[choice]
