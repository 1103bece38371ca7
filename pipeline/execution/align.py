"""Training on preference pairs from elsewhere, on one page: `rondo train`, and from Python `align`.

The same ledger, references and trainer as in a round, so that a training that was cut off goes on, one that is there
is reused, and a changed setting is refused with the difference. Left out: what a round adds, which is to make the pairs
(`round.py`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from pipeline.config import Alignment, UserError
from pipeline.config.loader import parse_alignment
from pipeline.execution.dry_run import DryRun
from pipeline.execution.progress import Display
from pipeline.execution.recipe import fingerprint
from pipeline.execution.runner import Runner
from pipeline.stages import external_pairs
from pipeline.stages.external_pairs import collect_pairs
from pipeline.stages.policy import register_base, train_policy
from pipeline.stages.references import reference_logprobs
from pipeline.storage import run_folder
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.model_files import hub
from pipeline.training import tracking


def train_on_pairs(run: DryRun) -> tuple[Artifact, Artifact]:
    """The page: what is made, and of what. Gives the table of pairs, and the policy that learned from it."""
    base = run.produce(register_base, into="base")
    pairs = run.produce(collect_pairs, base)
    references = run.produce(reference_logprobs, pairs, base)
    policy = run.produce(train_policy, references, base)
    return pairs, policy


@dataclass(frozen=True)
class Aligned:
    """A policy that learned from pairs.

    Attributes:
        path: of the trained model, a Hugging Face folder (or its URI).
        metrics: of the training; see `dpo/metrics.summary`. Each step's are in `path`/metrics.jsonl.
        pairs: counts of the table of pairs: rows of the file by what became of them, pairs, prompts.
    """

    path: str
    metrics: dict[str, Any]
    pairs: dict[str, Any]


def run_alignment(settings: Alignment, display: Display, remake: str | None = None) -> Aligned:
    """Check everything, take the folder's lock, start Ray, and make what is not there yet.

    Args:
        remake: address of what is to be made again although it is there: base/policy, pairs, references or policy.

    Raises:
        UserError: a model or a file that is not there or cannot be used, a folder in use or made by other settings.
    """
    fingerprint.cache_clear()  # a notebook may have changed a file since it last called
    hub.check_model("policy.model", settings.policy.model)
    hub.check_lora(settings.policy.model, settings.training.lora)
    tracking.check_trackers(settings.report_to)
    external_pairs.check_pairs(settings.pairs, settings.policy.model)
    book = Ledger(settings.run)
    run_folder.check_command(book, settings)
    survey = DryRun(settings, book, remake)
    train_on_pairs(survey)
    to_remake = survey.to_remake()
    with book.lock(display.warn):
        run_folder.write_settings(book, settings)
        display.say(f"{book.root}: {settings.policy.model} on {settings.pairs}", style="bold")
        from pipeline.execution.ray_cluster import connected_ray

        ray = connected_ray(settings.hardware) if survey.unmade else nullcontext(settings.hardware)
        with book.remaking(to_remake), ray as hardware:
            pairs, policy = train_on_pairs(
                Runner(settings.model_copy(update={"hardware": hardware}), book, display, remake)
            )
    counts = {name: pairs.record[name] for name in ("in", "kept", "skipped", "tally")}
    return Aligned(policy.record["model"], policy.record["training"], counts)


def align(
    model: str | PathLike[str],
    pairs: str | PathLike[str] | Iterable[Mapping[str, Any]],
    *,
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

    The same call goes on where one was cut off, and gives what is there where one was finished.

        align("my-model", pairs="pairs.jsonl", loss="sigmoid", beta=0.1, policy={"dtype": "float32"})

    Args:
        model: Hugging Face folder, URI or name on the hub; it is the reference too.
        pairs: a file by path or URI, `hf:OWNER/NAME[/CONFIG][:SPLIT]`, or rows in memory (a list of dicts, a
            `datasets.Dataset`); `formats.py` says which columns are known.
        loss: `training.loss_type`: one loss, or several to add up.
        out: folder or URI of the run, which gets the model as `policy/`; None: runs/NAME-aligned.
        seed: of the order of the pairs.
        policy, references, hardware: further settings of these sections of the configuration, by name.
        max_skipped: share of the rows that may be unusable.
        remake: as of `carry_out`.
        **training: any setting of `learning.Training` by its name, such as beta or learning_rate.

    Raises:
        UserError: as `carry_out`; an unknown name, a wrong type, an impossible combination of settings.
    """
    run = fspath(out) if out is not None else f"runs/{Path(fspath(model)).name}-aligned"
    raw = {
        "run": run,
        "seed": seed,
        "pairs": fspath(pairs) if isinstance(pairs, str | PathLike) else "(in memory)",
        "max_skipped": max_skipped,
        "policy": {"model": fspath(model), **(policy or {})},
        "references": dict(references or {}),
        "training": {"loss_type": loss, **training},
        "hardware": dict(hardware or {}),
    }
    settings = parse_alignment(raw)
    if not isinstance(pairs, str | PathLike):
        book = Ledger(run)
        run_folder.check_command(book, settings)  # a folder that is refused is left as it is
        settings = settings.model_copy(update={"pairs": _write(pairs, book)})
    return run_alignment(settings, Display(), remake)


def _write(rows: Iterable[Mapping[str, Any]], book: Ledger) -> str:
    """Keep rows given in memory in the run's folder, so that what was learned from can be looked at and found again.

    Named by its contents: other rows are another file, and a drift that the ledger sees.
    """
    text = "".join(f"{_line(row)}\n" for row in rows)
    name = f"given-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:12]}.jsonl"
    if book.read(name) is None:
        book.write(name, text)
    return f"{book.root}/{name}"


def _line(row: Mapping[str, Any]) -> str:
    columns = (
        f"{json.dumps(str(name), ensure_ascii=False)}: "
        f"{json.dumps(value, ensure_ascii=False, default=partial(_plain, name))}"
        for name, value in row.items()
    )
    return f"{{{', '.join(columns)}}}"


def _plain(column: Any, value: Any) -> Any:
    """What JSON has no word for, in words that it has. Never its repr, which would be learned from."""
    if hasattr(value, "tolist"):  # of pandas a list of messages comes as an array of dicts
        return value.tolist()
    if isinstance(value, date):
        return value.isoformat()
    raise UserError(
        f"pairs has a {type(value).__name__} in the column {column}: give text, numbers, lists or dicts, or leave the "
        "column out"
    )
