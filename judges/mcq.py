"""The LLM judge: it writes multiple-choice questions about an article and answers them from a passage alone.

The reply to each prompt is held to a regular expression while it is decoded, so reading it back is not guesswork.
The key comes first in what the model writes; we shuffle the options. Left out: which model runs (an engine's
business), and whether a question deserves to be used (the `questions` stage asks that).
"""

import hashlib
import re
from collections.abc import Sequence

from judges.base import LETTERS, UNSURE, Answer, Prompt, Question, Skip, fill, shuffled, user, vet
from judges.prompts import PLAIN, Wording

# Words parted by single spaces: no grammar below lets a weak model write white space for ever, and none needs a
# bounded repetition, which some grammar compilers expand state by state.
_WORD = r"[^ \n\r\t|]+"
_PHRASE = rf"{_WORD}( {_WORD})*"
# What a tiny model spells by bytes, and a server may send: vLLM refuses a regular expression with NUL in it.
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def _literal(text: str) -> str:
    """`text` as a regular expression. Not `re.escape`: what it escapes besides, grammar compilers refuse."""
    return re.sub(r"[\\.^$*+?{}\[\]|()]", r"\\\g<0>", text)


class McqJudge:
    """Multiple-choice questions by an LLM.

    Args:
        questions: how many questions to ask for.
        options: how many options each has, the right one included (2 to 10).
        seed: decides the order of the options.
        wording: what the model is told, and the shape of its replies.
        question_temperature: of the replies to `ask_questions`; answers are always greedy.
        logprobs: ask for the log-probabilities of answers.
    """

    def __init__(
        self,
        questions: int = 5,
        options: int = 5,
        seed: int = 0,
        wording: Wording = PLAIN,
        question_temperature: float = 0.0,
        logprobs: bool = False,
    ):
        self.questions, self.options, self.seed, self.wording = questions, options, seed, wording
        self.question_temperature = question_temperature
        # The longest replies: room for a question's options, and for an answer that restates its question.
        self.max_question_tokens = max(768, 30 * questions * options)
        self.max_answer_tokens = max(256, 51 * questions)
        tags = re.findall(r"</(\w+)>", wording.questions_prompt + wording.answers_prompt)
        self.tags = re.compile(rf"<(\s*/?\s*({'|'.join(tags)})\b[^<>]*)>" if tags else r"(?!)()", re.IGNORECASE)
        self.logprobs = logprobs

    def ask_questions(self, article: str) -> Prompt:
        wrong, article = " | <wrong answer>" * (self.options - 1), self._untagged(article)
        values = {"count": str(self.questions), "choices": str(self.options), "wrong": wrong, "article": article}
        line = rf"{_PHRASE}\? Answer {_PHRASE}( \| {_PHRASE}){{{self.options - 1}}}"
        regex = r"\n".join(rf"Q{i + 1} {line}" for i in range(self.questions))
        messages = user(fill(self.wording.questions_prompt, values))
        return Prompt(messages, self.max_question_tokens, regex, self.question_temperature, quotes=(article,))

    def read_questions(self, reply: str) -> list[Question | Skip]:
        return vet([self._read_question(line) for line in reply.strip().split("\n")])

    def _read_question(self, line: str) -> Question | Skip:
        match = re.fullmatch(r"Q\d+ (.+?\?) Answer (.+)", line.strip())
        if not match or _NO_TEXT.search(line.strip()):
            return Skip("question unread")
        text, options = match[1], tuple(option.strip() for option in match[2].split("|"))
        if len(options) != self.options:
            return Skip(f"question has not {self.options} options")
        digest = hashlib.sha256(f"{text}\n{options}".encode()).hexdigest()[:12]
        return shuffled(Question(digest, text, options, 0), self.seed)

    def ask_answers(self, passage: str, questions: Sequence[Question]) -> Prompt:
        block = self._untagged("\n".join(self.show(number, question) for number, question in enumerate(questions, 1)))
        passage = self._untagged(passage)
        values = {"count": str(len(questions)), "questions": block, "passage": passage}
        regex = r"\n".join(self._choice(number, question) for number, question in enumerate(questions, 1))
        messages = user(fill(self.wording.answers_prompt, values))
        return Prompt(messages, self.max_answer_tokens, regex, logprobs=self.logprobs, quotes=(block, passage))

    def _choice(self, number: int, question: Question) -> str:
        """The lines that answer this question, and no others, as a regular expression.

        With `restate` it is one grammar an article, shared by all its summaries, and cheaper than one for all articles
        that leaves the words open: xgrammar takes 1 ms instead of 3, at a vocabulary of 128,000 3 ms instead of 92.
        """
        letters = LETTERS[: len(question.options)]
        if not self.wording.restate:
            return rf"Q{number} ([{letters[0]}-{letters[-1]}]|Unsure)"
        told = [f"{_literal(option)} {letter}" for option, letter in zip(question.options, letters, strict=True)]
        return f"Q{number} {_literal(question.question)} ({'|'.join(told)}|Unsure)"

    def _untagged(self, text: str) -> str:
        """A text that closed the tag it stands in would go on as the judge: its brackets become round."""
        return self.tags.sub(r"(\1)", text)

    def show(self, number: int, question: Question) -> str:
        """A question as the model sees it, options and letters included."""
        options = self.wording.between.join(
            fill(self.wording.option, {"letter": letter, "option": option})
            for letter, option in zip(LETTERS, question.options, strict=False)
        )
        values = {"number": str(number), "question": question.question, "options": options}
        return fill(self.wording.question, values)

    def answer_line(self, number: int, question: Question, answer: str) -> str:
        """The line that says `answer` (a letter, or `UNSURE`): what `read_answers` reads back."""
        said = "Unsure" if answer == UNSURE else answer
        if not self.wording.restate:
            return f"Q{number} {said}"
        option = "" if answer == UNSURE else question.options[LETTERS.index(answer)] + " "
        return f"Q{number} {question.question} {option}{said}"

    def read_answers(self, reply: str, questions: Sequence[Question]) -> list[Answer]:
        lines = reply.strip().split("\n")
        lines += [""] * (len(questions) - len(lines))
        numbered = enumerate(zip(lines, questions, strict=False), 1)
        return [self._read_answer(line.strip(), number, question) for number, (line, question) in numbered]

    def _read_answer(self, line: str, number: int, question: Question) -> Answer:
        # A line counts only if it is, word for word, what the judge would have to say for one of its choices: a
        # letter beside another option's words is a slip of the model, and is unread rather than right or wrong.
        for answer in (UNSURE, *LETTERS[: len(question.options)]):
            if line == self.answer_line(number, question, answer):
                return answer
        return None
