"""Settings as a person writes them, a YAML file plus dotted overrides (`training.beta=0.05`), read and refused here.

Before Ray starts, and in the reader's terms: a line for each mistake, with the nearest known name. Left out: which
settings there are (`config.py`).
"""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config import Alignment, Config, UserError

Kind = TypeVar("Kind", Config, Alignment)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the settings of a run: a YAML file, dotted overrides on top, all of it checked.

    Args:
        path: the YAML file.
        overrides: such as `training.beta=0.05`; each value is read as YAML.

    Raises:
        UserError: a file that is not there or not YAML, an unknown name, a wrong type, an impossible combination;
            one line for each.
    """
    return parse(put(_read(path), overrides))


def load_alignment(path: str | Path, overrides: Sequence[str] = ()) -> Alignment:
    """Read the settings of a training on pairs from elsewhere. Arguments and errors as of `load`.

    The file may also be that of a whole run: what only its rounds use is left aside, and so is its section `pairs`,
    which says how a judge's scores become pairs. An override must be of a setting that counts here.
    """
    raw = _read(path)
    if not isinstance(raw.get("pairs"), str):
        only_rounds = Config.model_fields.keys() - Alignment.model_fields.keys() | {"pairs"}
        raw = {name: value for name, value in raw.items() if name not in only_rounds}
    return parse_alignment(put(raw, overrides))


def parse(raw: dict[str, Any]) -> Config:
    """Check settings that are already in memory. Raises UserError as `load` does."""
    return _checked(Config, raw)


def parse_alignment(raw: dict[str, Any]) -> Alignment:
    """Check settings that are already in memory. Raises UserError as `load` does."""
    return _checked(Alignment, raw)


def _checked(kind: type[Kind], raw: dict[str, Any]) -> Kind:
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(_say(problem, kind) for problem in error.errors())) from None


def _read(path: str | Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no configuration at {path}{_near_file(Path(path))}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} should hold settings by name (run, articles, policy, …), and holds {raw!r:.80}")
    return raw


def put(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Put dotted overrides, such as `training.beta=0.05`, over settings that are in memory."""
    for override in overrides:
        _override(raw, override)
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise UserError(f"{override!r} is no setting: write NAME=VALUE, such as training.beta=0.05")
    *parents, leaf = name.split(".")
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise UserError(f"{name}: {parent} is a value ({section!r}), not a section")
    try:
        section[leaf] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"{name}: {value!r} is not a YAML value; quote it, as in {name}='\"…\"'") from None


def _section(location: Sequence[Any], kind: type[BaseModel]) -> tuple[str, type[BaseModel]]:
    annotation: Any = kind
    for name in location:
        if get_origin(annotation) is dict:  # by names of the user's, such as hardware.servers
            annotation = get_args(annotation)[1]
            continue
        annotation = annotation.model_fields[name].annotation
        if get_origin(annotation) is not dict:
            annotation = next(
                part for part in (*get_args(annotation), annotation) if part is not None
            )  # of `Lora | None`
    return ".".join(map(str, location)), annotation


def _say(problem: Any, kind: type[BaseModel]) -> str:
    """One pydantic error as one line in the reader's terms."""
    location = [part for part in problem["loc"] if isinstance(part, str | int)]
    name = ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        section, model = _section(location[:-1], kind)
        known = list(model.model_fields)
        near = difflib.get_close_matches(str(location[-1]), known, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"{section or 'the configuration'} has no {location[-1]!r}{hint}; it has {', '.join(known)}"
    if problem["type"] == "missing":
        return f"{name} is missing: set it in the file, or on the command line as {name}=…"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{name} is {problem['input']!r:.80}: {message}"


def _near_file(path: Path) -> str:
    names = [str(p) for folder in {path.parent, Path("configs")} if folder.is_dir() for p in folder.glob("*.yaml")]
    return f"; there are {', '.join(sorted(names))}" if names else f" (looked from {os.getcwd()})"
