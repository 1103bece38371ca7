"""Keeps what a task measured on a model: a folder with `documents.jsonl` and `record.json`, which is written last.

The folders are `benchmark/MODEL/TASK`. A finished result is used again if nothing that decides it has changed.
"""

import json
import time
import uuid
from dataclasses import dataclass
from typing import Any

from pipeline.config import UserError
from pipeline.evaluation.benchmark.models import Subject
from pipeline.storage.ledger import Artifact, Ledger, utc_now
from pipeline.storage.provenance import git_commit, package_versions

FOLDER = "benchmark"
_DOCUMENTS = "documents.jsonl"

Values = dict[str, list[Any]]  # by metric: what each document contributes


@dataclass(frozen=True)
class Result:
    """A finished result.

    Attributes:
        subject: the model.
        artifact: its folder with the record.
        documents: a digest of each document, in order.
        values: by metric, what each document contributes.
    """

    subject: Subject
    artifact: Artifact
    documents: list[str]
    values: Values


def result_recipe(subject: Subject, task: str, definition: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What decides a result.

    Args:
        task: the name of the task.
        definition: what decides the task's documents and prompts.
        settings: options of the command that change a result.
    """
    contents = {"model": subject.digest, task: definition}
    return {"stage": FOLDER, "version": 1, "settings": settings, "contents": contents, "inputs": {}}


def result_address(subject: Subject, task: str) -> str:
    return f"{FOLDER}/{subject.slot}/{task}"


def find_result(ledger: Ledger, subject: Subject, task: str, recipe: dict[str, Any]) -> Result | None:
    """The finished result of this recipe; None if there is none, or it has another recipe or lost its documents."""
    artifact = ledger.find(result_address(subject, task))
    text = ledger.read(f"{artifact.address}/{_DOCUMENTS}") if artifact else None
    if artifact is None or text is None or artifact.record["recipe"] != recipe:
        return None
    rows = [json.loads(line) for line in text.splitlines()]
    values = {metric: [row["values"][metric] for row in rows] for metric in artifact.record["metrics"]}
    return Result(subject, artifact, [row["document"] for row in rows], values)


def write_result(
    ledger: Ledger,
    subject: Subject,
    task: str,
    recipe: dict[str, Any],
    documents: list[str],
    values: Values,
    figures: dict[str, float],
    started: float,
    **details: Any,
) -> Result:
    """Write a result, in place of an older one.

    Args:
        documents, values: see `Result`.
        figures: the figure of each metric.
        started: when the task began, by `time.monotonic`.
        details: more fields of the record.

    Raises:
        UserError: another driver has taken the folder over, or it cannot be written.
    """
    address = result_address(subject, task)
    ledger.clear(address)
    rows = [
        {"document": document, "values": {metric: values[metric][i] for metric in figures}}
        for i, document in enumerate(documents)
    ]
    lines = (json.dumps(row, ensure_ascii=False, default=float) + "\n" for row in rows)
    ledger.write(f"{address}/{_DOCUMENTS}", "".join(lines))
    record = {
        "build": uuid.uuid4().hex[:12],
        "recipe": recipe,
        "model": subject.model,
        "documents": len(documents),
        "metrics": figures,
        **details,
        "made": utc_now(),
        "seconds": round(time.monotonic() - started, 2),
        "packages": package_versions(),
        "commit": git_commit(),
    }
    return Result(subject, ledger.finish(address, record), documents, values)


def check_same_documents(base: Result, other: Result) -> None:
    """Raise UserError if two results are about different documents, so that nothing can be paired."""
    if base.documents != other.documents:
        raise UserError(
            f"{base.artifact.address} and {other.artifact.address} are about different documents: remove both folders"
        )
