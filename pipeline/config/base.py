"""What all settings are made of: frozen, no unknown keys. Left out: which there are (`config.py`, `learning.py`)."""

import re
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, field: ValidationInfo) -> Any:
        """YAML reads yes and on as true, which Python takes for 1."""
        if isinstance(value, bool) and cls.model_fields[field.field_name or ""].annotation is not bool:
            raise PydanticCustomError("yes_or_no", "it is no setting to be turned on or off")
        return value


def check_places(places: Mapping[str, str]) -> None:
    """Raise ValueError where a path, a URI or a name, given by its setting's name, holds a secret."""
    for name, place in places.items():
        if place != place.strip() or not place.isprintable():
            raise ValueError(f"{name} is {place!r:.80}: it should have no control characters, and no space around it")
        try:
            parts = urlsplit(place)
        except ValueError:
            raise ValueError(f"{name} is no path, URI or name: {place!r:.80}") from None
        if "@" in parts.netloc:
            raise ValueError(f"{name} holds a user or a password: put credentials in the environment instead")
        if re.search(r"(?i)(key|token|secret|password|signature|credential)[^&=]*=", parts.query):
            raise ValueError(f"{name} holds a key or a token: put credentials in the environment instead")
