"""Applies settings from the command line (`training.beta=0.05`) to settings in memory.

The type of a setting decides how its value is read. Text is taken as it is, so a `#`, a colon or a word such as `yes`
has no meaning in it. Numbers, lists and sections are read as YAML. The whole value counts: a comment is refused.
"""

import re
import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from pipeline.config.loader.errors import shorten
from pipeline.config.loader.yaml_values import YamlLoader, parse_yaml
from pipeline.config.messages import UserError
from pipeline.config.run import Config

_NULLS = ("", "~", "null", "Null", "NULL")
_TYPED_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "timestamp")}
# Numbers of YAML 1.1 that nobody means: 010 is 8, and 1:30 is 90.
_ODD_NUMBER = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9_]+(:[0-9_.]+)+")
_FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")  # YAML 1.1 reads 1e-5 as text


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str], model: type[BaseModel] = Config) -> dict[str, Any]:
    """Apply dotted overrides to settings in memory, which are changed in place.

    Args:
        raw: the settings, as YAML gives them.
        overrides: such as `training.beta=0.05`.
        model: the class of the settings, which gives the types.

    Raises:
        UserError: an override is malformed.
    """
    for override in overrides:
        _apply_override(raw, override, model)
    return raw


def _apply_override(raw: dict[str, Any], override: str, model: type[BaseModel]) -> None:
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
            raise UserError(f"{name}: {parent} is a value ({shorten(section)}), not a section")
    try:
        section[leaf] = _read_value(value, _types_of(name.split("."), model))
    except _Comment:
        raise UserError(
            f"{name}: {value!r:.80} has a comment, which YAML leaves out: remove it, or put a text with # in quotes, "
            f"as in {name}='\"…\"'"
        ) from None
    except (ValueError, yaml.YAMLError):
        raise UserError(f"{name}: {value!r:.80} is not a YAML value; quote it, as in {name}='\"…\"'") from None


class _Comment(ValueError):
    """A value has a comment in it."""


def _types_of(names: Sequence[str], model: type[BaseModel]) -> set[Any]:
    """The types that a setting may have, such as {str, NoneType}; empty if they are unknown."""
    alternatives: set[Any] = {model}
    for name in names:
        inner: set[Any] = set()
        for alternative in alternatives:
            if get_origin(alternative) is dict:  # a section whose names the user chooses, such as hardware.servers
                inner |= _alternatives(get_args(alternative)[1])
            elif field := getattr(alternative, "model_fields", {}).get(name):
                inner |= _alternatives(field.annotation)
        alternatives = inner
    return alternatives - {Any}


def _alternatives(annotation: Any) -> set[Any]:
    """The members of a union, without metadata. A choice of texts is text."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return {inner for member in get_args(annotation) for inner in _alternatives(member)}
    if origin is Literal:
        return {type(value) for value in get_args(annotation)}
    return {annotation}


def _read_value(text: str, alternatives: set[Any]) -> Any:
    opening = text.lstrip()[:1]
    if str in alternatives:
        if type(None) in alternatives and text in _NULLS:
            return None
        items = [get_args(alternative)[0] for alternative in alternatives if get_origin(alternative) in (tuple, list)]
        # A text may begin with a bracket, which neither an object follows nor the closing bracket.
        is_list = bool(items) and re.match(r"\s*\[" if str in items else r"\s*\[\s*(\{|\]\s*$)", text) is not None
        return _read_yaml(text) if is_list or _is_quoted(text) else text
    is_nested = any(alternative not in (int, float, bool, type(None)) for alternative in alternatives)
    if is_nested or opening in ("[", "{") or _is_quoted(text):
        return _read_yaml(text)
    return _read_plain(text, has_type=bool(alternatives))


def _is_quoted(text: str) -> bool:
    """Whether a text is one value in quotes, and nothing else, for YAML."""
    if text[:1] not in ("'", '"') or text[-1:] != text[:1]:
        return False
    try:
        node = yaml.compose(text, YamlLoader)
    except yaml.YAMLError:
        return False
    return isinstance(node, yaml.ScalarNode) and node.style == text[0] and node.end_mark.index == len(text)


def _read_yaml(text: str) -> Any:
    """Parse YAML in which every character counts. Raises _Comment if it has a comment, ValueError if it is no YAML."""
    value = parse_yaml(text)
    position = 0
    for token in yaml.scan(text, YamlLoader):
        if "#" in text[position : token.start_mark.index]:
            raise _Comment
        position = max(position, token.end_mark.index)
    return value


def _read_plain(text: str, has_type: bool) -> Any:
    """Read a number, true, false, null or a date as YAML does; anything else is text, as it is.

    Args:
        text: the value.
        has_type: whether pydantic knows the setting's type, and so reads a number that YAML calls text.
    """
    loader = YamlLoader("")
    tag = loader.resolve(yaml.ScalarNode, text.strip(), (True, False))
    if tag in _TYPED_TAGS and not _ODD_NUMBER.fullmatch(text.strip()):
        return loader.construct_object(yaml.ScalarNode(tag, text.strip()))
    if not has_type and _FLOAT.fullmatch(text.strip()):
        return float(text)
    return text
