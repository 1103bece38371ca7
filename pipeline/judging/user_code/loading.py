"""Loads the user's own code: the function or class that a setting names as `module:name`.

The module may also be in the current folder. Its file is part of the recipe (`execution/recipe.py`).
"""

import importlib
import importlib.util
import os
import re
import sys
from typing import Any

from pipeline.config import UserError
from pipeline.config.judging import USER_CODE


def load_user_code(setting: str, name: str, what: str) -> Any:
    """Import the module in `module:name`, and return the function or class.

    The module may exist on this machine only, so Ray workers get its functions and classes by value.

    Args:
        setting: the setting that names the code, such as `pairs.preference`.
        name: the value of the setting, `module:name`.
        what: "function" or "class": what `name` should be.

    Raises:
        UserError: the module cannot be imported, or has no such function or class.
    """
    module_name, _, attribute = name.partition(":")
    _search_current_folder()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's module, which may raise anything
        raise UserError(
            f"{setting} is {name!r}, and {module_name} cannot be imported from {os.getcwd()}: "
            f"{type(error).__name__}: {error}"
        ) from None
    loaded = getattr(module, attribute, None)
    if not (isinstance(loaded, type) if what == "class" else callable(loaded)):
        place = getattr(module, "__file__", None) or module_name
        raise UserError(f"{setting} is {name!r}, and {place} has no {what} {attribute}")
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(module)
    return loaded


def is_user_code(name: str) -> bool:
    """Return whether a setting's value is `module:name`."""
    return re.fullmatch(USER_CODE, name) is not None


def source_file(name: str) -> str | None:
    """Return the file of the module in `module:name`; None if it has no file."""
    _search_current_folder()
    try:
        spec = importlib.util.find_spec(name.partition(":")[0])
    except (ImportError, ValueError):
        return None
    return spec.origin if spec else None


def _search_current_folder() -> None:
    """Let imports find modules in the current folder: an installed `rondo` command does not look there by itself."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
