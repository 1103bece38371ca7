"""Metrics of training to where people look at them: TensorBoard, Weights & Biases, MLflow, as `report_to` asks.

On the driver, from the lines that also go to `metrics.jsonl`, by TRL's names. Each tool is installed by whoever wants
it; its key and address come from its own environment variables. Left out: what is measured (`dpo/metrics.py`).
"""

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from pipeline.config import UserError

Log = Callable[[int, dict[str, float]], None]  # step, values by name

# What each needs to be importable, and how people get it.
_NEEDS = {
    "tensorboard": ("tensorboard", "pip install tensorboard"),
    "wandb": ("wandb", "pip install wandb"),
    "mlflow": ("mlflow", "pip install mlflow-skinny"),
}


def check_trackers(report_to: Sequence[str]) -> None:
    """Raise UserError where something that is asked for is not installed."""
    for name in report_to:
        module, how = _NEEDS[name]
        if importlib.util.find_spec(module) is None:
            raise UserError(f"report_to has {name}, which is not installed here: {how}, or leave it out")


@contextmanager
def open_trackers(report_to: Sequence[str], run: str, address: str, settings: dict[str, Any]) -> Iterator[Log]:
    """Something to give each line of metrics to, while the block runs.

    Args:
        report_to: names of tools.
        run: the run's folder or URI; its last part is the project.
        address: of the artifact that is trained, such as round-01/policy.
        settings: of the training, kept beside the curves where the tool has a place for them.
    """
    project = run.rstrip("/").rsplit("/", 1)[-1]
    with ExitStack() as stack:
        logs = {name: stack.enter_context(_TOOLS[name](run, project, address, settings)) for name in report_to}

        def log(step: int, values: dict[str, float]) -> None:
            for name, one in list(logs.items()):
                try:
                    one(step, values)
                except Exception as error:  # a server that is away must not cost the training that it watches
                    del logs[name]
                    warnings.warn(f"{name} took no metrics at step {step} ({error}): no more go there", stacklevel=1)

        yield log


@contextmanager
def _tensorboard(run: str, project: str, address: str, settings: dict[str, Any]) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(f"{run}/tensorboard/{address}") as writer:

        def log(step: int, values: dict[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        yield log


@contextmanager
def _wandb(run: str, project: str, address: str, settings: dict[str, Any]) -> Iterator[Log]:
    import wandb

    with wandb.init(project=project, name=address, config=settings) as session:
        yield lambda step, values: session.log(values, step=step)


@contextmanager
def _mlflow(run: str, project: str, address: str, settings: dict[str, Any]) -> Iterator[Log]:
    import mlflow

    mlflow.set_experiment(project)
    with mlflow.start_run(run_name=address):
        mlflow.log_params({name: str(value) for name, value in settings.items()})
        yield lambda step, values: mlflow.log_metrics(values, step=step)


_TOOLS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
