"""Defines the base class of all settings, types and the section that they share, and the check of locations.

Settings cannot be changed once they are made, and unknown keys are refused.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Dtype = Literal["float32", "bfloat16"]


class Settings(BaseModel):
    """A section of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _check_no_boolean(cls, value: Any, field: ValidationInfo) -> Any:
        """Refuse true and false for every setting that is not a bool.

        YAML reads `yes` and `on` as true, and Python would accept true as the number 1.
        """
        if isinstance(value, bool) and cls.model_fields[field.field_name or ""].annotation is not bool:
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
