"""Policies: the base is adopted as it is; each round trains the one it starts from into the next with DPO.

Writer and starting weights are one artifact, so a round cannot be off-policy by configuration; and so is the reference,
unless the settings say that it is the base. Left out: how a step is taken (`dpo/`).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from pipeline.config import UserError
from pipeline.config.hardware import TrainerHardware
from pipeline.config.servers import ComparedModel
from pipeline.config.training import References, Training
from pipeline.stages.base import Stage, stage
from pipeline.storage.ledger import Artifact
from pipeline.storage.model_files.hub import fetch, locate
from pipeline.training.tracking import Log


@stage("policy", version=1, settings=("policy.model",), contents=("policy.model",))
def register_base(*, model: str) -> dict[str, Any]:
    """The base policy: nothing is copied, its weights are named by their digest.

    Raises:
        UserError: a folder without weights that can be used.
    """
    from pipeline.training.modeling.loading import weights_digest

    try:
        return {"model": model, "digest": weights_digest(fetch(model))}
    except ValueError as error:
        raise UserError(f"policy.model is {model!r}: {error}") from None


def external_policy(name: str) -> Stage:
    """The stage that takes a model at a server, `compare.NAME`, for a policy: to be judged, never to be trained."""
    return Stage("policy", partial(_hired, name), version=1, settings=(f"compare.{name}",))


def _hired(name: str, **settings: ComparedModel) -> dict[str, Any]:
    return {"model": settings[name].model, "served": settings[name].model_dump()}


@stage(
    "policy",
    version=2,
    settings=("training", "references", "policy.dtype", "seed"),
    uses=("trainer", "folder", "progress", "logging"),
    resumes=True,
)
def train_policy(
    rows: Artifact,
    policy: Artifact,
    reference: Artifact | None = None,
    *,
    training: Training,
    references: References,
    dtype: str,
    seed: int,
    trainer: TrainerHardware,
    folder: str,
    progress: Callable[[dict[str, Any]], None],
    logging: Callable[[dict[str, Any]], AbstractContextManager[Log]],
) -> dict[str, Any]:
    """Train `policy` on the pairs of `rows`, and write it to `folder`.

    Cut off, it goes on from the last checkpoint in `folder`, which stay until there is a record.

    Args:
        reference: whose log-probabilities `rows` has; None: those of `policy` itself.
    """
    from pipeline.training import ray_job
    from pipeline.training.modeling.loading import weights_digest

    settings = training.model_dump() | {"dtype": dtype, "seed": seed, "references": references.model_dump()}
    try:
        with logging(settings) as log:
            result = ray_job.run_training(
                rows_path=rows.uri,
                rows_parts=rows.record["parts"],
                model_path=locate(policy.record["model"]),
                out_path=folder,
                settings=settings,
                hardware=trainer,
                checkpoint_path=f"{folder}/checkpoints",
                reference_path=locate(reference.record["model"]) if reference else None,
                reference_digest=None if references.source == "none" else (reference or policy).record["digest"],
                on_progress=partial(_tell, progress, log),
            )
    except ValueError as error:
        raise UserError(f"training: {error}") from error
    except ray_job.TRAINING_ERRORS as error:
        raise UserError(f"training failed, and again after {ray_job.RETRIES} new starts: {_reason(error)}") from error
    fetch.cache_clear()  # a folder elsewhere may have been fetched before, with other weights in it
    return {"model": folder, "digest": weights_digest(fetch(folder)), "training": result}


def _reason(error: Exception) -> str:
    """The last line of what went wrong, and what to do about the commonest."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    if "out of memory" in str(error).lower():
        reason += "\nLower hardware.trainer.tokens_per_batch, set gradient_checkpointing, or use more workers"
    return reason


def _tell(progress: Callable[[dict[str, Any]], None], log: Log, line: dict[str, Any]) -> None:
    progress(line)
    log(line["step"], {name: float(value) for name, value in line.items() if name not in ("step", "steps")})
