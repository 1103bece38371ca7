"""Reads settings from a YAML file and dotted overrides (`training.beta=0.05`), and checks them before Ray starts.

An error message has one line per mistake, and names settings as the user writes them. For an unknown name it suggests
the nearest known one. The settings are defined in `run.py`.
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

from pipeline.config.judging import JudgeSettings
from pipeline.config.messages import UserError, one_line
from pipeline.config.run import Alignment, Config

SettingsType = TypeVar("SettingsType", Config, Alignment)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check the settings of a run.

    Args:
        path: the YAML file.
        overrides: settings that replace those of the file, such as `training.beta=0.05`. Each value is read as YAML.

    Raises:
        UserError: the file is missing or is not YAML, or settings have unknown names, wrong types or impossible
            combinations. The message has one line per mistake.
    """
    raw = _read_yaml(path)
    if isinstance(raw.get("pairs"), str):
        raise UserError(f"{path} has its own pairs ({raw['pairs']}): use it with `rondo train`, which has no rounds")
    return parse_config(apply_overrides(raw, overrides))


def load_alignment(path: str | Path, overrides: Sequence[str] = ()) -> Alignment:
    """Read and check the settings of a training on pairs from elsewhere. Arguments and errors as in `load_config`.

    The file may also be that of a whole run. Settings that only rounds use are then ignored: among them
    policy.instruction and the section `pairs`, which controls how scores become pairs. Overrides must name settings
    that a training on pairs has.
    """
    raw = _read_yaml(path)
    if not isinstance(raw.get("pairs"), str):
        round_settings = Config.model_fields.keys() - Alignment.model_fields.keys() | {"pairs"}
        raw = {name: value for name, value in raw.items() if name not in round_settings}
        if isinstance(policy := raw.get("policy"), dict):
            raw["policy"] = {name: value for name, value in policy.items() if name != "instruction"}
    return parse_alignment(apply_overrides(raw, overrides))


def parse_config(raw: dict[str, Any]) -> Config:
    """Check settings that are already in memory. Raises UserError as `load_config` does."""
    return _validate(Config, raw)


def parse_alignment(raw: dict[str, Any]) -> Alignment:
    """Check settings that are already in memory. Raises UserError as `load_alignment` does."""
    return _validate(Alignment, raw)


def _validate(model: type[SettingsType], raw: dict[str, Any]) -> SettingsType:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(_describe_error(problem, model) for problem in error.errors())) from None


def _read_yaml(path: str | Path) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no configuration at {path}{_suggest_files(Path(path))}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: not a possible path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{str(path)!r:.200} cannot be opened: {reason}") from None
    try:
        raw = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} should hold settings by name (run, articles, policy, …), and holds {_shorten(raw)}")
    return raw


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses tags that create objects, and names that occur twice.

    PyYAML alone would silently use the last value of such a name.
    """

    # lm-format-enforcer, which vLLM imports, turns dates into text in PyYAML's own SafeLoader for the whole process.
    yaml_constructors = yaml.SafeLoader.yaml_constructors | {
        "tag:yaml.org,2002:timestamp": yaml.SafeLoader.construct_yaml_timestamp
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in names:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} occurs twice", key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


_MAX_VALUES = 100_000  # in one file; a value that an alias repeats counts each time


def parse_yaml(text: str) -> Any:
    """Parse YAML.

    Raises:
        ValueError: the text is not YAML, or holds more values than settings can need. The message is one line.
    """
    try:
        value = yaml.load(text, _Loader)
        if _count_values(value, {}) > _MAX_VALUES:
            raise ValueError(f"it holds more than {_MAX_VALUES:,} values: nested anchors, or data instead of settings")
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        remedy = " (indent with spaces)" if "'\\t'" in str(error.problem) else ""
        raise ValueError(f"{line}{error.problem}{remedy}") from None
    except yaml.YAMLError as error:
        raise ValueError(one_line(error, limit=None).replace(' in "<unicode string>"', "")) from None
    except RecursionError:
        raise ValueError("its lists or sections are nested too deep") from None
    return value


def _count_values(value: Any, counts: dict[int, int]) -> int:
    """Count the values in a value, with every alias written out. A value that contains itself raises RecursionError.

    Args:
        value: a parsed YAML value.
        counts: counts of the values that were visited already, by their `id`.
    """
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in counts:
        children = list(value.values()) if isinstance(value, dict) else value
        counts[id(value)] = 1 + sum(_count_values(child, counts) for child in children)
    return counts[id(value)]


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply dotted overrides, such as `training.beta=0.05`, to settings in memory, which are changed in place.

    Raises:
        UserError: an override is malformed.
    """
    for override in overrides:
        _apply_override(raw, override)
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise UserError(f"{override!r:.80} is not a setting: write NAME=VALUE, such as training.beta=0.05")
    if len(name) > 200:
        raise UserError(f"{name[:60]!r}… is not the name of a setting: write NAME=VALUE, such as training.beta=0.05")
    *parents, leaf = name.split(".")
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise UserError(f"{name}: {parent} is a value ({_shorten(section)}), not a section")
    try:
        section[leaf] = parse_yaml(value)
    except ValueError:
        raise UserError(f"{name}: {value!r:.80} is not a YAML value; quote it, as in {name}='\"…\"'") from None


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


def _describe_error(problem: Any, model: type[BaseModel]) -> str:
    """Describe a pydantic error in one line, in the user's terms."""
    location = [part for part in problem["loc"] if isinstance(part, str | int)]
    name = ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        section = ".".join(map(str, location[:-1])) or "the configuration"
        known = list(_section_model(location[:-1], model).model_fields)
        close_names = difflib.get_close_matches(str(location[-1]), known, 1)
        hint = f" (did you mean {close_names[0]}?)" if close_names else ""
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
        return f"{section} has the name {_shorten(problem['input'])}: a name is text; put it in quotes"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    if problem["type"] in ("model_type", "dict_type"):
        message = "it should be a section of settings by name"
    elif problem["type"] == "string_type":
        message = "it should be text" + ("" if isinstance(problem["input"], dict | list) else "; put it in quotes")
    elif problem["type"] == "tuple_type":
        message = "it should be a list, such as [a, b]"
    return f"{name} is {_shorten(problem['input'])}: {message}"


def _shorten(value: Any) -> str:
    """A value in at most 80 characters, close to the form in which the user wrote it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "empty"}[value]
    # Not repr, which would write out nested aliases in full length.
    return str(value) if isinstance(value, date) else reprlib.repr(value)[:80]


def _suggest_files(path: Path) -> str:
    names = [str(p) for folder in {path.parent, Path("configs")} if folder.is_dir() for p in folder.glob("*.yaml")]
    return f"; there are {', '.join(sorted(names))}" if names else f" (the working directory is {os.getcwd()})"
