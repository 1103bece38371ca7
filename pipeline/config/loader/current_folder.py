"""Refuses a configuration whose relative paths exist beside its file, and not in the current folder.

Relative paths begin in the current folder. A file that is given from elsewhere would otherwise be searched in the wrong
place, or a run would begin again in another folder.
"""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.config.judging import PREFERENCES
from pipeline.config.messages import UserError
from pipeline.config.run import Alignment, Config


def check_current_folder(settings: Config | Alignment, file: str | Path, overrides: Sequence[str]) -> None:
    """Check the relative paths and the modules of the user's code that a configuration names.

    They are looked for in the file's folder and in the one above it. Settings of the command line are not checked.

    Args:
        settings: the settings.
        file: the configuration that they come from.
        overrides: the settings that were given on the command line.

    Raises:
        UserError: some exist there, and not in the current folder. The message has a line for each.
    """
    folders = Path(os.path.abspath(file)).parents[:2]
    given = [override.partition("=")[0] for override in overrides]
    problems = []
    for name, value, path, remedy in _relative_paths(settings):
        is_given = any(f"{name}.".startswith(f"{setting}.") for setting in given)
        folder = next((folder for folder in folders if _exists(folder / path)), None)
        if folder is not None and not is_given and not _exists(Path(path)):
            problems.append(
                f"{name} is {value!r}: relative paths begin in the current folder, and {os.path.abspath(path)} does "
                f"not exist, but {folder / path} does: run the command in {folder}, or "
                f"{remedy.format(folder=folder, path=folder / path)}"
            )
    if problems:
        raise UserError("\n".join(problems))


def _relative_paths(settings: Config | Alignment) -> Iterator[tuple[str, str, str, str]]:
    """The name of each setting with a relative path, its value, the path, and what else the user can do."""
    for name, location in settings.locations.items():
        if "://" not in location and not location.startswith("hf:") and not os.path.isabs(location):
            yield name, location, location, f"set {name}={{path}}"
    for name, code in _user_code(settings):
        module = code.partition(":")[0].partition(".")[0]
        if not _is_installed(module):
            for path in (f"{module}.py", module):
                yield name, code, path, "set PYTHONPATH={folder}"


def _user_code(settings: Config | Alignment) -> Iterator[tuple[str, str]]:
    """The name and the value of each setting that is the user's own `module:name`."""
    if isinstance(settings, Alignment):
        return
    if settings.pairs.preference not in PREFERENCES:
        yield "pairs.preference", settings.pairs.preference
    for name, judge in settings.judges.items():
        if judge.is_user_class:
            yield f"{name}.kind", judge.kind
        if judge.function:
            yield f"{name}.settings.function", judge.function


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _exists(path: Path) -> bool:
    return os.path.lexists(path)  # unlike Path.exists, it accepts a name that no file can have
