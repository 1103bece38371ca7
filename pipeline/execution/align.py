"""Trains a model on preference pairs made elsewhere: `rondo train`, and `align` from Python.

It uses the same ledger, references and trainer as a round. So an interrupted training resumes, a finished training is
reused, and a changed setting is refused with a message that shows the change.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from pipeline.config import Alignment, UserError
from pipeline.config.loader import parse_alignment
from pipeline.execution.dry_run import DryRun
from pipeline.execution.executor import Executor
from pipeline.execution.preflight import check_gpu_memory, check_trained_model, open_run_folder
from pipeline.execution.progress import Display
from pipeline.execution.ray_cluster import gpu_memory_here
from pipeline.execution.recipe import fingerprint
from pipeline.stages import external_pairs
from pipeline.stages.external_pairs import FirstPair, collect_pairs
from pipeline.stages.policy import register_base, train_policy
from pipeline.stages.references import reference_logprobs
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.model_files import hub
from pipeline.storage.model_files.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapted_layers, lora_settings
from pipeline.storage.run_folder import CONFIG, read_policy
from pipeline.training import tracking

_MERGEKIT_CONFIG = "mergekit_config.yml"  # mergekit writes its own configuration beside the weights


def train_on_pairs(run: Executor) -> tuple[Artifact, Artifact]:
    """Walk the page of a training: the artifacts, and the inputs of each.

    Returns:
        the table of pairs, and the trained policy.
    """
    base = run.produce(register_base, into="base")
    pairs = run.produce(collect_pairs, base)
    references = run.produce(reference_logprobs, pairs, base)
    policy = run.produce(train_policy, references, base)
    return pairs, policy


@dataclass(frozen=True)
class Aligned:
    """A policy that was trained on pairs.

    Attributes:
        path: the folder or URI of the trained model, in the format of Hugging Face.
        metrics: metrics of the whole training: see `training.metrics.summary`. The metrics of each step are in
            `path`/metrics.jsonl.
        pairs: counts from the record of the table of pairs: `in`, `kept`, `skipped` and `tally`.
    """

    path: str
    metrics: dict[str, Any]
    pairs: dict[str, Any]


def run_alignment(settings: Alignment, display: Display, remake: str | None = None) -> Aligned:
    """Check everything, hold the run folder, start Ray, and make what is missing.

    Args:
        remake: the address of an artifact to make again: base/policy, pairs, references or policy.

    Raises:
        UserError: a model or a file is missing or cannot be used, the model does not fit into GPU memory, or the folder
            is in use or was made with other settings.
    """
    fingerprint.cache_clear()  # in a notebook a file may have changed since the last call
    check_trained_model(settings)
    tracking.check_trackers(settings.report_to)
    check_gpu_memory(settings, gpu_memory_here())
    first = external_pairs.check_pairs(
        settings.pairs, settings.policy.model, settings.policy.max_model_len, settings.policy.merge_system
    )
    ledger = open_run_folder(settings)
    dry_run = DryRun(settings, ledger, remake)
    train_on_pairs(dry_run)
    _tell_columns(first, settings.pairs, display)
    from pipeline.execution.runner import open_run

    title = f"{ledger.root}: {settings.policy.model} on {settings.pairs}"
    with open_run(settings, ledger, display, dry_run, title) as runner:
        pairs, policy = train_on_pairs(runner)
    counts = {name: pairs.record[name] for name in ("in", "kept", "skipped", "tally")}
    return Aligned(policy.record["model"], policy.record["training"], counts)


def _tell_columns(first: FirstPair, pairs: str, display: Display) -> None:
    """Say where the prompts are, and which columns are not read."""
    tell = display.warn if first.is_guessed else display.say
    tell(f"{pairs}: {first.describe()}")
    if first.columns.suspects:
        names = ", ".join(first.columns.suspects)
        display.warn(f"{pairs}: not read, and may have a part of the prompt: {names}; if so, put it into the prompt")


def align(
    model: str | PathLike[str] | None = None,
    pairs: str | PathLike[str] | Iterable[Mapping[str, Any]] | None = None,
    *,
    merged: str | PathLike[str] | None = None,
    aligned: str | PathLike[str] | None = None,
    adapter: str | PathLike[str] | None = None,
    loss: str | Sequence[str] = "sigmoid",
    out: str | PathLike[str] | None = None,
    seed: int = 0,
    policy: Mapping[str, Any] | None = None,
    references: Mapping[str, Any] | None = None,
    hardware: Mapping[str, Any] | None = None,
    max_skipped: float = 0.5,
    remake: str | None = None,
    **training: Any,
) -> Aligned:
    """Train a model on preference pairs.

    The same call resumes an interrupted training, and returns the result of a finished one.

        align("my-model", pairs="pairs.jsonl", loss="sigmoid", beta=0.1, policy={"dtype": "float32"})
        align(aligned="runs/first", pairs="more-pairs.jsonl")

    Training starts from exactly one of `model`, `merged`, `aligned` and `adapter`, which is the reference too.

    Args:
        model: Hugging Face folder, URI or hub name.
        merged: folder that mergekit wrote.
        aligned: folder or URI of an earlier run. Training starts from its champion, or from what it trained on pairs.
        adapter: folder or hub name of a LoRA adapter, which is trained further. `lora` has its settings by default. The
            same holds if `aligned` ended with an adapter.
        pairs: a file by path or URI, `hf:OWNER/NAME[/CONFIG][:SPLIT]`, or rows in memory (a list of dicts, a
            `datasets.Dataset`, a table of pandas, pyarrow or polars). `data/preference_formats.py` lists the known
            columns.
        loss: `training.loss_type`: one loss, or several to add up.
        out: folder or URI of the run, where the model is written as `policy/`; None: runs/NAME-aligned.
        seed: seed of the order of the pairs.
        policy: more settings of the section `policy`, by name.
        references: settings of the section `references`.
        hardware: settings of the section `hardware`.
        max_skipped: the share of rows that may be unusable.
        remake: as for `run_alignment`.
        **training: any setting of `config.training.Training` by name, such as beta or learning_rate.

    Raises:
        UserError: as `run_alignment`; or an unknown name, a wrong type, or settings that do not fit together; or none
            or several of the four starts, or one that is not what its name says.
    """
    starts = {"model": model, "merged": merged, "aligned": aligned, "adapter": adapter}
    kind, start = _only_start({name: fspath(value) for name, value in starts.items() if value is not None})
    if pairs is None:
        raise UserError("pairs is missing: give a file, hf:OWNER/NAME, or rows in memory")
    policy_model = _find_start(kind, start)
    if kind in ("aligned", "adapter"):
        lora = _adapter_settings(policy_model)
        if kind == "adapter" and lora is None:
            raise UserError(f"adapter is {start!r}, which has no {ADAPTER_CONFIG}: use model= for a complete model")
        training = {"lora": lora, **training}
    run = fspath(out) if out is not None else f"runs/{Path(start).name}-aligned"
    raw = {
        "run": run,
        "seed": seed,
        "pairs": fspath(pairs) if isinstance(pairs, str | PathLike) else "(in memory)",
        "max_skipped": max_skipped,
        "policy": {"model": policy_model, **(policy or {})},
        "references": dict(references or {}),
        "training": {"loss_type": loss, **training},
        "hardware": dict(hardware or {}),
    }
    settings = parse_alignment(raw)
    if not isinstance(pairs, str | PathLike):
        ledger = open_run_folder(settings)  # checked first: a folder that is refused must stay as it is
        settings = settings.model_copy(update={"pairs": _save_rows(pairs, ledger)})
    return run_alignment(settings, Display(), remake)


def _only_start(starts: Mapping[str, str]) -> tuple[str, str]:
    """The one start that is given: its name among the arguments of `align`, and its value."""
    if len(starts) != 1:
        found = " and ".join(f"{name}={value!r}" for name, value in starts.items()) or "none"
        raise UserError(
            f"align starts from one of model, merged, aligned and adapter, and got {found}: give one of them"
        )
    return next(iter(starts.items()))


def _find_start(kind: str, start: str) -> str:
    """The model to start from. Raises UserError if `start` is not of this kind."""
    folder = Path(start)
    if kind == "aligned":
        return read_policy(Ledger(start))
    if kind == "merged" and not (folder / _MERGEKIT_CONFIG).is_file():
        raise UserError(
            f"merged is {start!r}, which has no {_MERGEKIT_CONFIG}: give the folder that mergekit wrote, or use model= "
            "for any other model"
        )
    if kind == "model" and (folder / CONFIG).is_file() and not (folder / "config.json").is_file():
        raise UserError(f"model is {start!r}, the folder of a run: use aligned={start!r} to start from its policy")
    return start


def _adapter_settings(model: str) -> dict[str, Any] | None:
    """The `training.lora` that describes an adapter; None for a complete model. Raises UserError for no model."""
    hub.check_model("policy.model", model)
    folder = hub.fetch(model)
    config = hub.adapter_config(folder)
    if config is None:
        return None
    from safetensors import safe_open

    with safe_open(Path(folder, ADAPTER_WEIGHTS), framework="numpy") as tensors:
        layers = sorted(adapted_layers(tensors.keys()))
    return lora_settings(config) | {"target_modules": layers}


def _save_rows(rows: Iterable[Mapping[str, Any]], ledger: Ledger) -> str:
    """Save rows from memory in the run folder, so that they can be read later. Returns the file's location.

    The file is named by a hash of its contents. So other rows make another file, and the change is detected.
    """
    text = "".join(f"{_to_json(row)}\n" for row in _to_rows(rows))
    name = f"given-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:12]}.jsonl"
    if ledger.read(name) is None:
        ledger.write(name, text)
    return f"{ledger.root}/{name}"


def _to_rows(rows: Any) -> Iterator[Mapping[str, Any]]:
    """The rows of a list of dicts, a `datasets.Dataset`, or a table of pandas, pyarrow or polars."""
    if isinstance(rows, Mapping):
        raise UserError("pairs is one dict: give a list of dicts, one for each pair")
    if hasattr(rows, "itertuples"):
        rows = rows.to_dict("records")
    elif method := getattr(rows, "to_pylist", None) or getattr(rows, "to_dicts", None):
        rows = method()
    for row in rows:
        if not hasattr(row, "items"):
            raise UserError(f"pairs has a row that is a {type(row).__name__}: give dicts, one for each pair")
        yield row


def _to_json(row: Mapping[str, Any]) -> str:
    columns = (
        f"{json.dumps(str(name), ensure_ascii=False)}: "
        f"{json.dumps(value, ensure_ascii=False, default=partial(_to_plain_value, name))}"
        for name, value in row.items()
    )
    return f"{{{', '.join(columns)}}}"


def _to_plain_value(column: Any, value: Any) -> Any:
    """Convert a value that JSON cannot hold. Other types are refused: their repr would become part of the training."""
    if hasattr(value, "tolist"):  # pandas gives a list of messages as an array of dicts
        return value.tolist()
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas' empty values
        return None
    if isinstance(value, date):
        return value.isoformat()
    raise UserError(
        f"pairs has a {type(value).__name__} in the column {column}: give text, numbers, lists or dicts, or leave the "
        "column out"
    )
