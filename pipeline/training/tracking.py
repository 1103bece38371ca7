"""Sends figures, tables and files to TensorBoard, Weights & Biases and MLflow, as the setting `report_to` asks.

It runs on the driver. Each tracker has a thread of its own, so one that is slow or unreachable does not hold up a run:
it is dropped with one warning. Users install the trackers that they want; each tracker reads its key and address from
its own environment variables. The metrics of training are computed in `metrics.py`, and what a run of rounds sends
beside them in `evaluation/report/tracked.py`.
"""

import importlib.util
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any

from pipeline.config import UserError
from pipeline.config.messages import one_line, redact

Log = Callable[[int, dict[str, float]], None]  # takes the step, and the values by name

# Of each tracker: the module that it needs, and how to install it.
_REQUIREMENTS = {
    "tensorboard": ("tensorboard", "pip install tensorboard"),
    "wandb": ("wandb", "pip install wandb"),
    "mlflow": ("mlflow", "pip install mlflow-skinny"),
}
_PATIENCE = 30.0  # seconds that a run waits, at its end or that of a training, for a tracker to take the rest

_USER_INFO = re.compile(r"://[^/@\s]*@")  # name and password in an address

_dropped: set[str] = set()  # trackers that failed since `check_trackers`, which every command calls first


def check_trackers(report_to: Sequence[str]) -> None:
    """Raise UserError if a tracker in `report_to` is not installed, or wants a key that is not there."""
    _dropped.clear()
    for name in report_to:
        module, install_command = _REQUIREMENTS[name]
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"report_to has {name}, which is not installed here: {install_command}, or leave {name} out"
            )
    if "wandb" in report_to:
        _check_wandb_key()


def _check_wandb_key() -> None:
    import wandb

    try:
        wandb.login(verify=False)  # asks for the key on a terminal, and does not ask the server
    except Exception as error:
        raise UserError(
            f"report_to has wandb, which has no usable API key here ({one_line(error)}): run `wandb login`, or set "
            "WANDB_API_KEY or WANDB_MODE=offline"
        ) from None


@dataclass(frozen=True)
class TrackerRun:
    """What W&B and MLflow call a run: all that one process sends under one name.

    Attributes:
        folder: folder or URI of the run of Rondo; its last part is the tracker's project.
        name: the name, such as round-01/policy.
        settings: settings to store with it, if the tracker can.
        axis: what the steps count, if they may repeat or go back; None: training steps.
        id: the tracker's id of this run, if an earlier process began it; None: a new run.
    """

    folder: str
    name: str
    settings: Mapping[str, Any]
    axis: str | None = None
    id: str | None = None

    @property
    def project(self) -> str:
        return self.folder.rstrip("/").rsplit("/", 1)[-1]


class Tracker:
    """An open run in a tracker. This one takes nothing; those of each library take what the library can show.

    Attributes:
        id: the tracker's id of the run; None: it has none.
    """

    id: str | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log figures by name."""

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Log a table of at least one row; all rows have the same columns."""

    def log_files(self, name: str, texts: Mapping[str, str]) -> None:
        """Log text files by name; W&B keeps them as versions of the artifact `name`."""


class Sender:
    """Hands calls to one tracker, in order, in a thread of its own.

    Args:
        tracker: its name.
        run: the run to open there.
        warn: shows one line if the tracker fails.
    """

    def __init__(self, tracker: str, run: TrackerRun, warn: Callable[[str], None]):
        self.tracker, self.warn = tracker, warn
        self._calls: SimpleQueue[Callable[[Tracker], None] | None] = SimpleQueue()
        # A daemon: a tracker that hangs must not keep the process alive.
        self._thread = Thread(target=self._work, args=(run,), name=f"to {tracker}", daemon=True)
        self._thread.start()

    def send(self, call: Callable[[Tracker], None]) -> None:
        """Have `call` made with the tracker, unless it was dropped."""
        if self.tracker not in _dropped:
            self._calls.put(call)

    def close(self, deadline: float) -> None:
        """Wait until the tracker has taken everything, or until `deadline` of `time.monotonic`; then it is dropped."""
        self._calls.put(None)
        while self._thread.is_alive() and self.tracker not in _dropped:
            if time.monotonic() > deadline:
                self._drop("it does not answer")
            self._thread.join(0.05)

    def _work(self, run: TrackerRun) -> None:
        try:
            with _TRACKERS[self.tracker](run) as tracker:
                while (call := self._calls.get()) is not None:
                    if self.tracker in _dropped:
                        return
                    call(tracker)
        except Exception as error:  # its server may be down, and that must not stop the run
            # Secrets in the address of a server have no variable of their own that `redact` knows.
            self._drop(redact(_USER_INFO.sub("://", one_line(error))))

    def _drop(self, reason: str) -> None:
        if self.tracker not in _dropped:
            _dropped.add(self.tracker)
            self.warn(f"report_to: {self.tracker} took not everything ({reason}), and gets no more of this run")


def open_senders(report_to: Sequence[str], run: TrackerRun, warn: Callable[[str], None]) -> dict[str, Sender]:
    """A sender for each of these trackers that was not dropped."""
    return {name: Sender(name, run, warn) for name in report_to if name not in _dropped}


def close_senders(senders: Mapping[str, Sender]) -> None:
    """Wait for these trackers, half a minute for all together."""
    deadline = time.monotonic() + _PATIENCE
    for sender in senders.values():
        sender.close(deadline)


@contextmanager
def open_trackers(
    report_to: Sequence[str], folder: str, address: str, warn: Callable[[str], None], settings: dict[str, Any]
) -> Iterator[Log]:
    """While the block trains, give a function that sends metrics to all trackers.

    Args:
        report_to: names of trackers.
        folder: the run's folder or URI.
        address: address of the artifact that is trained, such as round-01/policy.
        warn: shows one line if a tracker fails; training goes on.
        settings: settings of the training, stored with the curves if the tracker can store them.
    """
    senders = open_senders(report_to, TrackerRun(folder, address, settings), warn)

    def log(step: int, values: dict[str, float]) -> None:
        for sender in senders.values():
            sender.send(lambda tracker: tracker.log(step, values))

    try:
        yield log
    finally:
        close_senders(senders)


class _TensorBoard(Tracker):
    """Takes figures. Its files lie in the run folder, beside the report."""

    def __init__(self, writer: Any):
        self.writer = writer

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)


@contextmanager
def _tensorboard(run: TrackerRun) -> Iterator[Tracker]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(f"{run.folder}/tensorboard/{run.name}") as writer:
        yield _TensorBoard(writer)


class _Wandb(Tracker):
    def __init__(self, session: Any, axis: str | None):
        self.session, self.axis, self.id = session, axis, session.id

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        # W&B drops what comes at a lower step than the last one, so such a step is a value among the others.
        if self.axis is None:
            self.session.log(dict(values), step=step)
        else:
            self.session.log({self.axis: step, **values})

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        import wandb

        self.log(step, {name: wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])})

    def log_files(self, name: str, texts: Mapping[str, str]) -> None:
        import wandb

        artifact = wandb.Artifact(name, type=name)
        for file_name, text in texts.items():
            with artifact.new_file(file_name, encoding="utf-8") as file:
                file.write(text)
        self.session.log_artifact(artifact)


@contextmanager
def _wandb(run: TrackerRun) -> Iterator[Tracker]:
    import wandb

    # Several runs may be open, and the driver's terminal is nobody else's.
    settings = wandb.Settings(console="off", reinit="create_new", init_timeout=0.8 * _PATIENCE)
    with wandb.init(
        project=run.project,
        name=run.name,
        config=dict(run.settings),
        id=run.id,
        resume="allow" if run.id else None,
        settings=settings,
    ) as session:
        if run.axis:
            session.define_metric("*", step_metric=run.axis)
        yield _Wandb(session, run.axis)


class _MLflow(Tracker):
    """Uses MLflow's current run, of which each thread has its own."""

    def __init__(self, run_id: str):
        self.id = run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        import mlflow

        mlflow.log_metrics(dict(values), step=step)

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        import mlflow

        # MLflow adds the rows to those that the table has.
        mlflow.log_table({column: [row[column] for row in rows] for column in rows[0]}, f"{name}.json")

    def log_files(self, name: str, texts: Mapping[str, str]) -> None:
        import mlflow

        for file_name, text in texts.items():
            mlflow.log_text(text, file_name)


@contextmanager
def _mlflow(run: TrackerRun) -> Iterator[Tracker]:
    import mlflow

    mlflow.set_experiment(run.project)
    with mlflow.start_run(run_id=run.id, run_name=run.name) as active:
        if run.id is None:
            mlflow.log_params({name: str(value) for name, value in run.settings.items()})
        yield _MLflow(active.info.run_id)


_TRACKERS: dict[str, Callable[[TrackerRun], AbstractContextManager[Tracker]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
