"""Reads a row of preference pairs, in any of several formats, as one prompt with a chosen and a rejected answer.

The columns decide the format. First the answers; `_ANSWERS` and `_CHOICES` list their columns:

| columns | format |
|---|---|
| `chosen`, `rejected` | TRL, UltraFeedback-binarized, Intel orca, LLaMA-Factory, HH-RLHF, Tulu 3, Skywork, our export |
| `chosen_response`, `rejected_response` | argilla |
| `preferred_output`, `non_preferred_output` | OpenAI |
| `response1`, `response2`, `overall_preference` | HelpSteer3: below 0 the first is better, at 0 none |
| `response_1`, `response_2`, `preference_strength` | HelpSteer2, in the same way |
| `response_0`, `response_1`, `better_response_id` | PKU-SafeRLHF |

Then the prompt. The first of these columns that holds something has it:

| column | format | the prompt |
|---|---|---|
| `prompt` | TRL, our own export | text or messages; see below for messages in `chosen` with a text as prompt |
| `conversations` | LLaMA-Factory, sharegpt | `{from, value}` messages |
| `context` | HelpSteer3 | messages; only beside `response1` |
| `question` | Intel orca_dpo_pairs | the user's message |
| `instruction`, `input` | LLaMA-Factory, alpaca; argilla's orca; OpenAI | both, with a line end between; `history` |
| none of them | TRL, implicit prompt | the common start of `chosen` and `rejected` |

UltraFeedback-binarized and Tulu 3 have a text in `prompt`, and the whole conversation in `chosen` and in `rejected`:
the prompt is then their common start. HH-RLHF has transcripts: the prompt ends with the last "Assistant:" that both
have. The common start of other texts is a guess (`Preference.is_guessed`). It is not made beside a column that may hold
the prompt.

A record of Argilla (`Dataset.records.to_json`) has its columns in `fields`. What most people answered to its question
`preference`, `chosen` or `rejected`, decides which answer is the better one.

`system`, `system_prompt` or `system_message` beside any of these is the system message. `tools` and
`chat_template_kwargs` go to the chat template, as in TRL. Other columns are not read: `read_columns` names them.

All functions here are pure functions of one row. Files are read in `readers.py`, messages in `messages.py`; token ids
are made in `pair_tokenizer.py`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from judges.base import Skip
from pipeline.data.messages import (
    Message,
    NotAPair,
    Text,
    has_content,
    make_message,
    parse_json,
    read_messages,
    read_text,
    to_plain,
)
from pipeline.data.readers import UNREADABLE
from pipeline.storage.model_files.chat_template import without_nulls

Row = Mapping[str, Any]

NO_PROMPT_COLUMN = "no known column has the prompt"  # the reason of a row whose prompt could only be guessed
_ANSWERS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
)
# The column that says which of two answers is better, and the columns of the answers.
_CHOICES = {
    "overall_preference": ("response1", "response2"),
    "preference_strength": ("response_1", "response_2"),
    "better_response_id": ("response_0", "response_1"),
}
_PROMPTS = ("prompt", "conversations", "context", "question", "instruction", "input")
_SYSTEM = ("system", "system_prompt", "system_message")
_TEMPLATE = ("tools", "chat_template_kwargs")
_RESPONSES = "responses of people"  # where `_with_fields` puts those of a record of Argilla
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
# A column whose name has a word of the first set and none of the second may hold a part of the prompt.
_PROMPT_WORDS = frozenset(
    "prompt question query instruction instructions input inputs context system history conversation conversations "
    "messages dialog dialogue article document documents passage post text user human persona background knowledge "
    "title request".split()
)
_OTHER_WORDS = frozenset(
    "id ids idx index model type score scores rating rank date url hash category count length tokens template version "
    "generation generations generated raw labelling labeling labelled original chosen rejected response responses "
    "completion completions answer answers language lang".split()
)
# Arguments of apply_chat_template that no row may set: above all another template, which is a program.
_RESERVED_ARGUMENTS = frozenset(
    {"conversation", "messages", "chat_template", "tokenizer_kwargs", "tokenize", "padding", "truncation", "max_length"}
    | {"return_tensors", "return_dict", "return_assistant_tokens_mask", "add_generation_prompt"}
    | {"continue_final_message"}
)
_TRANSCRIPT = re.compile(r"\s*Human:")  # HH-RLHF
_ANSWER_MARK = "\n\nAssistant:"
_LONG_PROMPT = 20  # characters; an answer may begin with the words of a shorter prompt by chance


@dataclass(frozen=True)
class Preference:
    """One pair.

    Attributes:
        prompt, chosen, rejected: all three are text, or all three are messages: dicts with `role` and `content`, and
            any other keys that the chat template may use.
        template: keyword arguments for the chat template, from TRL's columns.
        is_guessed: no column has the prompt: it is the common start of two texts.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    template: Mapping[str, Any] = field(default_factory=dict)
    is_guessed: bool = field(default=False, compare=False)

    @property
    def repeats_prompt(self) -> bool:
        """Whether both answers begin with the text of the prompt, so that the model sees it twice."""
        prompt, answers = self.prompt, (self.chosen, self.rejected)
        if not isinstance(prompt, str) or len(prompt) < _LONG_PROMPT:
            return False
        return all(isinstance(answer, str) and answer.startswith(prompt) for answer in answers)


@dataclass(frozen=True)
class Columns:
    """What becomes of a row's columns.

    Attributes:
        prompt: those that the prompt is read from; empty: it is in the answers.
        unread: those that are not read, in order.
        suspects: those of `unread` that may hold a part of the prompt, by their names.
    """

    prompt: tuple[str, ...]
    unread: tuple[str, ...]
    suspects: tuple[str, ...]


def has_known_columns(row: Row) -> bool:
    """Whether the row has the answers of a known format."""
    return _answer_columns(_with_fields(row)) is not None


def parse_row(row: Row) -> Preference | Skip:
    """Read one row of any known format. Returns a Skip with the reason if it is not a pair.

    Values may be arrays of numpy or pandas. NaN and null are empty.
    """
    if UNREADABLE in row:
        return Skip(row[UNREADABLE])
    try:
        return _parse(_prefer_by_people(_with_fields({name: to_plain(value) for name, value in row.items()})))
    except NotAPair as error:
        return Skip(str(error))
    except RecursionError:
        return Skip("nested too deep")


def read_columns(row: Row) -> Columns:
    """Say which columns of a row are read. The row must have known columns."""
    row = _with_fields({str(name): to_plain(value) for name, value in row.items()})
    answers = _answer_columns(row) or ()
    column = _prompt_column(row)
    prompt = {column} if column else set()
    if column in ("instruction", "input"):
        prompt |= {"instruction", "input", "history"} & row.keys()
    prompt |= {name for name in _SYSTEM if row.get(name)}
    unread = [name for name in row if name not in {*prompt, *answers, *_SYSTEM, *_TEMPLATE, _RESPONSES}]
    in_answers = any(_holds_conversation(row.get(name)) for name in answers)
    suspects = [] if in_answers else [name for name in unread if _may_hold_prompt(name, row[name])]
    return Columns(tuple(name for name in row if name in prompt), tuple(unread), tuple(suspects))


def _parse(row: Row) -> Preference:
    for column in _MEDIA:
        if row.get(column):
            raise NotAPair(f"has {column}")
    chosen, rejected = _answers(row)
    if not has_content(chosen) or not has_content(rejected):
        raise NotAPair("empty answer")
    if chosen == rejected:
        raise NotAPair("chosen and rejected are the same")
    prompt, is_guessed = _prompt(row), False
    if prompt is None or (isinstance(prompt, str) and isinstance(chosen, list)):
        is_guessed = _is_guess(chosen, rejected)
        if is_guessed and (read_columns(row).suspects or any(row.get(name) for name in _SYSTEM)):
            raise NotAPair(NO_PROMPT_COLUMN)
        prompt, chosen, rejected = _extract_prompt(prompt, chosen, rejected)
    system = _system(row)
    if isinstance(prompt, str) and system is not None:
        # A data set with a system column has conversations, also in a row where it is empty.
        prompt = [make_message("user", prompt)]
    if isinstance(prompt, list):
        prompt, chosen, rejected = _remove_prompt(prompt, read_messages(chosen), read_messages(rejected))
        prompt = _add_system(prompt, system)
        for answer in (chosen, rejected):
            _check_roles(answer)
    if not has_content(prompt) or not has_content(chosen) or not has_content(rejected):
        raise NotAPair("empty answer" if has_content(prompt) else "no prompt")
    return Preference(prompt, chosen, rejected, _template_arguments(row), is_guessed)


# Argilla


def _with_fields(row: Row) -> Row:
    """The row with the columns that a record of Argilla has in `fields`."""
    fields = row.get("fields")
    if not isinstance(fields, Mapping):
        return row
    # Argilla has "responses" for people's answers; a column of this name in another format is only a column.
    return {name: value for name, value in row.items() if name not in ("fields", "responses")} | {
        **fields,
        _RESPONSES: row.get("responses"),
    }


def _prefer_by_people(row: Row) -> Row:
    """The row with its answers exchanged if more people prefer the rejected one. Raises NotAPair if they disagree."""
    responses = row.get(_RESPONSES)
    votes = responses.get("preference") if isinstance(responses, Mapping) else None
    if not votes:
        return row
    if not isinstance(votes, list) or not all(isinstance(vote, Mapping) for vote in votes):
        raise NotAPair("wrong type")
    values = [vote.get("value") for vote in votes]
    chosen, rejected = values.count("chosen"), values.count("rejected")
    if max(chosen, rejected) * 2 <= len(values):
        raise NotAPair("neither answer is preferred")
    return {**row, "chosen": row.get("rejected"), "rejected": row.get("chosen")} if rejected > chosen else row


# Answers


def _answer_columns(row: Row) -> tuple[str, ...] | None:
    """The columns of both answers, and of the choice between them."""
    known = [*_ANSWERS, *((*answers, choice) for choice, answers in _CHOICES.items())]
    return next((columns for columns in known if all(column in row for column in columns)), None)


def _answers(row: Row) -> tuple[Text, Text]:
    """The chosen and the rejected answer, both as text if both are text, else both as messages."""
    columns = _answer_columns(row)
    if columns is None:
        raise NotAPair("no chosen or no rejected")
    first, second, *choice = columns
    chosen, rejected = row[first], row[second]
    if choice and _second_is_better(choice[0], row[choice[0]]):
        chosen, rejected = rejected, chosen
    if chosen is None or rejected is None:
        raise NotAPair("no chosen or no rejected")
    chosen, rejected = parse_json(chosen), parse_json(rejected)
    if isinstance(chosen, str) and isinstance(rejected, str):
        return read_text(chosen), read_text(rejected)
    return read_messages(chosen), read_messages(rejected)


def _second_is_better(column: str, choice: Any) -> bool:
    if not isinstance(choice, int | float) or isinstance(choice, bool):
        raise NotAPair("neither answer is preferred")
    if column == "better_response_id":
        if choice not in (0, 1):
            raise NotAPair("neither answer is preferred")
        return choice == 1
    if not choice:
        raise NotAPair("neither answer is preferred")
    return choice > 0


def _check_roles(answer: list[Message]) -> None:
    """Refuse an answer that would teach the model another's turn."""
    for place, message in (("begins", answer[:1]), ("ends", answer[-1:])):
        if message and message[0]["role"] != "assistant":
            raise NotAPair(f"an answer {place} with the role {message[0]['role']:.40}")


# Prompts


def _prompt_column(row: Row) -> str | None:
    """The column that has the prompt. None: there is none. An empty one counts if no other has anything."""
    columns = [name for name in _PROMPTS if name in row and (name != "context" or "response1" in row)]
    return next((name for name in columns if row[name]), columns[0] if columns else None)


def _prompt(row: Row) -> Text | None:
    column = _prompt_column(row)
    if column is None:
        return None
    value = parse_json(row[column])
    if not value:
        raise NotAPair("no prompt")
    if column in ("instruction", "input"):
        return _alpaca(row)
    if isinstance(value, str) and column in ("prompt", "question"):
        return read_text(value) if column == "prompt" else [make_message("user", value)]
    return _prompt_messages(value)


def _prompt_messages(value: Any) -> list[Message]:
    if isinstance(value, str):
        raise NotAPair("wrong type")
    return read_messages(value)


def _alpaca(row: Row) -> list[Message]:
    given = parse_json(row.get("input"))
    if isinstance(given, dict) and "messages" in given:
        return _prompt_messages(given["messages"])
    messages = []
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise NotAPair("wrong type")
    for question, answer in history:
        messages += [make_message("user", question), make_message("assistant", answer)]
    instruction = "\n".join(read_text(part) for part in (row.get("instruction"), given) if part)
    return [*messages, make_message("user", instruction)]


def _system(row: Row) -> str | None:
    """The text of the system columns; "" if they are empty, None if there are none."""
    texts = list(dict.fromkeys(read_text(row[name]) for name in _SYSTEM if row.get(name)))
    if len(texts) > 1:
        raise NotAPair("two system columns that differ")
    if texts:
        return texts[0]
    return "" if any(name in row for name in _SYSTEM) else None


def _add_system(prompt: list[Message], system: str | None) -> list[Message]:
    """Begin the prompt with the system message, unless it has it. Data sets write an empty text for "none"."""
    if not system or not system.strip():
        return prompt
    own = [message["content"].strip() for message in prompt if message["role"] == "system"]
    if any(text != system.strip() for text in own):
        raise NotAPair("the system column and the system message differ")
    return prompt if own else [make_message("system", system), *prompt]


def _is_guess(chosen: Text, rejected: Text) -> bool:
    """Whether the common start of the answers is only a guess at the prompt."""
    return isinstance(chosen, str) and not (_is_transcript(chosen) and _is_transcript(rejected))


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and bool(_TRANSCRIPT.match(value)) and _ANSWER_MARK in value


def _extract_prompt(prompt: str | None, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """Split off the common start of both answers as the prompt, as TRL's `extract_prompt` does.

    Of transcripts it is the start up to the last answer, as in the code of the DPO paper (arXiv 2305.18290). If the
    answers are messages without a common start, a `prompt` given as text becomes the user's message.
    """
    if not isinstance(chosen, str) and prompt is not None and chosen[0] != rejected[0]:
        return [make_message("user", prompt)], chosen, rejected
    shorter = min(len(chosen), len(rejected))
    common = next((i for i in range(shorter) if chosen[i] != rejected[i]), None)
    if isinstance(chosen, str) and not _is_guess(chosen, rejected):
        mark = chosen.rfind(_ANSWER_MARK, 0, shorter if common is None else common)
        common = mark + len(_ANSWER_MARK) if mark >= 0 else 0
    elif common is None:
        common = shorter - 1  # one answer is the start of the other: leave it one element, so that it is not empty
    elif common > 0 and chosen[common - 1] == " ":
        common -= 1  # the space belongs to the first word of the answer
    if common < 1:
        raise NotAPair("no prompt")
    return chosen[:common], chosen[common:], rejected[common:]


def _remove_prompt(prompt: list[Message], *answers: list[Message]) -> tuple[list[Message], ...]:
    """Remove the prompt's messages from answers that repeat them: they would be trained on as part of the answer.

    A system message that only the prompt or only the answers have is kept in the prompt.
    """
    systems = [answer[:1] for answer in answers if answer and answer[0]["role"] == "system"]
    turns = prompt[1:] if prompt[0]["role"] == "system" else prompt
    if len(turns) == len(prompt) and len(systems) == len(answers) and all(each == systems[0] for each in systems):
        prompt = [*systems[0], *prompt]
    starts = (prompt, turns)
    removed = []
    for answer in answers:
        start = next((start for start in starts if start and answer[: len(start)] == start), [])
        removed.append(answer[len(start) :])
    return prompt, *removed


def _holds_conversation(answer: Any) -> bool:
    """Whether an answer has its prompt in it."""
    if isinstance(answer, str) and not isinstance(answer := parse_json(answer), list):
        return _is_transcript(answer)
    return isinstance(answer, list) and len(answer) > 1


def _may_hold_prompt(name: str, value: Any) -> bool:
    if name.lower().endswith("source"):  # where a text comes from
        return False
    words = set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
    return isinstance(value, str | list | dict) and bool(value and words & _PROMPT_WORDS) and not words & _OTHER_WORDS


# The chat template


def _template_arguments(row: Row) -> dict[str, Any]:
    """Keyword arguments for the chat template, from the columns `tools` and `chat_template_kwargs`."""
    given = row.get("input")
    tools = row.get("tools") or (given.get("tools") if isinstance(given, dict) else None)
    kwargs = row.get("chat_template_kwargs") or {}
    try:
        tools = json.loads(tools) if isinstance(tools, str) and tools else tools
    except (ValueError, RecursionError):
        raise NotAPair("wrong type") from None
    if not isinstance(kwargs, dict) or not isinstance(tools or [], list):
        raise NotAPair("wrong type")
    if _RESERVED_ARGUMENTS & kwargs.keys():
        raise NotAPair("chat_template_kwargs that are not the template's")
    return without_nulls(({"tools": tools} if tools else {}) | kwargs)
