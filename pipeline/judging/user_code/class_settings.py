"""Checks `judge.settings` against the constructor of the user's class, whose keyword arguments are its settings."""

import inspect
import types
from collections.abc import Collection, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.config import UserError
from pipeline.config.messages import did_you_mean

# The keyword arguments that every judge gets, and the setting of each. `logprobs` goes only to a class that takes it.
_COMMON = {"questions": "judge.questions", "options": "judge.options", "seed": "seed", "logprobs": "judge.logprobs"}


def constructor_arguments(
    cls: type, kind: str, common: Mapping[str, Any], own: Mapping[str, Any], section: str, optional: Collection[str]
) -> dict[str, Any]:
    """Return the keyword arguments for the constructor of a judge's class.

    Args:
        cls: the judge's class.
        kind: the class's name as `module:Class`, for messages.
        common: values of the settings that every judge has, by the names in `_COMMON`.
        own: the values in `judge.settings`, which only this class has.
        section: `judge` or `second_judge`, for messages.
        optional: names in `common` that the class need not take. `logprobs` is only optional if it is false.

    Raises:
        UserError: the class does not take a common argument, or its own settings do not fit: an unknown name, a
            missing one, or a value that is not of the annotated type.
    """
    try:
        parameters = dict(inspect.signature(cls).parameters)
    except (TypeError, ValueError):  # the constructor is not written in Python
        parameters = {}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    needed = [name for name in common if name not in optional or name in named or (name == "logprobs" and common[name])]
    if not takes_any and (refused := [name for name in needed if name not in named]):
        cause = f", and {section}.logprobs is true" if "logprobs" in refused else ""
        raise UserError(
            f"{section}.kind is {kind}, whose constructor does not take {', '.join(refused)}{cause}: a judge takes the "
            f"keyword arguments {', '.join(needed)}, and then settings of its own"
        )
    settings = {name: parameter for name, parameter in named.items() if name not in _COMMON}
    _check_names(settings, own, section, takes_any)
    for name, parameter in settings.items():
        if parameter.default is parameter.empty and name not in own:
            raise UserError(f"{section}.settings.{name} is missing: {kind} has no default for it")
    annotations = _annotations(cls)
    for name, value in own.items():
        expected = annotations.get(name, Any)
        if not _fits(value, expected):
            raise UserError(f"{section}.settings.{name} is {value!r:.80}: it should be {_describe(expected)}")
    return {name: common[name] for name in needed} | dict(own)


def _check_names(
    settings: Mapping[str, inspect.Parameter], own: Mapping[str, Any], section: str, takes_any: bool
) -> None:
    for name in own:
        if name in _COMMON:
            raise UserError(
                f"{section}.settings has {name!r}: set {_COMMON[name].replace('judge.', f'{section}.')} instead"
            )
        if name not in settings and not takes_any:
            hint = did_you_mean(name, settings)
            raise UserError(f"{section}.settings has no {name!r}{hint}; it has {', '.join(settings) or 'none'}")


def _annotations(cls: type) -> dict[str, Any]:
    """Return the annotated types of the constructor's arguments; none if they cannot be resolved."""
    try:
        return get_type_hints(getattr(cls, "__init__"))  # noqa: B009
    except Exception:  # an annotation may be any expression
        return {}


def _fits(value: Any, expected: Any) -> bool:
    """Return whether a value is of a type: int, float, str, bool, list, dict, None, Literal, or a union of these.

    Any other type is not checked.
    """
    origin = get_origin(expected)
    if origin in (Union, types.UnionType):
        return any(_fits(value, member) for member in get_args(expected))
    if origin is Literal:
        return any(value == member and type(value) is type(member) for member in get_args(expected))
    if expected in (None, type(None)):
        return value is None
    if expected in (int, float):  # 3 is a valid float in YAML. For Python, true is an int: refuse it
        return isinstance(value, int | expected) and not isinstance(value, bool)
    if (origin or expected) in (str, bool, list, dict):
        return isinstance(value, origin or expected)
    return True


_WORDS = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list",
    dict: "settings by name", type(None): "null", None: "null",
}  # fmt: skip


def _describe(expected: Any) -> str:
    """Name a type that `_fits` checks, in the words of a settings file."""
    if get_origin(expected) in (Union, types.UnionType):
        return " or ".join(map(_describe, get_args(expected)))
    if get_origin(expected) is Literal:
        return " or ".join(map(repr, get_args(expected)))
    return _WORDS[get_origin(expected) or expected]
