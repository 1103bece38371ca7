"""Describes the errors of pydantic in the user's terms, one line for each mistake."""

import re
import reprlib
from collections.abc import Sequence
from datetime import date
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from pipeline.config.judging import JudgeSettings
from pipeline.config.messages import did_you_mean


def _section_model(location: Sequence[Any], model: type[BaseModel]) -> type[BaseModel]:
    """The model of the section at a location within a model."""
    annotation: Any = model
    for name in location:
        if get_origin(annotation) is dict:  # a section whose names the user chooses, such as hardware.servers
            annotation = get_args(annotation)[1]
            continue
        annotation = annotation.model_fields[name].annotation
        if get_origin(annotation) is not dict:
            alternatives = (*get_args(annotation), annotation)  # `Lora | None` has arguments; `Lora` has none
            annotation = next(alternative for alternative in alternatives if alternative is not None)
    return annotation


def describe_error(problem: Any, model: type[BaseModel]) -> str:
    """Describe a pydantic error in one line, in the user's terms."""
    location = [part for part in problem["loc"] if isinstance(part, str | int)]
    name = ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        section = ".".join(map(str, location[:-1])) or "the configuration"
        known = list(_section_model(location[:-1], model).model_fields)
        hint = did_you_mean(str(location[-1]), known)
        return f"{section} has no {location[-1]!r}{hint}; it has {', '.join(known)}"
    if problem["type"] == "missing":
        return f"{name} is missing: set it in the file, or on the command line as {name}=…"
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        if message.startswith("thinking."):  # a section that several models have
            return ".".join(map(str, [*location[:-2], message]))
        if location[:1] not in (["judge"], ["second_judge"]):
            return message
        # All judges have one settings class, whose messages name the first judge's settings. A kind may look alike.
        section = ".".join(map(str, location[: 3 if location[1:2] == ["members"] else 1]))
        settings = "|".join(JudgeSettings.model_fields)
        return re.sub(rf"(?<![\w.])judge\.(?=(?:{settings})\b)", f"{section}.", message)
    if problem["type"] == "invalid_key" or location[-1:] == ["[key]"]:
        section = ".".join(map(str, location[:-2])) or "the configuration"
        return f"{section} has the name {shorten(problem['input'])}: a name is text; put it in quotes"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    if problem["type"] in ("model_type", "dict_type"):
        message = "it should be a section of settings by name"
    elif problem["type"] == "string_type":
        message = "it should be text" + ("" if isinstance(problem["input"], dict | list) else "; put it in quotes")
    elif problem["type"] == "tuple_type":
        message = "it should be a list, such as [a, b]"
    return f"{name} is {shorten(problem['input'])}: {message}"


def shorten(value: Any) -> str:
    """A value in at most 80 characters, close to the form in which the user wrote it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "empty"}[value]
    # Not repr, which would write out nested aliases in full length.
    return str(value) if isinstance(value, date) else reprlib.repr(value)[:80]
