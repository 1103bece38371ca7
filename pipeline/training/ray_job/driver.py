"""Starts a Ray Train job, keeps its workers from training to training, and gives them trainings."""

import os
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Self

import ray
import ray.exceptions
import ray.train
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from pipeline.config.hardware import TrainerHardware, driver_node_options
from pipeline.storage.files import remove_folder
from pipeline.storage.model_files.hub import locate
from pipeline.training.ray_job.board import Answer, Board, Line, Training
from pipeline.training.ray_job.checkpoints import claim
from pipeline.training.ray_job.worker import work

# The errors that `run_training` raises when it gives up: a worker, or Ray Train's controller, failed too often.
TRAINING_ERRORS = (ray.train.TrainingFailedError, ray.exceptions.RayActorError)
RETRIES = 3
ProgressCallback = Callable[[Line], None]
_POLL_SECONDS = 1.0  # how long the driver waits for a line before it looks whether the job has failed
_SECONDS_TO_END = 60.0  # how long it waits at the end for Ray Train, which may just be starting workers
# The fields of `TrainerHardware` that `TrainLoop` takes as arguments. The others go to Ray Train.
_LAYOUT_FIELDS = (
    "tokens_per_batch", "article_tree", "gradient_checkpointing", "cpu_offload", "torch_compile", "save_steps",
)  # fmt: skip


class TrainingWorkers:
    """The training workers of a run: a Ray Train job that starts with the first training, or before it.

    After a training in which a worker died, the next training gets a new job, with all its retries.

    Args:
        hardware: the number of workers, and what each of them has. With more than one the weights are sharded.
        storage_path: a folder that all nodes can read and write, a path or URI. Ray Train writes a small file there
            while a job runs. It is removed at the end.
    """

    def __init__(self, hardware: TrainerHardware, storage_path: str):
        self.hardware, self.storage_path = hardware, storage_path
        self._job: _Job | None = None
        self._closed: list[_Job] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def total(self) -> tuple[float, float]:
        """CPUs and GPUs that the workers hold."""
        count = self.hardware.workers if self._job else 0
        return count * self.hardware.cpus_per_worker, count * self.hardware.gpus_per_worker

    def start(self) -> None:
        """Let Ray start the workers, if there are none. Returns at once."""
        if self._job is not None and not self._job.thread.is_alive():
            self.close()  # the job failed while it waited for a training, which may be long ago
        if self._job is None:
            self._job = _Job(self.hardware, self.storage_path)

    def run(self, training: Training, on_progress: ProgressCallback | None = None) -> Answer:
        """Let the workers do a training, and wait for its answer.

        Args:
            training: the arguments of `training.train`.
            on_progress: called with each line of metrics.

        Raises:
            TrainingFailedError: a worker failed more than three times.
            RayActorError: Ray Train's controller or the board died.
        """
        self.start()
        assert self._job is not None
        starts = 0
        try:
            answer, starts = self._job.run(training, on_progress)
            return answer
        finally:
            if starts != 1:
                self.close()

    def close(self) -> None:
        """Tell the workers to end, and do not wait for them."""
        if self._job is not None:
            self._job.close()
            self._closed.append(self._job)
            self._job = None
        for job in [job for job in self._closed if not job.thread.is_alive()]:
            job.wait()
            self._closed.remove(job)

    def end(self) -> None:
        """End the workers. Ray must not be shut down before."""
        self.close()
        for job in self._closed:
            job.wait()
        self._closed.clear()
        remove_folder(_absolute(self.storage_path))


class _Job:
    """A Ray Train job. Its workers take trainings from a board."""

    def __init__(self, hardware: TrainerHardware, storage_path: str):
        # A board without its training is of no use, so Ray does not start it again.
        self.board = ray.remote(Board).options(**driver_node_options() | {"max_restarts": 0}).remote()
        self.error: BaseException | None = None
        trainer = TorchTrainer(
            work,
            train_loop_config={"board": self.board},
            # Offloaded gradients are on the CPU, where NCCL cannot add them up.
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl") if hardware.cpu_offload else None,
            scaling_config=ScalingConfig(
                num_workers=hardware.workers,
                use_gpu=hardware.gpus_per_worker > 0,
                resources_per_worker={"CPU": hardware.cpus_per_worker}
                | ({"GPU": hardware.gpus_per_worker} if hardware.gpus_per_worker else {}),
            ),
            run_config=RunConfig(
                name=uuid.uuid4().hex[:8],
                storage_path=_absolute(storage_path),
                failure_config=FailureConfig(max_failures=RETRIES),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        # In a thread Ray Train leaves the handler of Ctrl-C as it is.
        self.thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self.thread.start()

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except BaseException as error:  # `run` raises it
            self.error = error

    def run(self, training: Training, on_progress: ProgressCallback | None) -> tuple[Answer, int]:
        """Do what `TrainingWorkers.run` does. Returns the answer, and how often the training started."""
        ray.get(self.board.begin.remote(training))
        while True:
            has_ended = not self.thread.is_alive()  # before the question: the last answer may come in between
            lines, answer, starts = ray.get(self.board.read.remote(_POLL_SECONDS))
            if on_progress is not None:
                for line in lines:
                    on_progress(line)
            if answer is not None:
                return answer, starts
            if has_ended:  # without an error the workers took the board for gone
                raise self.error or ray.exceptions.ActorDiedError()

    def close(self) -> None:
        """End the workers. Ray Train starts those that train once more, and they find the board closed."""
        with suppress(ray.exceptions.RayError):
            for worker in ray.get(self.board.close.remote()):
                ray.kill(worker)

    def wait(self) -> None:
        """Wait until Ray Train has ended the workers."""
        self.thread.join(_SECONDS_TO_END)
        ray.kill(self.board)


def run_training(
    workers: TrainingWorkers,
    *,
    rows_path: str,
    rows_parts: Sequence[str],
    model_path: str,
    out_path: str,
    settings: dict[str, Any],
    checkpoint_path: str,
    reference_digest: str | None,
    reference_path: str | None = None,
    on_progress: ProgressCallback | None = None,
) -> Answer:
    """Train a model on preference pairs with DPO, and write it.

    If a worker dies, it is restarted from the last checkpoint, at most three times. If the driver dies, call this
    function again with the same `checkpoint_path`: it resumes from the last checkpoint too. All nodes must be able to
    read and write every path here, and no other recipe may use the same `checkpoint_path`. The result does not depend
    on the workers' hardware, except for rounding.

    Args:
        workers: the training workers. They stay for the next training.
        rows_path: folder of Parquet parts, a path or URI; see `batches/dataset.py`.
        rows_parts: the names of the parts.
        model_path: path, URI or hub name of a Hugging Face model or of a LoRA adapter.
        out_path: folder for the trained model or adapter, and for metrics.jsonl, which has one line for each step and
            one for each evaluation.
        settings: see `loop.TrainLoop`.
        checkpoint_path: folder for the checkpoints, a path or URI.
        reference_digest: `loading.weights_digest` of the reference model, which each row must name; None trains
            without a reference.
        reference_path: path, URI or hub name of the reference model; None if the model to train is the reference.
        on_progress: called with each line of metrics, plus `steps`, the number of steps in the whole run. After a
            restart it gets the lines since the last checkpoint again.

    Returns:
        What `TrainLoop.run` returns.

    Raises:
        ValueError: the rows or the model cannot be used for training, or they do not fit each other.
        TRAINING_ERRORS: a worker, or Ray Train's controller, failed more than three times.
    """
    # Absolute paths, because each Ray Train worker runs in a folder of its own.
    checkpoint_path = _absolute(checkpoint_path)
    training = {
        "rows_path": _absolute(rows_path),
        "rows_parts": tuple(rows_parts),
        "model_path": locate(model_path),
        "out_path": _absolute(out_path),
        "settings": settings,
        "layout": {name: getattr(workers.hardware, name) for name in _LAYOUT_FIELDS},
        "all_cores": _uses_all_cores(workers.hardware),
        "reference_digest": reference_digest,
        "reference_path": None if reference_path is None else locate(reference_path),
        "checkpoint_path": checkpoint_path,
    }
    for attempt in range(RETRIES + 1):
        token = uuid.uuid4().hex  # a new one each time: workers of a dead controller may still run
        claim(checkpoint_path, token)
        try:
            answer = workers.run(training | {"token": token}, on_progress)
        except ray.exceptions.RayActorError:
            # Ray Train restarts dead workers, but nothing restarts its controller, whose node may be gone.
            if attempt == RETRIES:
                raise
        else:
            if "user_error" in answer:
                raise ValueError(answer["user_error"]) from RuntimeError(answer["traceback"])
            return answer
    raise AssertionError("the last attempt returns or raises")


def _uses_all_cores(hardware: TrainerHardware) -> bool:
    """Whether a worker computes with more threads than Ray gives it.

    With a part of a logical CPU it shares the machine with engines, which are idle while it trains.
    """
    return not hardware.gpus_per_worker and hardware.cpus_per_worker < 1 and "OMP_NUM_THREADS" not in os.environ


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)
