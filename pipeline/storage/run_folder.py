"""Reads and writes `config.yaml` in a run folder: the settings with which the run was last started.

The settings also tell which command made the folder. A folder holds the rounds of `rondo run` or the training of
`rondo train`, never both: their artifacts have the same names and different meanings. The artifacts are in `ledger.py`.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import yaml

from pipeline.config import Alignment, Config, UserError
from pipeline.config.loader import apply_overrides, parse_alignment, parse_config, parse_yaml
from pipeline.storage.ledger import Ledger

CONFIG = "config.yaml"
PROGRESS = "progress.json"  # what the run is doing, for `rondo view`
TRACKERS = "trackers.json"  # what the trackers of `report_to` took; `evaluation/report/tracked.py` writes it
CHAMPION = "champion.json"  # the best policy of a run of rounds; `evaluation/champion.py` writes it
WORKERS = ".ray_train"  # where Ray Train notes that the training workers run
TEST = "test"  # the folder of the artifacts of the test articles
# By whether the settings are an `Alignment`.
_COMMAND = {True: "`rondo train`, on pairs from elsewhere", False: "`rondo run`, in rounds"}


def read_settings(ledger: Ledger, overrides: Sequence[str] = ()) -> Config | Alignment:
    """Read the settings with which a run was last started.

    Args:
        ledger: the run folder.
        overrides: settings that replace those of the file, such as `training.beta=0.05`.

    Raises:
        UserError: there is no run in the folder, or this version refuses its settings.
    """
    raw = read_raw_settings(ledger)
    if raw is None:
        raise UserError(f"{ledger.root} holds no run: it has no {CONFIG}")
    is_alignment = _is_alignment(raw)
    if is_alignment and isinstance(policy := raw.get("policy"), dict):
        policy.pop("instruction", None)  # earlier versions accepted and stored it, without any effect
    raw = apply_overrides(raw, overrides, Alignment if is_alignment else Config) | {"run": ledger.root}
    return parse_alignment(raw) if is_alignment else parse_config(raw)


def read_policy(ledger: Ledger) -> str:
    """The model that a run ended with, or has now: the champion of its rounds, or what it trained on pairs.

    Returns:
        the model's folder or URI, or a hub name if the champion is a base from the Hub.

    Raises:
        UserError: there is no run in the folder, or it has no policy yet.
    """
    raw = read_raw_settings(ledger)
    if raw is None:
        raise UserError(f"{ledger.root} holds no run: it has no {CONFIG}")
    if _is_alignment(raw):
        policy = ledger.find("policy")
        model = policy.record["model"] if policy else None
    else:
        champion = ledger.read(CHAMPION)
        model = json.loads(champion)["model"] if champion else None
    if not model:
        raise UserError(f"{ledger.root} has no trained policy yet: finish it with {_COMMAND[_is_alignment(raw)]}")
    return str(model)


def check_command(ledger: Ledger, settings: Config | Alignment) -> None:
    """Raise UserError if the other command (`rondo run` or `rondo train`) made the folder.

    Args:
        ledger: the run folder.
        settings: the settings of the command that is about to use it.
    """
    raw, is_alignment = read_raw_settings(ledger), isinstance(settings, Alignment)
    if raw is not None and _is_alignment(raw) != is_alignment:
        suggestion = f"{ledger.root}-{'train' if is_alignment else 'rounds'}"
        raise UserError(
            f"{ledger.root} was made by {_COMMAND[not is_alignment]}: choose another folder, such as run={suggestion}"
        )


def write_settings(ledger: Ledger, settings: Config | Alignment) -> None:
    """Write config.yaml.

    Call it only after the settings were accepted, because `rondo status` uses them as the settings of the run.
    """
    ledger.write(CONFIG, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def read_raw_settings(ledger: Ledger) -> dict[str, Any] | None:
    """Read config.yaml without checking the settings. None if there is no file. Raises UserError if it is damaged."""
    text = ledger.read(CONFIG)
    if text is None:
        return None
    try:
        raw = parse_yaml(text)
    except ValueError:
        raw = None
    if not isinstance(raw, dict):
        raise UserError(f"{ledger.root}/{CONFIG} is damaged: remove it, and repeat the command that made the folder")
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
