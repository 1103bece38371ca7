"""Settings as a person writes them, a YAML file plus dotted overrides (`training.beta=0.05`), read and refused here.

Before Ray starts, and in the reader's terms: a line for each mistake, with the nearest known name. Left out: which
settings there are (`config.py`).
"""

import difflib
import os
import re
import reprlib
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config.errors import UserError
from pipeline.config.run import Alignment, Config
from pipeline.config.sanitize import one_line

Kind = TypeVar("Kind", Config, Alignment)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the settings of a run: a YAML file, dotted overrides on top, all of it checked.

    Args:
        path: the YAML file.
        overrides: such as `training.beta=0.05`; each value is read as YAML.

    Raises:
        UserError: a file that is not there or not YAML, an unknown name, a wrong type, an impossible combination;
            one line for each.
    """
    raw = _read(path)
    if isinstance(raw.get("pairs"), str):
        raise UserError(f"{path} has pairs of its own ({raw['pairs']}): it is for `rondo train`, which has no rounds")
    return parse_config(apply_overrides(raw, overrides))


def load_alignment(path: str | Path, overrides: Sequence[str] = ()) -> Alignment:
    """Read the settings of a training on pairs from elsewhere. Arguments and errors as of `load`.

    The file may also be that of a whole run: what only its rounds use is left aside, policy.instruction with it, and so
    is its section `pairs`, which says how a judge's scores become pairs. An override must be of a setting that counts
    here.
    """
    raw = _read(path)
    if not isinstance(raw.get("pairs"), str):
        only_rounds = Config.model_fields.keys() - Alignment.model_fields.keys() | {"pairs"}
        raw = {name: value for name, value in raw.items() if name not in only_rounds}
        if isinstance(policy := raw.get("policy"), dict):
            raw["policy"] = {name: value for name, value in policy.items() if name != "instruction"}
    return parse_alignment(apply_overrides(raw, overrides))


def parse_config(raw: dict[str, Any]) -> Config:
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
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no configuration at {path}{_near_file(Path(path))}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: no path at all
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{str(path)!r:.200} cannot be opened: {reason}") from None
    try:
        raw = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} should hold settings by name (run, articles, policy, …), and holds {_shown(raw)}")
    return raw


class _Loader(yaml.SafeLoader):
    """YAML without tags that make objects, and without a name given twice, of which YAML takes the last in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_MOST = 100_000  # values in one file, each counted as often as an alias repeats it


def parse_yaml(text: str) -> Any:
    """What YAML text says. Raises ValueError: it is none, or says more than any settings need; in one line."""
    try:
        value = yaml.load(text, _Loader)
        if _size(value, {}) > _MOST:
            raise ValueError(f"it holds more than {_MOST:,} values, of anchors within anchors or of data")
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        tab = " (indent with spaces)" if "'\\t'" in str(error.problem) else ""
        raise ValueError(f"{where}{error.problem}{tab}") from None
    except yaml.YAMLError as error:
        raise ValueError(one_line(error, limit=None).replace(' in "<unicode string>"', "")) from None
    except RecursionError:
        raise ValueError("its lists or sections lie too deep in one another") from None
    return value


def _size(value: Any, sizes: dict[int, int]) -> int:
    """How many values there are when every alias is written out; a value that holds itself raises RecursionError."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in sizes:
        inside = list(value.values()) if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_size(part, sizes) for part in inside)
    return sizes[id(value)]


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Put dotted overrides, such as `training.beta=0.05`, over settings that are in memory."""
    for override in overrides:
        _override(raw, override)
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise UserError(f"{override!r:.80} is no setting: write NAME=VALUE, such as training.beta=0.05")
    if len(name) > 200:
        raise UserError(f"{name[:60]!r}… is no setting's name: write NAME=VALUE, such as training.beta=0.05")
    *parents, leaf = name.split(".")
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise UserError(f"{name}: {parent} is a value ({_shown(section)}), not a section")
    try:
        section[leaf] = parse_yaml(value)
    except ValueError:
        raise UserError(f"{name}: {value!r:.80} is not a YAML value; quote it, as in {name}='\"…\"'") from None


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
        said = str(problem["ctx"]["error"])
        # Both judges are checked by one section's rules, which name the first.
        return re.sub(r"\bjudge\.", "second_judge.", said) if location[:1] == ["second_judge"] else said
    if problem["type"] == "invalid_key" or location[-1:] == ["[key]"]:
        where = ".".join(map(str, location[:-2])) or "the configuration"
        return f"{where} has the name {_shown(problem['input'])}: a name is text; put it in quotes"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    if problem["type"] in ("model_type", "dict_type"):
        message = "it should be a section of settings by name"
    elif problem["type"] == "string_type":
        message = "it should be text" + ("" if isinstance(problem["input"], dict | list) else "; put it in quotes")
    elif problem["type"] == "tuple_type":
        message = "it should be a list, such as [a, b]"
    return f"{name} is {_shown(problem['input'])}: {message}"


def _shown(value: Any) -> str:
    """A value as its person wrote it, or nearly, in 80 characters."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "empty"}[value]
    # Not repr: that of aliases within aliases is as long as they are meant to be.
    return str(value) if isinstance(value, date) else reprlib.repr(value)[:80]


def _near_file(path: Path) -> str:
    names = [str(p) for folder in {path.parent, Path("configs")} if folder.is_dir() for p in folder.glob("*.yaml")]
    return f"; there are {', '.join(sorted(names))}" if names else f" (looked from {os.getcwd()})"
