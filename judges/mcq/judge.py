"""Judges with an LLM: the model writes multiple-choice questions about an article, and answers them from a passage.

A regular expression constrains the decoding of each reply, so every complete reply has the strict form and is read by
it. A reply in another form, which a server did not constrain, is read as a person would read it (`free_replies.py`).
The model writes the right option first; the judge then shuffles the options.
`pipeline/judging/question_generation.py` decides which questions are good enough to use.
"""

import hashlib
import re
from collections.abc import Sequence

from judges.base import (
    LETTERS,
    UNSURE,
    Answer,
    Judge,
    Prompt,
    Question,
    Skip,
    closing_tags,
    fill,
    shuffled,
    untagged,
    user,
    vet,
)
from judges.mcq.free_replies import read_free_answers, read_free_questions, read_free_ratings
from judges.mcq.languages import ANY_MARK, THE_ARTICLES_LANGUAGE, article_language, language_name, question_end
from judges.prompts import IMPORTANCE_PROMPT, PLAIN, Wording

# Words are separated by single spaces, so that a weak model cannot write white space for ever. The number of words has
# no limit, because some grammar compilers expand a bounded repetition state by state.
_WORD = r"[^ \n\r\t|]+"
_PHRASE = rf"{_WORD}( {_WORD})*"
IMPORTANT, DETAIL = 3, 1  # the highest and the lowest rating of a question's importance
# Characters that a tiny model may spell byte by byte, or a server may send. vLLM refuses a regex that contains NUL.
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def _literal(text: str) -> str:
    """Escape `text` for a regex. Not `re.escape`: it also escapes characters whose escapes grammar compilers refuse."""
    return re.sub(r"[\\.^$*+?{}\[\]|()]", r"\\\g<0>", text)


def _strict_question(line: str) -> tuple[str, tuple[str, ...]] | None:
    """Read a line in the form that the grammar enforces: the question, and its options with the right one first."""
    match = re.fullmatch(r"Q\d+ (.+?\?) Answer (.+)", line)
    if not match:  # in a language that does not end questions with `?`
        match = re.fullmatch(rf"Q\d+ (.+?{ANY_MARK}) Answer (.+)", line)
    return (match[1], tuple(option.strip() for option in match[2].split("|"))) if match else None


class McqJudge(Judge):
    """Multiple-choice questions by an LLM.

    Args:
        questions: the number of questions to ask for.
        options: the number of options of each question, the right one included (2 to 10).
        seed: decides the order of the options.
        wording: the prompt templates, and the form of the replies.
        question_temperature: the temperature of replies to `ask_questions`; answers are always greedy.
        logprobs: ask for the log-probabilities of answers.
        language: ISO 639-1 code of the language of questions and options; auto: that of each article. The prompts stay
            English, and name the language if it is not English (or if a template has `{language}`).
    """

    def __init__(
        self,
        questions: int = 5,
        options: int = 5,
        seed: int = 0,
        wording: Wording = PLAIN,
        question_temperature: float = 0.0,
        logprobs: bool = False,
        language: str = "auto",
    ):
        self.language = language
        self.questions, self.options, self.seed, self.wording = questions, options, seed, wording
        self.question_temperature = question_temperature
        # Limits of the replies: room for all options of the questions, and for answers that restate the question.
        self.max_question_tokens = max(768, 30 * questions * options)
        self.max_answer_tokens = max(256, 51 * questions)
        self.tags = closing_tags(wording.questions_prompt, wording.answers_prompt)
        self.logprobs = logprobs

    def ask_questions(self, article: str) -> Prompt:
        wrong, language = " | <wrong answer>" * (self.options - 1), self._language_of(article)
        article = self._untagged(article)
        values = {"count": str(self.questions), "choices": str(self.options), "wrong": wrong, "article": article}
        values |= {"language": language_name(language), "in_language": self._language_note(language)}
        line = rf"{_PHRASE}{question_end(language)} Answer {_PHRASE}( \| {_PHRASE}){{{self.options - 1}}}"
        regex = r"\n".join(rf"Q{i + 1} {line}" for i in range(self.questions))
        messages = user(fill(self.wording.questions_prompt, values))
        return Prompt(messages, self.max_question_tokens, regex, self.question_temperature, quotes=(article,))

    def _language_of(self, text: str) -> str:
        """The language for questions about a text. A wording that a model was trained on has its own."""
        if self.language != "auto" or self.wording.restate:
            return "en" if self.language == "auto" else self.language
        return article_language(text)

    def _language_note(self, language: str) -> str:
        """The sentence that names the language in the prompt for questions; "" for an English article."""
        if self.language != "auto":
            return f" Write the questions and the answers in {language_name(language)}."
        if language == "en":
            return ""
        name = language_name(language)
        which = f"{name}, {THE_ARTICLES_LANGUAGE}" if name != THE_ARTICLES_LANGUAGE else name
        return f" Write the questions and the answers in {which}."

    def read_questions(self, reply: str) -> list[Question | Skip]:
        lines = [line.strip() for line in reply.strip().split("\n")]
        read = [_strict_question(line) for line in lines]
        if None in read[:-1] or read == [None]:
            read = self._free_questions(reply) or read
        elif read[-1] is None:  # the lines before it are in the form, so it was cut off, or is in another form
            read = [*read[:-1], *(self._free_questions(lines[-1]) or [None])]
        return vet([self._draft(question) for question in read])

    def _free_questions(self, text: str) -> list[tuple[str, tuple[str, ...]] | None]:
        """Read questions in any form. A segment in the strict form keeps its Markdown."""
        return [
            _strict_question(segment) or ((draft.text, draft.options) if draft else None)
            for segment, draft in read_free_questions(text, self.options)
        ]

    def _draft(self, read: tuple[str, tuple[str, ...]] | None) -> Question | Skip:
        """A question, with its options shuffled, from its text and its options as the reply has them."""
        if read is None or any(map(_NO_TEXT.search, (read[0], *read[1]))):
            return Skip("question unread")
        text, options = read
        if len(options) != self.options:
            return Skip(f"question has not {self.options} options")
        digest = hashlib.sha256(f"{text}\n{options}".encode()).hexdigest()[:12]
        return shuffled(Question(digest, text, options, 0), self.seed)

    def ask_answers(self, passage: str, questions: Sequence[Question]) -> Prompt:
        block = self._questions_block(questions)
        passage = self._untagged(passage)
        values = {"count": str(len(questions)), "questions": block, "passage": passage}
        if "{language}" in self.wording.answers_prompt:
            # By the questions, not by the passage: an article's summaries share everything before the passage.
            values["language"] = language_name(self._language_of(block))
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
        return untagged(text, self.tags)

    def _questions_block(self, questions: Sequence[Question]) -> str:
        return self._untagged("\n".join(self.format_question(number, q) for number, q in enumerate(questions, 1)))

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
        strict, last = self.strict_answers(reply, questions), len(lines) - 1
        in_form = None not in strict[:last] and len(lines) <= len(questions)
        if in_form and (
            (last + 1 == len(questions) and strict[last])
            or self._is_cut(lines[last].strip(), last + 1, questions[last])
        ):
            return strict
        return read_free_answers(self._without_cut_line(reply, questions), questions)

    def strict_answers(self, reply: str, questions: Sequence[Question]) -> list[Answer]:
        """Read the answers that stand in their own line of the strict form; None for each other."""
        lines = reply.strip().split("\n")
        lines += [""] * (len(questions) - len(lines))
        numbered = enumerate(zip(lines, questions, strict=False), 1)
        return [self._strict_answer(line.strip(), number, question) for number, (line, question) in numbered]

    def _strict_answer(self, line: str, number: int, question: Question) -> Answer:
        # A line counts only if it is exactly the line of one choice. A letter beside the words of another option is a
        # slip of the model, so the answer is unread and neither right nor wrong.
        for answer in (UNSURE, *LETTERS[: len(question.options)]):
            if line == self.answer_line(number, question, answer):
                return answer
        return None

    def _is_cut(self, line: str, number: int, question: Question) -> bool:
        """Return whether a line is the start of a line in the strict form."""
        answers = (UNSURE, *LETTERS[: len(question.options)])
        wholes = (self.answer_line(number, question, answer) for answer in answers)
        return any(len(line) < len(whole) and whole.startswith(line) for whole in wholes)

    def _without_cut_line(self, reply: str, questions: Sequence[Question]) -> str:
        """Leave out a last line in which a restated option was cut off: it may end in a letter by chance."""
        before, _, last = reply.rstrip().rpartition("\n")
        if not self.wording.restate or not last.strip():
            return reply
        is_cut = any(self._is_cut(last.strip(), number, question) for number, question in enumerate(questions, 1))
        return before if is_cut else reply

    def ask_importance(self, article: str, questions: Sequence[Question]) -> Prompt:
        """Make the prompt that asks how important each question is, from `DETAIL` to `IMPORTANT`."""
        block = self._questions_block(questions)
        article = self._untagged(article)
        values = {"count": str(len(questions)), "questions": block, "article": article}
        regex = r"\n".join(rf"Q{number} [{DETAIL}-{IMPORTANT}]" for number in range(1, len(questions) + 1))
        messages = user(fill(IMPORTANCE_PROMPT, values))
        return Prompt(messages, self.max_answer_tokens, regex, quotes=(block, article))

    def read_importance(self, reply: str, questions: Sequence[Question]) -> list[int | None]:
        """Parse the reply to `ask_importance`: one rating for each question, None for each that cannot be parsed."""
        return read_free_ratings(reply, len(questions), IMPORTANT)
