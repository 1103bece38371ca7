"""The stage `policy`: registers the base policy, takes a model at a server, or trains the next policy with DPO.

The writer of a round's summaries and the starting weights of its training are one artifact, so no configuration makes a
round off-policy. The reference is the same artifact too, unless the settings say that it is the base. The training
itself is in `training/`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.config import UserError
from pipeline.config.servers import ComparedModel
from pipeline.config.training import References, Training
from pipeline.stages.base import Stage, stage
from pipeline.storage.ledger import Artifact
from pipeline.storage.model_files.hub import fetch, locate
from pipeline.training.tracking import Log

if TYPE_CHECKING:
    from pipeline.training.ray_job.driver import TrainingWorkers


@stage("policy", version=1, settings=("policy.model",), contents=("policy.model",))
def register_base(*, model: str) -> dict[str, Any]:
    """Register the base policy. Nothing is copied: the record names the model and the digest of its weights.

    Raises:
        UserError: the folder has no weights that can be used.
    """
    from pipeline.training.modeling.loading import weights_digest

    try:
        return {"model": model, "digest": weights_digest(fetch(model))}
    except ValueError as error:
        raise UserError(f"policy.model is {model!r}: {error}") from None


def external_policy(name: str) -> Stage:
    """The stage that registers `compare.NAME`, a model at a server. It is judged like a policy, but never trained."""
    return Stage("policy", partial(_register_served_model, name), version=1, settings=(f"compare.{name}",))


def _register_served_model(name: str, **settings: ComparedModel) -> dict[str, Any]:
    return {"model": settings[name].model, "served": settings[name].model_dump()}


@stage(
    "policy",
    version=2,
    inputs=("rows", "policy", "reference?"),
    settings=("training", "references", "policy.dtype", "seed"),
    uses=("trainer", "folder", "progress", "logging"),
    resumes=True,
    workload="training",
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
    trainer: "TrainingWorkers",
    folder: str,
    progress: Callable[[dict[str, Any]], None],
    logging: Callable[[dict[str, Any]], AbstractContextManager[Log]],
) -> dict[str, Any]:
    """Train `policy` on the pairs of `rows`, and write the trained model to `folder`.

    After an interruption the training resumes from the last checkpoint in `folder`. Checkpoints stay there until the
    artifact has its record.

    Args:
        rows: articles with pairs and reference log-probabilities.
        policy: the policy to train.
        reference: the policy whose log-probabilities `rows` has; None: `policy` itself.
        trainer: the workers that train.
        progress: called with each line of metrics.
        logging: opens the trackers (TensorBoard, W&B, MLflow), given the training's settings.

    Raises:
        UserError: the rows or the model cannot be used for training, or the training failed repeatedly.
    """
    from pipeline.training.modeling.loading import weights_digest
    from pipeline.training.ray_job import driver

    settings = training.model_dump() | {"dtype": dtype, "seed": seed, "references": references.model_dump()}
    try:
        with logging(settings) as log:
            result = driver.run_training(
                trainer,
                rows_path=rows.uri,
                rows_parts=rows.record["parts"],
                model_path=locate(policy.record["model"]),
                out_path=folder,
                settings=settings,
                checkpoint_path=f"{folder}/checkpoints",
                reference_path=locate(reference.record["model"]) if reference else None,
                reference_digest=None if references.source == "none" else (reference or policy).record["digest"],
                on_progress=partial(_report_line, progress, log),
            )
    except ValueError as error:
        raise UserError(f"training: {error}") from error
    except driver.TRAINING_ERRORS as error:
        raise UserError(
            f"training failed, and again after {driver.RETRIES} new starts: {_describe_failure(error)}"
        ) from error
    fetch.cache_clear()  # a remote folder may have been fetched earlier, with other weights in it
    return {"model": folder, "digest": weights_digest(fetch(folder)), "training": result}


def _describe_failure(error: Exception) -> str:
    """The last line of the error, with a remedy if memory ran out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    if "out of memory" in str(error).lower():
        reason += (
            "\nLower hardware.trainer.tokens_per_batch, set gradient_checkpointing, or use more workers. An article is "
            "never cut: if one with its summaries is longer than tokens_per_batch, leave it out, or lower summaries.n"
        )
    return reason


def _report_line(progress: Callable[[dict[str, Any]], None], log: Log, line: dict[str, Any]) -> None:
    progress(line)
    log(line["step"], {name: float(value) for name, value in line.items() if name not in ("step", "steps")})
