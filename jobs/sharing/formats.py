"""Writes preference pairs in the forms of other tools. `pipeline/data/preference_formats.py` reads each of them back.

The forms, as their own documentation and data sets have them in 2026:

- `trl`: prompt, chosen, rejected: messages, or text if the policy has no chat template.
- `ultrafeedback`: the columns of HuggingFaceH4/ultrafeedback_binarized, with the whole conversation in both answers.
- `llama-factory-alpaca`, `llama-factory-sharegpt`: LLaMA-Factory's preference data, beside a dataset_info.json.
- `argilla`: records for `rg.Dataset.records.from_json`, with the better answer as a suggestion that people can correct.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pipeline.config import UserError
from pipeline.data.messages import Message, Text


class Form(StrEnum):
    """The names of `--format`."""

    TRL = "trl"
    ULTRAFEEDBACK = "ultrafeedback"
    ALPACA = "llama-factory-alpaca"
    SHAREGPT = "llama-factory-sharegpt"
    ARGILLA = "argilla"


def read_form(name: str) -> Form:
    """The form of that name. Raises UserError if there is none."""
    try:
        return Form(name)
    except ValueError:
        raise UserError(
            f"--format is {name!r}: it should be one of {', '.join(Form)}. The ending of --out says whether it is "
            "JSON or Parquet"
        ) from None


@dataclass(frozen=True)
class ExportedPair:
    """A pair of a run, as text.

    Attributes:
        prompt: messages, or a text if the policy has no chat template.
        chosen, rejected: the texts of both answers.
        template: arguments for the chat template.
        reason: why the chosen is better, for people.
        score_chosen, score_rejected: what the judge thought of both; None: unread, or not recorded.
        pair_id: unique within the run: round, article, and place of the pair.
        judge: what to call the judge, for other people.
    """

    prompt: Text
    chosen: str
    rejected: str
    template: Mapping[str, Any]
    reason: str | None
    score_chosen: float | None
    score_rejected: float | None
    pair_id: str = ""
    judge: str = ""


def to_row(pair: ExportedPair, form: Form) -> dict[str, Any]:
    """The pair as one row of a form.

    Raises:
        UserError: the form cannot hold the pair.
    """
    row = _WRITERS[form](pair)
    return row | ({"chat_template_kwargs": dict(pair.template)} if pair.template else {})


def _trl(pair: ExportedPair) -> dict[str, Any]:
    if isinstance(pair.prompt, str):
        return {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    return {"prompt": pair.prompt, "chosen": [_answer(pair.chosen)], "rejected": [_answer(pair.rejected)]}


def _ultrafeedback(pair: ExportedPair) -> dict[str, Any]:
    messages = _messages(pair, Form.ULTRAFEEDBACK)
    question = messages[-1]["content"]
    chosen = [*messages, _answer(pair.chosen)]
    return {
        "prompt": question,
        "prompt_id": hashlib.sha256(question.encode("utf-8", "replace")).hexdigest(),
        "chosen": chosen,
        "rejected": [*messages, _answer(pair.rejected)],
        "messages": chosen,
        "score_chosen": pair.score_chosen,
        "score_rejected": pair.score_rejected,
    }


def _alpaca(pair: ExportedPair) -> dict[str, Any]:
    system, turns = _split_system(_messages(pair, Form.ALPACA))
    *earlier, question = turns
    roles = [message["role"] for message in earlier]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise UserError(
            f"--format is {Form.ALPACA}, whose history has a question and an answer in turn, and the policy's "
            f"instruction has another order: use --format {Form.SHAREGPT}"
        )
    contents = [message["content"] for message in earlier]
    return {
        "instruction": question["content"],
        "input": "",
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        **({"system": system} if system else {}),
        **({"history": [contents[i : i + 2] for i in range(0, len(contents), 2)]} if contents else {}),
    }


def _sharegpt(pair: ExportedPair) -> dict[str, Any]:
    system, turns = _split_system(_messages(pair, Form.SHAREGPT))
    names = {"user": "human", "assistant": "gpt"}
    return {
        "conversations": [{"from": names[message["role"]], "value": message["content"]} for message in turns],
        "chosen": {"from": "gpt", "value": pair.chosen},
        "rejected": {"from": "gpt", "value": pair.rejected},
        **({"system": system} if system else {}),
    }


def _argilla(pair: ExportedPair) -> dict[str, Any]:
    metadata = {"score_chosen": pair.score_chosen, "score_rejected": pair.score_rejected, "reason": pair.reason}
    return {
        "id": pair.pair_id,
        "fields": {"prompt": _messages(pair, Form.ARGILLA), "chosen": pair.chosen, "rejected": pair.rejected},
        "metadata": {name: value for name, value in metadata.items() if value is not None},
        "suggestions": {"preference": {"value": "chosen", "score": None, "agent": pair.judge}},
        "responses": {},
        "vectors": {},
    }


_WRITERS: dict[Form, Callable[[ExportedPair], dict[str, Any]]] = {
    Form.TRL: _trl,
    Form.ULTRAFEEDBACK: _ultrafeedback,
    Form.ALPACA: _alpaca,
    Form.SHAREGPT: _sharegpt,
    Form.ARGILLA: _argilla,
}


def dataset_info(file_name: str, row: Mapping[str, Any], form: Form) -> dict[str, Any] | None:
    """The entry of LLaMA-Factory's dataset_info.json for a file with such rows; None for the forms of other tools."""
    if form not in (Form.ALPACA, Form.SHAREGPT):
        return None
    columns = {"prompt": "instruction", "query": "input"} if form is Form.ALPACA else {"messages": "conversations"}
    columns |= {"chosen": "chosen", "rejected": "rejected"}
    columns |= {name: name for name in ("system", "history") if name in row}
    formatting = {} if form is Form.ALPACA else {"formatting": "sharegpt"}
    return {"file_name": file_name, **formatting, "ranking": True, "columns": columns}


def merge_dataset_info(text: str | None, name: str, entry: Mapping[str, Any], location: str) -> str:
    """dataset_info.json with the entry in it; other entries stay.

    Args:
        text: the file as it is; None: there is none.
        name: the name of the entry.
        entry: see `dataset_info`.
        location: where the file is, for the message of an error.

    Raises:
        UserError: the file is damaged.
    """
    try:
        entries = json.loads(text or "{}")
    except ValueError:
        entries = None
    if not isinstance(entries, dict):
        raise UserError(f"{location} is damaged: it should hold a JSON object. Mend or remove it")
    return json.dumps(entries | {name: entry}, indent=2, ensure_ascii=False) + "\n"


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _messages(pair: ExportedPair, form: Form) -> list[Message]:
    if isinstance(pair.prompt, str):
        raise UserError(
            f"--format is {form}, which has messages, and the policy has no chat template, so its pairs are texts: use "
            f"--format {Form.TRL}"
        )
    return pair.prompt


def _split_system(messages: list[Message]) -> tuple[str | None, list[Message]]:
    """The text of the system message, if there is one, and the other messages."""
    is_system = messages[0]["role"] == "system"
    return (messages[0]["content"], messages[1:]) if is_system else (None, messages)
