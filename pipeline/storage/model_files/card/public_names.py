"""Names models and data for readers elsewhere: hub names stay, and of a path or a URI only the last part is told.

Model cards and shared files use these names, so that no folder, user or host of this machine leaves it.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import Alignment, Config
from pipeline.storage.ledger import Ledger

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/\w+/?$")  # where huggingface_hub keeps a model
# An absolute path of two parts or more, or a URI that is no web page. Not a part of a longer word, such as and/or.
_PATH = re.compile(
    r"(?<![\w.:/~-])~?(?:/[\w.@+~-]+){2,}/?"
    r"|\b(?!https?://|hf://)[a-z][a-z0-9+.-]*://[^\s`'\"<>()|,;]+"
)


@dataclass(frozen=True)
class PublicNames:
    """Tells local places from hub names, and what to call them.

    Attributes:
        local: locations that are known to be on this machine or in private storage, whatever they look like.
        renamed: hub names that the user gives for locations, by location.
    """

    local: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)

    def is_local(self, location: str) -> bool:
        """Whether a location is a path or a URI, which nobody else can open."""
        if location in self.renamed or location.startswith("hf:") or _HUB_CACHE.search(location):
            return False
        return location in self.local or not _HUB_NAME.fullmatch(location) or os.path.exists(location)

    def name(self, location: str) -> str:
        """A hub name as it is; the last part of anything else.

        >>> PublicNames().name("/home/ann/models/small"), PublicNames().name("owner/small")
        ('small', 'owner/small')
        """
        if renamed := self.renamed.get(location):
            return renamed
        if cached := _HUB_CACHE.search(location):
            return f"{cached[1]}/{cached[2]}"
        return _last_part(location) if self.is_local(location) else location

    def hide(self, text: str) -> str:
        """Replace the known local locations in a text, and whatever else looks like a path, by their last parts."""
        known = {*self.local, *self.renamed}
        for location in sorted(known, key=len, reverse=True):
            if "/" in location:
                text = text.replace(location, self.name(location))
        return _PATH.sub(lambda match: self.name(match[0]), text)

    def hide_in(self, value: Any) -> Any:
        """A value of a JSON file, at any depth, with a name in place of each text that is nothing but a location."""
        if isinstance(value, Mapping):
            return {key: self.hide_in(part) for key, part in value.items()}
        if isinstance(value, list):
            return [self.hide_in(part) for part in value]
        is_location = isinstance(value, str) and (
            value in self.local or value in self.renamed or _PATH.fullmatch(value)
        )
        return self.name(value) if is_location else value


def _last_part(location: str) -> str:
    return location.rstrip("/").rpartition("/")[2] or "a folder"


def public_names(ledger: Ledger, settings: Config | Alignment, renamed: Mapping[str, str] | None = None) -> PublicNames:
    """The names for a run's models and data.

    Args:
        ledger: the run folder. Its recipes tell a relative path from a hub name: they have a fingerprint of each file.
        settings: the settings of the run.
        renamed: hub names that the user gives for locations, by location.
    """
    locations = settings.locations
    local = {
        locations[name]
        for recipe in (artifact.record["recipe"] for artifact in ledger.artifacts())
        for name in _fingerprinted(recipe.get("contents", {}))
        if name in locations
    }
    plain = PublicNames()
    local |= {location for location in locations.values() if plain.is_local(location)} | {ledger.root}
    local |= {os.path.abspath(location) for location in local if "://" not in location}
    return PublicNames(frozenset(local), renamed or {})


def _fingerprinted(contents: Mapping[str, Any]) -> Iterator[str]:
    """The settings whose files have a fingerprint, by dotted names; `judge.members` holds those of its members."""
    for name, value in contents.items():
        if isinstance(value, Mapping):
            yield from (f"{name}.{inner}" for inner in _fingerprinted(value))
        elif value is not None:
            yield name
