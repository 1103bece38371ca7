"""Reads replies that no grammar constrained, as a person would read them.

A model that replies freely often leaves the form: it writes an introduction, blank lines, bold numbers, a table, a
fenced block, a thought, or a letter with its option. These functions read what every reader would understand. They
leave unread what is ambiguous: two letters for one question, a letter beside the words of another option, answers to
questions that nobody asked. They never raise, whatever the reply is.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from judges.base import LETTERS, UNSURE, Answer, Question, option_key
from judges.mcq.languages import is_question

_THOUGHT_START = re.compile(r"\s*(?:<(think|thinking|thought|reasoning)>|\[THINK\]|◁think▷)", re.IGNORECASE)
_THOUGHT_END = re.compile(r"(?:</(think|thinking|thought|reasoning)>|\[/THINK\]|◁/think▷)", re.IGNORECASE)
_LINE_END = re.compile(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_FENCE = re.compile(r"^[ \t]*(```|~~~).*$", re.MULTILINE)
# "Answer", as models write it before a letter, in the languages of the tests and their neighbours.
_ANSWER = (
    r"(?:(?<!\w)(?:(?:the|my|final|correct|right|best|richtige|bonne|правильный|верный)\s+)*"
    r"(?:answer|antwort|réponse|respuesta|risposta|resposta|antwoord|svar|odpowiedź|cevap|jawaban|ответ|відповідь"
    r"|απάντηση|उत्तर|الإجابة|الجواب|پاسخ|תשובה)(?:\s+(?:is|ist|est|es|è|é)(?!\w))?(?!\w)"
    r"|正确答案|正しい答え|答案|回答|答え|정답|답)(?:は|是)?\s*[:：=\-–—]?"
)
_ANSWER_LABEL = re.compile(_ANSWER, re.IGNORECASE)
_EDGES = " \t\n\r.,;:!?()[]{}\"'“”‘’„«»‹›「」『』。、，；：！？（）-–—=/\\…·→"


def after_thought(reply: str) -> str:
    """Remove the thought at the start of a reply; "" if the thought never ends.

    A chat template may have begun the thought in the prompt, so that a reply may hold only its end.
    """
    ends = list(_THOUGHT_END.finditer(reply))
    rest = reply[ends[-1].end() :] if ends else reply
    return "" if _THOUGHT_START.match(rest) else rest


# Answers


def read_free_answers(reply: str, questions: Sequence[Question]) -> list[Answer]:
    """Read answers in any form that a person could not mistake; None for each question without such an answer.

    Numbers decide which question is answered. If there are none, there must be as many answers as questions, and
    nothing else but an introduction.
    """
    text = _plain_text(after_thought(reply))
    readers = [_AnswerReader(question) for question in questions]
    for marker in (_Q_NUMBER, _LINE_NUMBER):
        answers = _read_numbered(text, marker, [reader.read for reader in readers])
        if any(answer is not None for answer in answers):
            return answers
        if marker is _Q_NUMBER and marker.search(text):
            return answers
    return _read_in_order(text, readers)


def read_free_ratings(reply: str, count: int, highest: int) -> list[int | None]:
    """Read one whole number from 1 to `highest` for each of `count` questions; None where there is none."""
    text = _plain_text(after_thought(reply))

    def read(body: str) -> str | None:
        number = body.split("\n")[0].strip(_EDGES)
        return number if re.fullmatch("[0-9]", number) and 1 <= int(number) <= highest else None

    for marker in (_Q_NUMBER, _LINE_NUMBER):
        ratings = _read_numbered(text, marker, [read] * count, splits_lines=False)
        if any(ratings):
            return [None if rating is None else int(rating) for rating in ratings]
    return [None] * count


# "Q1", anywhere. A line may instead begin with "1", "Question 1", "Frage 1", "第1题".
_Q_NUMBER = re.compile(r"(?<!\w)(?:Q|Question)\s*(?:No\.?\s*)?(\d{1,3})(?!\w)", re.IGNORECASE)
_LINE_NUMBER = re.compile(
    r"^[^\w\n]*(?:[^\W\d_]{2,12}\.?\s*|第\s*)?(\d{1,3})(?![^\W题題問问]|[.,]\d)[题題問问]?", re.MULTILINE
)
_LETTER_ITEM = r"\d{1,3}\s*[.):=-]*\s*\(?(?:[A-Ja-j]|[Uu]nsure)(?!\w)\)?"
_LETTERS_IN_LINE = re.compile(rf"^\W*{_LETTER_ITEM}(?:[\s,;.]+{_LETTER_ITEM})+\W*$", re.MULTILINE)


def _read_numbered(
    text: str, marker: re.Pattern[str], readers: Sequence[Callable[[str], str | None]], splits_lines: bool = True
) -> list[str | None]:
    """Read what follows each number, up to the next, with the reader of that number.

    A question that has two different answers has none. If a number was answered that was not asked while one that was
    asked has no answer, the reply counts in another way than the prompt (from 0, or on from an example), and no answer
    can be told.
    """
    if marker is _LINE_NUMBER and splits_lines:  # "1. A, 2. B"
        text = _LETTERS_IN_LINE.sub(
            lambda line: "\n".join(item[0] for item in re.finditer(_LETTER_ITEM, line[0])), text
        )
    found: list[set[str]] = [set() for _ in readers]
    is_off = False
    marks = list(marker.finditer(text))
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=False):  # no marks have one end
        body = text[mark.end() : end]
        number = int(mark[1])
        if 1 <= number <= len(readers):
            if (answer := readers[number - 1](body)) is not None:
                found[number - 1].add(answer)
        elif re.fullmatch(r"\W*([A-J]|unsure)\W*", body, re.IGNORECASE):
            is_off = True
    if is_off and not all(found):
        return [None] * len(readers)
    return [answers.pop() if len(answers) == 1 else None for answers in found]


def _read_in_order(text: str, readers: Sequence["_AnswerReader"]) -> list[Answer]:
    """Read answers without numbers: a line for each question, or all of them in one line."""
    lines = [line for line in text.split("\n") if line.strip(_EDGES)]
    if len(lines) > 1 and re.search(r"[:：]\W*$", lines[0]):
        lines = lines[1:]  # an introduction
    if len(lines) == 1 and len(readers) > 1:
        label = _ANSWER_LABEL.search(lines[0])
        words = re.split(r"[\W_]+", lines[0][label.end() :] if label else lines[0])
        lines = [word for word in words if word]
    answers = [reader.read(line) for reader, line in zip(readers, lines, strict=False)]
    if len(lines) != len(readers) or None in answers:
        return [None] * len(readers)
    return answers


_LONGEST_ANSWER = 4000  # characters, with its reason


class _AnswerReader:
    """Reads the answer to one question from the text that follows its number."""

    def __init__(self, question: Question):
        self.question = _plain_text(question.question)
        self.options = [_plain_text(option).strip(_EDGES).casefold() for option in question.options]
        self.keys = [option_key(_plain_text(option)) for option in question.options]
        self.letters = LETTERS[: len(self.keys)]

    def read(self, text: str) -> Answer:
        """Read a letter, `UNSURE`, or an option's words, with or without the question or "Answer:" before it."""
        if len(text) > _LONGEST_ANSWER:
            return None
        text = re.sub(r"^\W*is\s+", "", _without_prefix(text, self.question))  # "The answer to Q1 is A"
        if (answer := self._read_part(text)) is not None:
            return answer
        if not (labels := list(_ANSWER_LABEL.finditer(text))):
            return None
        ends = [label.start() for label in labels[1:]] + [len(text)]
        parts = [text[: labels[0].start()]]
        parts += [text[label.end() : end] for label, end in zip(labels, ends, strict=True)]
        answers = {answer for part in parts if (answer := self._read_part(part)) is not None}
        return answers.pop() if len(answers) == 1 else None

    def _read_part(self, text: str) -> Answer:
        text = text.strip(_EDGES)
        text = re.sub(r"^(?:option|choice|letter)\s+(?=\W*[A-J](?!\w))", "", text, flags=re.IGNORECASE).lstrip(_EDGES)
        if len(text) == 1 and text.isascii() and text.isalpha():
            return text.upper() if text.upper() in self.letters else None
        if match := re.match(r"(unsure)(?!\w)(\W*)(.*)", text, re.IGNORECASE | re.DOTALL):
            explained = not match[3] or (self._is_break(match[2]) and not self._mentions_option(match[3], None))
            return UNSURE if explained else None
        if text.casefold() in self.options:
            return self._only(self.options, text.casefold())
        match = re.match(r"([A-Ja-j])(?!\w)(\W*)(.+)", text, re.DOTALL)
        # "a dog" begins with an article, "A dog" may begin with a letter, "a. dog" does.
        if match and match[1].upper() in self.letters and (match[1].isupper() or self._is_break(match[2])):
            return self._read_letter_first(match[1], match[2], match[3])
        if (words := option_key(text)) in self.keys:
            return self._only(self.keys, words)
        if (match := re.fullmatch(r"(.+?)[\s([{,:=.–—-]+([A-J])", text, re.DOTALL)) and match[2] in self.letters:
            own = self.keys[self.letters.index(match[2])]
            return match[2] if option_key(match[1]) == own else None
        return None

    def _only(self, choices: Sequence[object], chosen: object) -> Answer:
        """The letter of the chosen one, if no other is equal."""
        return self.letters[choices.index(chosen)] if choices.count(chosen) == 1 else None

    def _read_letter_first(self, letter: str, between: str, rest: str) -> Answer:
        """Read "A. Oslo", or "A" with an explanation that names no other choice."""
        own = self.keys[self.letters.index(letter.upper())]
        if option_key(rest) == own:
            return letter.upper()
        # "a good question" is no answer, and neither is "A. Bergen" if there is no Bergen among the options.
        if not letter.isupper() or not self._is_break(between) or self._mentions_option(rest, letter):
            return None
        first_line = option_key(rest.split("\n")[0])
        explains = "\n" in between or first_line[: len(own)] == own or len(first_line) >= 4
        return letter if explains else None

    @staticmethod
    def _is_break(between: str) -> bool:
        return re.search(r"[\n.):,;(\]}–—]|\s-\s", between) is not None

    def _mentions_option(self, text: str, letter: str | None) -> bool:
        """Return whether a text names a choice other than `letter`: by its letter, or by words that are not its own."""
        # "A" before a small letter, and "I", are English words.
        named = set(re.findall(r"(?<!\w)(?:A(?![ '’]\w)|[B-HJ])(?!\w)", text)) & set(self.letters)
        if named - {letter}:
            return True
        tokens = option_key(text)
        own = self.keys[self.letters.index(letter)] if letter else ()
        others = [key for key in self.keys if key and not _holds(own, key)]
        return "unsure" in tokens or any(_holds(tokens, key) for key in others)


def _holds(tokens: Sequence[str], part: Sequence[str]) -> bool:
    return any(tuple(tokens[i : i + len(part)]) == tuple(part) for i in range(len(tokens) - len(part) + 1))


def _plain_text(text: str) -> str:
    """Undo what does not change what a reader sees or means: full-width letters, odd spaces, Markdown."""
    text = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) not in ("Cf", "Cs"))
    text = _without_runs(_FENCE.sub("", _LINE_END.sub("\n", text)), "\n")
    text = re.sub(r"</?(?:answers?|reply|output|result)>|\\boxed|\\text", " ", text, flags=re.IGNORECASE)
    return re.sub(r"[*`_|~#<>]", " ", text)


def _without_runs(text: str, blank: str) -> str:
    """Put `blank` for each run of blank lines, and one space for other white space.

    A weak model may write white space until its limit, and regexes take long on long runs.
    """
    lines = [re.sub(r"\s+", " ", line).strip() for line in text.split("\n")]
    paragraphs = ["\n".join(group) for is_text, group in itertools.groupby(lines, bool) if is_text]
    return blank.join(paragraphs)


def _without_prefix(text: str, prefix: str) -> str:
    """Take `prefix` off the start of a text that has it there, whatever the case, spaces and punctuation."""
    position = 0
    for letter in filter(str.isalnum, prefix):
        while position < len(text) and not text[position].isalnum():
            position += 1
        if position == len(text) or text[position].casefold() != letter.casefold():
            return text
        position += 1
    ends_in_word = position < len(text) and text[position].isalnum()
    return text if ends_in_word else text[position:]


# Questions


@dataclass(frozen=True)
class DraftQuestion:
    """A question as a model wrote it: its text, and its options with the right one first."""

    text: str
    options: tuple[str, ...]


_MARKUP = r"[\s*#>•+_`|-]"
_DIGITS = r"(\d{1,3})"
_Q_START = re.compile(
    rf"^{_MARKUP}*(?:[QＱ]|Question)\s*{_DIGITS}(?!\w)[*_`\s]*[.):：．）|–—-]*[*_`]*", re.MULTILINE | re.IGNORECASE
)
_NUMBER_START = re.compile(rf"^{_MARKUP}*{_DIGITS}(?!\w)[*_`]*[.):：．）、][*_`]*", re.MULTILINE)
_OPTION_LABEL = re.compile(rf"{_MARKUP}*\(?([A-Ja-j])[.):：．）]\s*(.+)")
_WRONG_LABEL = re.compile(
    r"(?:(?:wrong|incorrect|other)\s+)?(?:answers?|options?|choices?|distractors?|wrong|incorrect)\s*[:：]\s*", re.I
)


def read_free_questions(reply: str, options: int) -> list[tuple[str, DraftQuestion | None]]:
    """Read questions in any form that a person could not mistake.

    Args:
        options: the number of options that was asked for. It tells where the last question ends.

    Returns:
        for each question of the reply the text that was read, with its number, and the question, None if it cannot be
        read. Empty if nothing in the reply looks like a question.
    """
    text = _FENCE.sub("", after_thought(reply).replace("\r\n", "\n").replace("\r", "\n"))
    text = _without_runs(text, "\n\n")
    for start in (_Q_START, _NUMBER_START):
        if marks := list(start.finditer(text)):
            ends = [mark.start() for mark in marks[1:]] + [len(text)]
            return [
                (text[mark.start() : end].strip(), _read_free_question(text[mark.end() : end], options))
                for mark, end in zip(marks, ends, strict=True)
            ]
    lines = [re.sub(r"^\s*Q[.:)\s]+", "", line) for line in text.split("\n")]
    bodies = [line for line in lines if _ANSWER_LABEL.search(line) and re.search(r"[|｜]", line)]
    return [(body, _read_free_question(body, options)) for body in bodies]


def _read_free_question(body: str, count: int) -> DraftQuestion | None:
    body = body.replace("**", "")
    for label in itertools.islice(_ANSWER_LABEL.finditer(body), 20):
        head, tail = body[: label.start()], body[label.end() :]
        lines = [_clean(line).strip("| ") for line in head.split("\n")]
        if (last := next((i for i, line in enumerate(lines) if is_question(line)), None)) is None:
            continue
        text = _clean(" ".join(lines[: last + 1]))
        if listed := [line for line in head.split("\n")[last + 1 :] if _clean(line)]:
            return _with_key(text, listed, tail)
        return DraftQuestion(text, tuple(_split_options(tail, count)))
    return None


def _with_key(text: str, listed: Sequence[str], tail: str) -> DraftQuestion | None:
    """A question whose options are listed before the right answer is named, by its letter or its words."""
    labels = [_OPTION_LABEL.fullmatch(line.rstrip()) for line in listed]
    if all(labels):
        letters = "".join(label[1].upper() for label in labels if label)
        options = [_clean(label[2]) for label in labels if label]
        if letters != LETTERS[: len(letters)]:
            return None
    elif any(labels):
        return None
    else:
        options = [_clean(line) for line in listed]
    first_paragraph = re.split(r"\n\s*\n", tail.strip())[0]
    answer = _AnswerReader(Question("", "", tuple(options), 0)).read(first_paragraph) if len(options) <= 10 else None
    if answer in (None, UNSURE):
        return None
    key = LETTERS.index(str(answer))
    return DraftQuestion(text, (options[key], *options[:key], *options[key + 1 :]))


def _split_options(tail: str, count: int) -> list[str]:
    """Split options at bars and line ends. A paragraph after the last option is no option."""
    options: list[str] = []
    for paragraph in re.split(r"\n\s*\n", tail.strip()):
        if len(options) == count:
            break
        for line in paragraph.split("\n"):
            if cells := re.sub(r"^[\s|｜]+|[\s|｜]+$", "", line):
                options += [_clean(_WRONG_LABEL.sub("", cell, count=1)) for cell in re.split(r"[|｜]", cells)]
    return [option for option in options if option] if "\n" in tail.strip() else options


def _clean(text: str) -> str:
    """Take Markdown off the edges of a text, and make every white space one space."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"^(?:[-•+>#]\s+)+", "", text)
    return text.strip("*`_ ")
