"""What a run's folder says of itself: config.yaml, the settings it was last started with, and so which kind it is.

A folder holds the rounds of `rondo run` or the training of `rondo train`, and never both: their artifacts have the
same names and mean different things. Left out: the artifacts (`ledger.py`).
"""

import re
from collections.abc import Sequence
from typing import Any

import yaml

from pipeline.config import Alignment, Config, UserError
from pipeline.config.loader import apply_overrides, parse_alignment, parse_config, parse_yaml
from pipeline.storage.ledger import Ledger

CONFIG = "config.yaml"
_COMMAND = {True: "`rondo train`, on pairs from elsewhere", False: "`rondo run`, in rounds"}


def read_settings(ledger: Ledger, overrides: Sequence[str] = ()) -> Config | Alignment:
    """The settings that a folder was last started with, and overrides on top.

    Raises:
        UserError: there is no run, or settings that this version refuses.
    """
    raw = read_raw_settings(ledger)
    if raw is None:
        raise UserError(f"{ledger.root} holds no run: there is no {CONFIG} in it")
    own = _is_alignment(raw)
    if own and isinstance(policy := raw.get("policy"), dict):
        policy.pop("instruction", None)  # which earlier versions took, and kept, to no effect
    raw = apply_overrides(raw, overrides) | {"run": ledger.root}
    return parse_alignment(raw) if own else parse_config(raw)


def check_command(ledger: Ledger, given: Config | Alignment) -> None:
    """Raise UserError if the folder holds what the other command made."""
    raw, own = read_raw_settings(ledger), isinstance(given, Alignment)
    if raw is not None and _is_alignment(raw) != own:
        raise UserError(
            f"{ledger.root} was made by {_COMMAND[not own]}: give this a folder of its own, run={ledger.root}-"
            f"{'train' if own else 'rounds'} for instance"
        )


def write_settings(ledger: Ledger, given: Config | Alignment) -> None:
    """Write config.yaml. Not before the settings are accepted: it is what `rondo status` takes for the run's."""
    ledger.write(CONFIG, yaml.safe_dump(given.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def read_raw_settings(ledger: Ledger) -> dict[str, Any] | None:
    """Read config.yaml as it is, unchecked. None where there is none. Raises UserError if it is damaged."""
    text = ledger.read(CONFIG)
    if text is None:
        return None
    try:
        raw = parse_yaml(text)
    except ValueError:
        raw = None
    if not isinstance(raw, dict):
        raise UserError(f"{ledger.root}/{CONFIG} is damaged: remove it, and run the command again that made the folder")
    return raw


def _is_alignment(raw: dict[str, Any]) -> bool:
    return isinstance(raw.get("pairs"), str)


def round_folder(number: int) -> str:
    """The folder of a round's artifacts in a run, such as `round-02`. Round 0 is the base policy."""
    return f"round-{number:02d}"


def round_number(folder: str) -> int | None:
    """The number of the round whose artifacts are in `folder`; None if it is not the folder of a round."""
    match = re.fullmatch(r"round-(\d+)", folder)
    return int(match[1]) if match else None
