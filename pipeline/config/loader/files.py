"""Reads the settings of a run, or of a training on pairs, from a YAML file, and checks them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.config.loader.current_folder import check_current_folder
from pipeline.config.loader.errors import describe_error, shorten
from pipeline.config.loader.overrides import apply_overrides
from pipeline.config.loader.yaml_values import parse_yaml
from pipeline.config.messages import UserError
from pipeline.config.run import Alignment, Config

SettingsType = TypeVar("SettingsType", Config, Alignment)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check the settings of a run.

    Args:
        path: the YAML file.
        overrides: settings that replace those of the file, such as `training.beta=0.05`. See
            `overrides.py` for how a value is read.

    Raises:
        UserError: the file is missing or is not YAML, settings have unknown names, wrong types or impossible
            combinations, or a relative path exists beside the file and not in the current folder. The message has one
            line per mistake.
    """
    raw = _read_yaml(path)
    if isinstance(raw.get("pairs"), str):
        raise UserError(f"{path} has its own pairs ({raw['pairs']}): use it with `rondo train`, which has no rounds")
    settings = parse_config(apply_overrides(raw, overrides))
    check_current_folder(settings, path, overrides)
    return settings


def combine_config(source: str | os.PathLike[str] | Config | Mapping[str, Any] | None, **changes: Any) -> Config:
    """Make the settings of a run from Python: those of a file, of a `Config` or of a dict, with changes.

    Args:
        source: the YAML file, the settings, or None if `changes` has all of them.
        changes: settings by name, such as `rounds=2`; a dict changes the named settings of its section, such as
            `training={"beta": 0.05}`.

    Raises:
        UserError: as `load_config`.
    """
    if isinstance(source, Config):
        return _validate(Config, _merge(source.model_dump(mode="json"), changes)) if changes else source
    if source is None or isinstance(source, Mapping):
        return parse_config(_merge(source or {}, changes))
    settings = parse_config(_merge(_read_yaml(source), changes))
    check_current_folder(settings, Path(source), ())
    return settings


def _merge(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for name, value in changes.items():
        both_are_sections = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], value) if both_are_sections else value
    return merged


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
    settings = parse_alignment(apply_overrides(raw, overrides, Alignment))
    check_current_folder(settings, path, overrides)
    return settings


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
        raise UserError("\n".join(describe_error(problem, model) for problem in error.errors())) from None


def _read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
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
        raise UserError(f"{path} should hold settings by name (run, articles, policy, …), and holds {shorten(raw)}")
    return raw


def _suggest_files(path: Path) -> str:
    names = [str(p) for folder in {path.parent, Path("configs")} if folder.is_dir() for p in folder.glob("*.yaml")]
    return f"; there are {', '.join(sorted(names))}" if names else f" (the working directory is {os.getcwd()})"
