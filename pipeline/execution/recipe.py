"""Makes recipes, which hold everything that a stage's result depends on, and compares them.

The recipe by the current settings is compared with the recipe in an artifact's record. If they are equal, the artifact
can be reused. Files and models are part of a recipe by fingerprints of their contents.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow.fs as pafs
from pydantic import BaseModel

from pipeline.config import Alignment, Config
from pipeline.judging.user_code.loading import is_user_code, source_file
from pipeline.stages.base import JUDGE_CONTENTS, Stage
from pipeline.storage.files import open_location
from pipeline.storage.ledger import Artifact
from pipeline.storage.model_files.card import CARD, is_own_card

_MIB = 1 << 20
# Settings that stop a run and change no row: raising one must not make anything stale.
_LIMITS = ("max_skipped", "max_unread", "min_same_winner", "check_articles", "max_difference")
_USER_CODE_SETTINGS = ("kind", "preference", "function")  # a built-in name, or a user's `module:name`
_ABSENT = object()

Kind = Literal["stage", "version", "settings", "contents", "inputs"]
Recipe = dict[str, Any]


def get_setting(config: Config | Alignment, name: str) -> Any:
    """A section or a value of the configuration, by its dotted name. None within a section that is None."""
    value: Any = config
    for part in name.split("."):
        if value is not None:
            value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def stage_recipe(stage: Stage, inputs: Sequence[Artifact], config: Config | Alignment) -> Recipe:
    """The recipe of a stage: everything that its result depends on.

    Inputs are named by their build ids, because making an artifact again does not give an equal artifact.
    """
    return {
        "stage": stage.name,
        "version": stage.version,
        "settings": {name: _recipe_value(get_setting(config, name)) for name in stage.settings},
        "contents": {name: _fingerprint_setting(name, get_setting(config, name)) for name in stage.contents},
        "inputs": {artifact.address: artifact.build for artifact in inputs},
    }


def _recipe_value(setting: Any) -> Any:
    value = setting.model_dump(mode="json") if isinstance(setting, BaseModel) else setting
    value = list(value) if isinstance(value, tuple) else value  # as a record has it
    return {name: part for name, part in value.items() if name not in _LIMITS} if isinstance(value, dict) else value


@dataclass(frozen=True)
class Change:
    """One difference between the recipe in a record and the current recipe.

    Attributes:
        kind: the part of the recipe.
        key: the name within that part, such as `pairs.threshold` or `round-01/scores`; empty for stage and version.
        was, now: the values; None if a recipe has no such value.
    """

    kind: Kind
    key: str
    was: Any
    now: Any

    @property
    def is_new_build(self) -> bool:
        """The same input was made again."""
        return self.kind == "inputs" and self.was is not None and self.now is not None

    @property
    def is_other_policy(self) -> bool:
        """A policy became an input, or is no longer one: the round starts from another round's policy."""
        return self.kind == "inputs" and self.key.endswith("policy") and (self.was is None or self.now is None)

    def __str__(self) -> str:
        name = f"{self.kind}.{self.key}" if self.key else self.kind
        return f"{name}: was {_shorten(self.was)}, now {_shorten(self.now)}"


def compare_recipes(was: Recipe, now: Recipe, config: Config | Alignment) -> list[Change]:
    """The changes from the recipe in a record to the current recipe.

    A new setting makes no existing run stale: a setting that the older recipe does not have is no change if it has its
    default value now. The same holds for a file that the older recipe does not name, if there is no such file now.

    Args:
        was: the recipe in the record.
        now: the current recipe.
        config: the current configuration, for the defaults.
    """
    return [
        change
        for kind in ("stage", "version", "settings", "contents", "inputs")
        for change in _differences(kind, was.get(kind, _ABSENT), now.get(kind, _ABSENT), "", config)
    ]


def _differences(kind: Any, was: Any, now: Any, key: str, config: Config | Alignment) -> Iterator[Change]:
    if isinstance(was, dict) and isinstance(now, dict):
        for name in [*was, *(name for name in now if name not in was)]:
            inner = f"{key}.{name}" if key else str(name)
            yield from _differences(kind, was.get(name, _ABSENT), now.get(name, _ABSENT), inner, config)
        return
    if was is _ABSENT and _is_default(kind, key, now, config):
        return
    was, now = (None if value is _ABSENT else value for value in (was, now))
    if was != now:
        yield Change(kind, key, was, now)


def _is_default(kind: Kind, key: str, value: Any, config: Config | Alignment) -> bool:
    """Whether a part of a recipe has the same meaning as a recipe without that part."""
    if kind == "contents":
        return value is None
    if kind != "settings":
        return False
    section, _, name = key.rpartition(".")
    model = get_setting(config, section) if section else config
    field = type(model).model_fields.get(name) if isinstance(model, BaseModel) else None
    return (
        field is not None
        and not field.is_required()
        and _recipe_value(field.get_default(call_default_factory=True)) == value
    )


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:28]} … {text[-28:]}"


def _fingerprint_setting(name: str, value: Any) -> Any:
    """Hash the contents that a setting refers to: a file, a model, or the module of a user's judge or preference.

    For the members of a jury it is a section with the hashes of each member that has any; None if there are none.
    """
    if isinstance(value, dict):
        parts = {
            member: {part: _fingerprint_setting(part, getattr(settings, part)) for part in JUDGE_CONTENTS}
            for member, settings in value.items()
        }
        return {member: hashes for member, hashes in parts.items() if any(hashes.values())} or None
    is_code = name.rpartition(".")[2] in _USER_CODE_SETTINGS
    return fingerprint_user_code(value) if is_code else fingerprint(value)


def fingerprint_user_code(name: str | None) -> str | None:
    """Hash the module of a user's `module:function` or `module:Class`. None for a built-in name."""
    return fingerprint(source_file(name)) if name and is_user_code(name) else None


@functools.cache
def fingerprint(location: str | None) -> str | None:
    """Hash the contents of a file or a folder.

    The hash is cheap: it covers the size, and the first and the last MiB of each file, so that a 100 GB model costs
    only a few reads. `training/modeling/loading.weights_digest` reads every byte. Records and Rondo's own cards do not
    change what a model does, so they are left out.

    Returns:
        16 hexadecimal digits; None if there is no location or no file, and for a hub name.
    """
    if location is None or location.startswith("hf:"):
        return None
    fs, path = open_location(location)
    info = fs.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        return None
    files = [info] if info.type == pafs.FileType.File else fs.get_file_info(pafs.FileSelector(path))
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.base_name):
        if file.type == pafs.FileType.File and file.base_name != "record.json":
            with fs.open_input_file(file.path) as stream:
                head = stream.read(_MIB)
                if file.base_name == CARD and is_own_card(head):
                    continue
                digest.update(f"{file.base_name} {file.size}\n".encode())
                digest.update(head)
                stream.seek(max(0, file.size - _MIB))
                digest.update(stream.read(_MIB))
            if file.base_name == "adapter_config.json":  # an adapter depends on its base
                digest.update(f"{fingerprint(json.loads(head).get('base_model_name_or_path'))}\n".encode())
    return digest.hexdigest()[:16]
