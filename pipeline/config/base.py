"""Defines the base class of all settings, types and the section that they share, and what a location may be.

Settings cannot be changed once they are made, and unknown keys are refused.
"""

import json
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from pipeline.config.messages import is_secret_name

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Dtype = Literal["float32", "bfloat16"]

_VARIABLE = re.compile(r"\$(?:\{([^}]*)\}?|([A-Za-z_][A-Za-z0-9_]*))")


def expand_location(location: str) -> str:
    """Replace a `~` at the beginning of a path, and `$NAME` and `${NAME}` anywhere in it, as a shell does.

    A path that exists as it is written stays as it is, because a name may have a `$` in it.

    Args:
        location: a path, URI or hub name.

    Raises:
        ValueError: a variable is not set or holds a secret, or there is no such user.
    """
    if location.startswith("~") and not (location[1:2] not in ("", "/") and os.path.lexists(location)):
        expanded = os.path.expanduser(location)
        if expanded == location:
            raise ValueError("~ stands for a home folder, and there is none of this name: write the whole path")
        location = expanded
    if "$" not in location or os.path.lexists(location):
        return location
    return _VARIABLE.sub(_variable_value, location)


def _variable_value(match: re.Match[str]) -> str:
    name = match[2] or match[1]
    if is_secret_name(name):
        raise ValueError(f"${name} holds a secret, and settings are written into the run folder: leave it out")
    if not (value := os.environ.get(name)):
        raise ValueError(f"there is no environment variable {name!r}, or it is empty: set it, or write the whole path")
    return value


def _expanded(location: str) -> str:
    try:
        return expand_location(location)
    except ValueError as error:
        raise PydanticCustomError("location", "{reason}", {"reason": str(error)}) from None


Location = Annotated[str, AfterValidator(_expanded)]  # a path, a URI, or a name on the hub


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(arguments, allow_nan=False)
    except (TypeError, ValueError):
        raise PydanticCustomError(
            "plain", "it should hold text, finite numbers, true, false, null, or lists and sections of these"
        ) from None
    return arguments


# Arguments for vLLM by its own names. `execution/planning/engine_arguments.py` checks them.
EngineKwargs = Annotated[dict[str, Any], AfterValidator(_plain)]


class Settings(BaseModel):
    """A section of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _check_no_boolean(cls, value: Any, field: ValidationInfo) -> Any:
        """Refuse true and false for every setting that is not a bool.

        YAML reads `yes` and `on` as true, and Python would accept true as the number 1.
        """
        if isinstance(value, bool) and cls.model_fields[field.field_name or ""].annotation not in (bool, bool | None):
            raise PydanticCustomError(
                "boolean", "it should not be true or false (YAML reads yes, no, on and off as true or false)"
            )
        return value


class Thinking(Settings):
    """How a model thinks before it answers. Without this section it is told not to think."""

    budget: Natural = 1024  # the most tokens of a thought, which is then closed; 0: the thought is closed at once
    # What opens and closes a thought, such as [<think>, </think>]. None: read from the model's chat template.
    tags: tuple[str, str] | None = None

    @field_validator("tags")
    @classmethod
    def _are_two_texts(cls, value: tuple[str, str] | None) -> tuple[str, str] | None:
        if value is not None and (not all(tag.strip() for tag in value) or value[0] == value[1]):
            raise ValueError(f"thinking.tags is {list(value)}: it should be two texts, such as [<think>, </think>]")
        return value


def check_locations(locations: Mapping[str, str]) -> None:
    """Raise ValueError if a location is malformed or holds a secret.

    Args:
        locations: paths, URIs or hub names, by the names of their settings.
    """
    for name, location in locations.items():
        if not location:
            raise ValueError(f"{name} is empty: it should be a path, a URI or a hub name")
        if location != location.strip() or not location.isprintable():
            raise ValueError(
                f"{name} is {location!r:.80}: it should have no control characters, and no spaces at its ends"
            )
        try:
            parts = urlsplit(location)
        except ValueError:
            raise ValueError(f"{name} is {location!r:.80}: it should be a path, a URI or a hub name") from None
        if "@" in parts.netloc:
            raise ValueError(f"{name} holds a user or a password: put credentials in the environment instead")
        if re.search(r"(?i)(key|token|secret|password|signature|credential)[^&=]*=", parts.query):
            raise ValueError(f"{name} holds a key or a token: put credentials in the environment instead")
