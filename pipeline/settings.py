"""What all settings are made of: frozen, no unknown keys. Left out: which there are (`config.py`, `learning.py`)."""

from typing import Annotated, Any

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
