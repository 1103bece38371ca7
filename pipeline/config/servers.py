"""Settings of a model at a server: the part of `config.py` that decides what it answers.

Left out: where the server is (`hardware.py`), and speaking to it (`engines/http.py`).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.config.base import Settings
from pipeline.config.hardware import Hardware


class ServedModel(Settings):
    """A model at an OpenAI-compatible server. Where that is, its key and how wide to ask are the hardware's."""

    server: str  # a name in hardware.servers
    # How replies are held to their form: by `regex`, as vLLM can, by `json_schema`, as hosted ones can, or not at all.
    structured_outputs: Literal["regex", "json_schema"] | None = "regex"
    # Put over the fields of each request; null leaves one out.
    extra_body: dict[str, Any] = Field(default_factory=dict)

    @field_validator("extra_body")
    @classmethod
    def _adds_what_may_be(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in _names(value):
            if _is_key(name):
                raise ValueError(f"extra_body has {name!r}: a key is read from the environment, see api_key_env")
        for name in value:
            if name in ("model", "messages", "n", "stream"):
                raise ValueError(f"extra_body has {name!r}, which is ours to say: leave it out")
        return value


def _names(value: Any) -> Iterator[str]:
    """Of a section and all in it."""
    if isinstance(value, dict):
        yield from map(str, value)
    for inside in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _names(inside)


def _is_key(name: str) -> bool:
    plain = re.sub(r"[\W_]", "", name.lower())
    return plain in ("key", "headers", "extraheaders") or "apikey" in plain or "authorization" in plain


class ComparedModel(ServedModel):
    """A model at a server that summarizes the held-out articles too, and is judged beside the policy."""

    model: str  # as the server names it
    structured_outputs: None = None  # summaries are free text


def check_servers(
    judge: ServedModel | None,
    second_judge: ServedModel | None,
    compare: Mapping[str, ComparedModel],
    hardware: Hardware,
    *,
    second_here: bool,
) -> None:
    """Raise ValueError where a model is to be served by no server, or a column has an impossible name.

    Args:
        second_here: the second judge is a model that runs on `hardware.judge`.
    """
    served: dict[str, ServedModel] = {f"compare.{name}": model for name, model in compare.items()}
    served |= {f"{name}.served": model for name, model in (("judge", judge), ("second_judge", second_judge)) if model}
    if judge and not second_here and (hardware.judge.gpus_per_replica or hardware.judge.replicas.max > 1):
        raise ValueError("judge.served is set: hardware.judge has no use for gpus_per_replica, nor for replicas")
    for name, model in served.items():
        if model.server not in hardware.servers:
            there = ", ".join(hardware.servers) or "none"
            raise ValueError(f"{name}.server is {model.server!r}, and hardware.servers has {there}: describe it there")
    for name in compare:
        if not re.fullmatch("[a-z0-9-]+", name) or name in ("base", "lead", "shorten-only"):
            raise ValueError(
                f"compare has {name!r}: a column's name is of a-z, 0-9 and -, and not base or a baseline's"
            )
