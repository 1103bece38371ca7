"""Sends training metrics to TensorBoard, Weights & Biases and MLflow, as the setting `report_to` asks.

It runs on the driver and sends the lines that also go to `metrics.jsonl`, under TRL's names. Users install the trackers
that they want; each tracker reads its key and address from its own environment variables. The metrics are computed in
`metrics.py`.
"""

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from pipeline.config import UserError

Log = Callable[[int, dict[str, float]], None]  # takes the step, and the values by name

# Of each tracker: the module that it needs, and how to install it.
_REQUIREMENTS = {
    "tensorboard": ("tensorboard", "pip install tensorboard"),
    "wandb": ("wandb", "pip install wandb"),
    "mlflow": ("mlflow", "pip install mlflow-skinny"),
}


def check_trackers(report_to: Sequence[str]) -> None:
    """Raise UserError if a tracker in `report_to` is not installed."""
    for name in report_to:
        module, install_command = _REQUIREMENTS[name]
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"report_to has {name}, which is not installed here: {install_command}, or leave {name} out"
            )


@contextmanager
def open_trackers(report_to: Sequence[str], run: str, address: str, settings: dict[str, Any]) -> Iterator[Log]:
    """While the block runs, give a function that sends metrics to all trackers.

    A tracker that raises an error is dropped with a warning; training goes on.

    Args:
        report_to: names of trackers.
        run: the run's folder or URI; its last part is the tracker's project.
        address: address of the artifact that is trained, such as round-01/policy.
        settings: settings of the training, stored with the curves if the tracker can store them.
    """
    project = run.rstrip("/").rsplit("/", 1)[-1]
    with ExitStack() as stack:
        logs = {name: stack.enter_context(_TRACKERS[name](run, project, address, settings)) for name in report_to}

        def log(step: int, values: dict[str, float]) -> None:
            for name, log_to_tracker in list(logs.items()):
                try:
                    log_to_tracker(step, values)
                except Exception as error:  # a tracker's server may be down, and that must not stop the training
                    del logs[name]
                    warnings.warn(
                        f"{name} took no metrics at step {step} ({error}): no more metrics are sent to it", stacklevel=1
                    )

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


_TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
