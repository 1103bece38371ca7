"""Policies: the base is adopted as it is; each round trains the one before into the next with DPO.

Writer, reference and starting weights are one artifact, so a round cannot be off-policy by configuration. Left out:
how a step is taken (`dpo/`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config import Training, UserError
from pipeline.hardware import Trainer
from pipeline.ledger import Artifact, local_copy, remove
from pipeline.stage import stage


@stage("policy", version=1, settings=("policy.model",))
def adopt(*, model: str) -> dict[str, Any]:
    """The base policy: nothing is copied, its weights are named by their digest.

    Raises:
        UserError: no such model.
    """
    from pipeline.dpo.weights import digest

    folder = resolve_model("policy.model", model)
    try:
        return {"model": model, "digest": digest(folder)}
    except ValueError as error:
        raise UserError(f"policy.model is {model!r}: {error}") from None


def resolve_model(setting: str, name: str) -> str:
    """The local folder of a model named by path, or by its name on the Hugging Face hub (fetched if need be).

    Raises:
        UserError: neither.
    """
    if Path(name, "config.json").is_file():
        return name
    if Path(name).exists():
        raise UserError(
            f"{setting} is {name!r}, a path without a config.json: it should be a Hugging Face model folder"
        )
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"{setting} is {name!r}: there is no such folder, and it is no name on the hub (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"])
    except Exception as error:  # offline, gated, misspelt: a dozen classes, one meaning
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{setting} is {name!r}: no such folder, and the hub did not give it ({reason})") from None


@stage("policy", version=1, settings=("training", "policy.dtype", "seed"), uses=("trainer", "folder", "progress"))
def train(
    references: Artifact,
    policy: Artifact,
    *,
    training: Training,
    dtype: str,
    seed: int,
    trainer: Trainer,
    folder: str,
    progress: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Train `policy` on the pairs of `references`, whose log-probabilities are its own; write it to `folder`."""
    from pipeline.dpo import worker
    from pipeline.dpo.weights import digest

    checkpoints = f"{folder}/checkpoints"
    try:
        result = worker.train(
            rows_path=references.uri,
            model_path=policy.record["model"],
            out_path=folder,
            settings=training.model_dump() | {"dtype": dtype, "seed": seed},
            workers=trainer.workers,
            gpus_per_worker=trainer.gpus_per_worker,
            cpus_per_worker=trainer.cpus_per_worker,
            tokens_per_batch=trainer.tokens_per_batch,
            checkpoint_path=checkpoints,
            reference_digest=policy.record["digest"],
            on_progress=progress,
        )
    except ValueError as error:
        raise UserError(f"training: {error}") from error
    remove(checkpoints)  # thrice the weights, and of no use to a policy that is finished
    return {"model": folder, "digest": digest(local_copy(folder)), "training": result}
