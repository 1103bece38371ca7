"""Settings of models at OpenAI-compatible servers, as far as they change the models' replies.

The settings of the server itself, such as its address, are in `hardware.py`. The engine that sends the requests is
`inference/server/openai_server.py`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.config.base import Settings, Thinking
from pipeline.config.hardware import Hardware


class ServedModel(Settings):
    """A model at an OpenAI-compatible server. Its address, key and concurrency are in `hardware.servers`."""

    server: str  # a name in hardware.servers
    # How the server constrains the form of replies: by a regex (vLLM can), by a json_schema (hosted models can), or not
    # at all (null).
    structured_outputs: Literal["regex", "json_schema"] | None = "regex"
    # Fields to add to each request, or to replace in it; null removes a field.
    extra_body: dict[str, Any] = Field(default_factory=dict)

    @field_validator("extra_body")
    @classmethod
    def _check_extra_body(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in _nested_names(value):
            if _is_key_name(name):
                raise ValueError(f"extra_body has {name!r}: keys are read from the environment only, see api_key_env")
        for name in value:
            if name in ("model", "messages", "n", "stream"):
                raise ValueError(f"extra_body has {name!r}, which Rondo sets itself: leave it out")
        return value


def _nested_names(value: Any) -> Iterator[str]:
    """All names in a section, at any depth."""
    if isinstance(value, dict):
        yield from map(str, value)
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from _nested_names(child)


def _is_key_name(name: str) -> bool:
    letters = re.sub(r"[\W_]", "", name.lower())
    return letters in ("key", "headers", "extraheaders") or "apikey" in letters or "authorization" in letters


class ComparedModel(ServedModel):
    """A model at a server that also summarizes the held-out articles, and is judged beside the policy."""

    model: str  # the model's name at the server
    structured_outputs: None = None  # summaries are free text
    thinking: Thinking | None = None  # whether it thinks before it writes a summary; None: as the server has it


def check_served_models(
    judges: Mapping[str, ServedModel],
    compare: Mapping[str, ComparedModel],
    hardware: Hardware,
    *,
    has_local_judge: bool,
) -> None:
    """Check the models at servers against each other and against the hardware.

    Args:
        judges: the models of judges that servers run, by the names of their settings, such as `judge.served`.
        compare: the compared models, by the names of their columns.
        hardware: settings of servers and engines.
        has_local_judge: whether a judge runs on `hardware.judge`.

    Raises:
        ValueError: a model names an unknown server, the name of a compared model cannot be a column, or
            `hardware.judge` has GPUs or replicas that no judge uses.
    """
    served: dict[str, ServedModel] = {f"compare.{name}": model for name, model in compare.items()} | dict(judges)
    uses_judge_engines = hardware.judge.gpus_per_replica or hardware.judge.replicas.max > 1
    if judges and not has_local_judge and uses_judge_engines:
        raise ValueError(
            f"{next(iter(judges))} is set, so no judge runs here: remove gpus_per_replica and replicas from "
            "hardware.judge"
        )
    for name, model in served.items():
        if model.server not in hardware.servers:
            known = ", ".join(hardware.servers) or "none"
            raise ValueError(
                f"{name}.server is {model.server!r}, and hardware.servers has {known}: describe the server there"
            )
    for name in compare:
        if not re.fullmatch("[a-z0-9-]+", name) or name in ("base", "lead", "shorten-only"):
            raise ValueError(
                f"compare has {name!r}: a column's name should consist of a-z, 0-9 and -, and should not be base, "
                "lead or shorten-only"
            )
