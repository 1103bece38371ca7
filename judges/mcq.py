"""Judges with an LLM: the model writes multiple-choice questions about an article, and answers them from a passage.

A regular expression constrains the decoding of each reply, so every complete reply can be parsed. A reply that was cut
off at its token limit, or that a server did not constrain, may be impossible to parse. The model writes the right
option first; the judge then shuffles the options. `pipeline/judging/question_generation.py` decides which questions are
good enough to use.
"""

import hashlib
import re
from collections.abc import Sequence

from judges.base import LETTERS, UNSURE, Answer, Judge, Prompt, Question, Skip, fill, shuffled, user, vet
from judges.prompts import PLAIN, Wording

# Words are separated by single spaces, so that a weak model cannot write white space for ever. The number of words has
# no limit, because some grammar compilers expand a bounded repetition state by state.
_WORD = r"[^ \n\r\t|]+"
_PHRASE = rf"{_WORD}( {_WORD})*"
# Characters that a tiny model may spell byte by byte, or a server may send. vLLM refuses a regex that contains NUL.
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def _literal(text: str) -> str:
    """Escape `text` for a regex. Not `re.escape`: it also escapes characters whose escapes grammar compilers refuse."""
    return re.sub(r"[\\.^$*+?{}\[\]|()]", r"\\\g<0>", text)


class McqJudge(Judge):
    """Multiple-choice questions by an LLM.

    Args:
        questions: the number of questions to ask for.
        options: the number of options of each question, the right one included (2 to 10).
        seed: decides the order of the options.
        wording: the prompt templates, and the form of the replies.
        question_temperature: the temperature of replies to `ask_questions`; answers are always greedy.
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
        # Limits of the replies: room for all options of the questions, and for answers that restate the question.
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
        block = self._untagged(
            "\n".join(self.format_question(number, question) for number, question in enumerate(questions, 1))
        )
        passage = self._untagged(passage)
        values = {"count": str(len(questions)), "questions": block, "passage": passage}
        regex = r"\n".join(self._answer_regex(number, question) for number, question in enumerate(questions, 1))
        messages = user(fill(self.wording.answers_prompt, values))
        return Prompt(messages, self.max_answer_tokens, regex, logprobs=self.logprobs, quotes=(block, passage))

    def _answer_regex(self, number: int, question: Question) -> str:
        """Return a regex that matches the lines that answer this question, and no others.

        With `restate`, all summaries of an article share one grammar. That is cheaper than one grammar for all articles
        with the words left open: xgrammar compiles it in 1 ms instead of 3 ms, and with a vocabulary of 128,000 tokens
        in 3 ms instead of 92 ms.
        """
        letters = LETTERS[: len(question.options)]
        if not self.wording.restate:
            return rf"Q{number} ([{letters[0]}-{letters[-1]}]|Unsure)"
        choices = [f"{_literal(option)} {letter}" for option, letter in zip(question.options, letters, strict=True)]
        return f"Q{number} {_literal(question.question)} ({'|'.join(choices)}|Unsure)"

    def _untagged(self, text: str) -> str:
        """Make the brackets of the prompt's own tags round in `text`, so that the text cannot close its tag early."""
        return self.tags.sub(r"(\1)", text)

    def format_question(self, number: int, question: Question) -> str:
        """Return a question as the model sees it, with its options and letters."""
        options = self.wording.between.join(
            fill(self.wording.option, {"letter": letter, "option": option})
            for letter, option in zip(LETTERS, question.options, strict=False)
        )
        values = {"number": str(number), "question": question.question, "options": options}
        return fill(self.wording.question, values)

    def answer_line(self, number: int, question: Question, answer: str) -> str:
        """Return the line of a reply that gives `answer` (a letter, or `UNSURE`), as `read_answers` parses it."""
        choice = "Unsure" if answer == UNSURE else answer
        if not self.wording.restate:
            return f"Q{number} {choice}"
        option = "" if answer == UNSURE else question.options[LETTERS.index(answer)] + " "
        return f"Q{number} {question.question} {option}{choice}"

    def read_answers(self, reply: str, questions: Sequence[Question]) -> list[Answer]:
        lines = reply.strip().split("\n")
        lines += [""] * (len(questions) - len(lines))
        numbered = enumerate(zip(lines, questions, strict=False), 1)
        return [self._read_answer(line.strip(), number, question) for number, (line, question) in numbered]

    def _read_answer(self, line: str, number: int, question: Question) -> Answer:
        # A line counts only if it is exactly the line of one choice. A letter beside the words of another option is a
        # slip of the model, so the answer is unread and neither right nor wrong.
        for answer in (UNSURE, *LETTERS[: len(question.options)]):
            if line == self.answer_line(number, question, answer):
                return answer
        return None
