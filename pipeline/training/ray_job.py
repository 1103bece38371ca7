"""Runs DPO training as a Ray Train job, on one worker or many, on CPUs or GPUs, and resumes it after a crash.

This is the only module of training that imports Ray. `loop.py` runs one worker's share. Reference log-probabilities are
computed in `stages/references.py`, and the trained policy is judged in `stages/scores.py`.
"""

import gc
import os
import signal
import tempfile
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray.exceptions
import ray.train
import ray.train.torch
import torch.distributed as dist
import transformers
from pyarrow.fs import FileSelector, FileSystem, copy_files
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue

from pipeline.config.hardware import TrainerHardware, driver_node_options
from pipeline.storage.files import open_location, remove_folder
from pipeline.storage.model_files.hub import locate
from pipeline.training import consistency
from pipeline.training.batches.dataset import write_examples
from pipeline.training.batches.example_table import ExampleTable
from pipeline.training.batches.node_file import shared_file
from pipeline.training.loop import TrainLoop
from pipeline.training.modeling import loading
from pipeline.training.modeling.fsdp import PolicyModule, place_policy

# The errors that `run_training` raises when it gives up: a worker, or Ray Train's controller, failed too often.
TRAINING_ERRORS = (ray.train.TrainingFailedError, ray.exceptions.RayActorError)
RETRIES = 3
ProgressCallback = Callable[[dict[str, Any]], None]
_POLL_SECONDS = 1.0  # how long the driver waits for the next line of progress
_OWNER_FILE = "owner"  # file beside the checkpoints, with the token of the driver whose workers may write
# The fields of `TrainerHardware` that `TrainLoop` takes as arguments. The others go to Ray Train.
_LAYOUT_FIELDS = (
    "tokens_per_batch", "article_tree", "gradient_checkpointing", "cpu_offload", "torch_compile", "save_steps",
)  # fmt: skip


def run_training(
    *,
    rows_path: str,
    rows_parts: Sequence[str],
    model_path: str,
    out_path: str,
    settings: dict[str, Any],
    hardware: TrainerHardware,
    checkpoint_path: str,
    reference_digest: str | None,
    reference_path: str | None = None,
    on_progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Train a model on preference pairs with DPO, and write it.

    If a worker dies, it is restarted from the last checkpoint, at most three times. If the driver dies, call this
    function again with the same `checkpoint_path`: it resumes from the last checkpoint too. All nodes must be able to
    read and write every path here, and no other recipe may use the same `checkpoint_path`. The result does not depend
    on `hardware`, except for rounding.

    Args:
        rows_path: folder of Parquet parts, a path or URI; see `batches/dataset.py`.
        rows_parts: the names of the parts.
        model_path: path, URI or hub name of a Hugging Face model or of a LoRA adapter.
        out_path: folder for the trained model or adapter, and for metrics.jsonl, which has one line for each step and
            one for each evaluation.
        settings: see `loop.TrainLoop`.
        hardware: the number of workers, and what each of them has. With more than one worker the weights are sharded.
        checkpoint_path: folder for the checkpoints, a path or URI.
        reference_digest: `loading.weights_digest` of the reference model, which each row must name; None trains
            without a reference.
        reference_path: path, URI or hub name of the reference model; None if the model to train is the reference.
        on_progress: called in this process, from a thread, with each line of metrics, plus `steps`, the number of
            steps in the whole run. After a restart it gets the lines since the last checkpoint again.

    Returns:
        What `TrainLoop.run` returns.

    Raises:
        ValueError: the rows or the model cannot be used for training, or they do not fit each other.
        TRAINING_ERRORS: a worker, or Ray Train's controller, failed more than three times.
    """
    for attempt in range(RETRIES + 1):
        try:
            return _run_attempt(
                rows_path=rows_path,
                rows_parts=rows_parts,
                model_path=model_path,
                out_path=out_path,
                settings=settings,
                hardware=hardware,
                storage_path=_absolute(checkpoint_path),
                reference_digest=reference_digest,
                reference_path=reference_path,
                on_progress=on_progress,
            )
        except ray.exceptions.RayActorError:
            # Ray Train restarts dead workers, but nothing restarts its controller, whose node may be gone.
            if attempt == RETRIES:
                raise
    raise AssertionError("the last attempt returns or raises")


def _run_attempt(
    *,
    rows_path: str,
    rows_parts: Sequence[str],
    model_path: str,
    out_path: str,
    settings: dict[str, Any],
    hardware: TrainerHardware,
    storage_path: str,
    reference_digest: str | None,
    reference_path: str | None,
    on_progress: ProgressCallback | None,
) -> dict[str, Any]:
    """Do what `run_training` does, until it is finished or Ray Train's controller dies."""
    token = uuid.uuid4().hex
    _claim(storage_path, token)
    progress = Queue(actor_options=driver_node_options()) if on_progress else None
    this_module = __name__

    def train(config: dict[str, Any]) -> dict[str, Any]:
        # A nested function is pickled with its code, so the worker runs this before it imports torch and transformers.
        # They make half a million objects, and none is garbage: to look for it would take a fifth of the import's time.
        import gc
        import importlib

        gc.set_threshold(50_000)
        answer: dict[str, Any] = importlib.import_module(this_module)._train_on_worker(config)
        return answer

    trainer = TorchTrainer(
        train,
        train_loop_config={
            # Absolute paths, because each Ray Train worker runs in a folder of its own.
            "rows_path": _absolute(rows_path),
            "rows_parts": tuple(rows_parts),
            "model_path": locate(model_path),
            "out_path": _absolute(out_path),
            "settings": settings,
            "layout": {name: getattr(hardware, name) for name in _LAYOUT_FIELDS},
            "reference_digest": reference_digest,
            "reference_path": None if reference_path is None else locate(reference_path),
            # Plain values only: Ray Train's controller reads them too, and an object of this module would make it
            # import transformers, which takes seconds.
            "checkpoints": {"location": f"{storage_path}/best", "token": token},
            "progress": progress,
        },
        # Offloaded gradients are on the CPU, where NCCL cannot add them up.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl") if hardware.cpu_offload else None,
        scaling_config=ScalingConfig(
            num_workers=hardware.workers,
            use_gpu=hardware.gpus_per_worker > 0,
            resources_per_worker={"CPU": hardware.cpus_per_worker}
            | ({"GPU": hardware.gpus_per_worker} if hardware.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            name="train",  # Ray Train resumes the run that has this name in this storage path
            storage_path=storage_path,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=RETRIES),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    on_interrupt = signal.getsignal(signal.SIGINT)
    with _forwarded(progress, on_progress):
        try:
            answer = trainer.fit().return_value
        finally:
            # Ray Train leaves its own handler installed, which would turn a later Ctrl-C into a clean exit.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, on_interrupt)
    if "user_error" in answer:
        raise ValueError(answer["user_error"]) from RuntimeError(answer["traceback"])
    return answer


def _claim(storage_path: str, token: str) -> None:
    """Write this driver's token, so that workers of an earlier driver stop."""
    filesystem, folder = open_location(storage_path)
    filesystem.create_dir(folder, recursive=True)
    with filesystem.open_output_stream(f"{folder}/{_OWNER_FILE}") as stream:
        stream.write(token.encode())


def _train_on_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train in one of Ray Train's worker processes. `fit` returns the answer of rank 0.

    Returns:
        The result of `TrainLoop.run`; or the result of `_user_error`, if only the user can fix the error. Such an error
        is not raised, because Ray Train would then run the training three more times.
    """
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as shared:
        try:
            examples = _on_all_workers(partial(_map_examples, config, shared))
            shared.close()  # the workers of this node have mapped the file of examples by now
            if config["reference_path"] is not None:
                _check_reference(config, examples)
            loop = _on_all_workers(partial(_make_loop, config, examples))
            return _train_and_save(loop, config["out_path"], scratch, _RayCheckpointStore(**config["checkpoints"]))
        except _WorkerRefusal as refusal:
            return refusal.answer
        except ValueError as error:  # all workers raise it, because they compute it from numbers that they share
            return _user_error(error)


class _WorkerRefusal(Exception):
    """What a worker found can only be fixed by the user. `answer` is the result of `_user_error` on that worker."""

    def __init__(self, answer: dict[str, str]) -> None:
        self.answer = answer


def _on_all_workers(function: Callable[[], Any]) -> Any:
    """Call a function that talks to no other worker. If it fails on one worker, raise _WorkerRefusal on all of them.

    Perhaps only one worker fails, such as when a path is missing on its node. The others would wait for it.
    """
    result, error_answer = None, None
    try:
        result = function()
    except (ValueError, FileNotFoundError) as error:
        error_answer = _user_error(error)
    error_answers = [None] * ray.train.get_context().get_world_size()
    dist.all_gather_object(error_answers, error_answer)
    if any(error_answers):
        raise _WorkerRefusal(next(filter(None, error_answers)))
    return result


def _user_error(error: Exception) -> dict[str, str]:
    """The answer of a worker after an error that only the user can fix. `_run_attempt` raises it as ValueError."""
    return {"user_error": str(error), "traceback": "".join(traceback.format_exception(error))}


def _map_examples(config: dict[str, Any], shared: ExitStack) -> ExampleTable:
    """Map this node's file of examples, which has its name until `shared` is closed."""
    write = partial(
        write_examples,
        config["rows_path"],
        config["rows_parts"],
        config["reference_digest"],
        loss_on=config["settings"]["loss_on"],
        with_shared_logps=config["settings"]["ld_alpha"] is not None,
    )
    return ExampleTable.map_file(shared.enter_context(shared_file(config["checkpoints"]["token"], write)))


def _check_reference(config: dict[str, Any], examples: ExampleTable) -> None:
    """Check the reference, sharded like the policy. It is freed before the policy is loaded."""
    settings, layout, device = config["settings"], config["layout"], ray.train.torch.get_device()
    load = partial(
        loading.load_model,
        config["reference_path"],
        settings["dtype"],
        article_tree=layout["article_tree"],
        load_in_4bit=settings["load_in_4bit"],
        device=device,
    )
    reference = PolicyModule(_on_all_workers(load).requires_grad_(False))
    place_policy(reference, device, ray.train.get_context().get_world_size(), cpu_offload=layout["cpu_offload"])
    consistency.check_reference(reference, config["reference_path"], examples, settings["dtype"], device)
    del reference
    gc.collect()  # sharded modules are in reference cycles


def _make_loop(config: dict[str, Any], examples: ExampleTable) -> TrainLoop:
    context = ray.train.get_context()
    return TrainLoop(
        examples=examples,
        model_path=config["model_path"],  # not a folder of this node: an adapter names its base for all nodes
        settings=config["settings"],
        **config["layout"],
        device=ray.train.torch.get_device(),
        rank=context.get_world_rank(),
        workers=context.get_world_size(),
        # Not `ray.train.report`: it blocks until the controller, which polls every 2 s, has taken the last report.
        report=partial(_send, config["progress"]),
        checkpoints=_RayCheckpointStore(**config["checkpoints"]),
        from_reference=config["reference_path"] is None,
    )


def _train_and_save(loop: TrainLoop, out_path: str, scratch: str, checkpoints: "_RayCheckpointStore") -> dict[str, Any]:
    last_checkpoint = ray.train.get_checkpoint()
    if last_checkpoint is None:
        answer = loop.run()
    else:
        with last_checkpoint.as_directory() as folder:
            answer = loop.run(resume_from=Path(folder))
    checkpoints.check_owner()
    is_local = "://" not in out_path
    out = Path(out_path) if is_local else Path(scratch, "out")
    loop.save(out)
    if loop.rank == 0 and not is_local:
        filesystem, folder = open_location(out_path)
        filesystem.create_dir(folder, recursive=True)
        copy_files(str(out), folder, destination_filesystem=filesystem)
    return answer


@dataclass(frozen=True)
class _RayCheckpointStore:
    """A `CheckpointStore`: Ray Train keeps the last checkpoint and restores it; the best weights lie beside it.

    Attributes:
        location: folder of the best weights, a path or URI.
        token: token of the driver. Workers can outlive a driver that was killed. Their files must not mix with those
            of the next driver's workers.
    """

    location: str
    token: str

    @property
    def fs(self) -> FileSystem:
        return open_location(self.location)[0]

    @property
    def path(self) -> str:
        return open_location(self.location)[1]

    def check_owner(self) -> None:
        """Raise RuntimeError if another driver has taken over."""
        with self.fs.open_input_stream(f"{self.path.rsplit('/', 1)[0]}/{_OWNER_FILE}") as stream:
            if stream.read().decode() != self.token:
                raise RuntimeError("another driver trains here now: the driver of this worker is gone")

    def save(self, folder: Path) -> None:
        self.check_owner()
        ray.train.report({}, checkpoint=Checkpoint.from_directory(folder))

    def save_best(self, name: str, folder: Path) -> None:
        self.check_owner()
        if ray.train.get_context().get_world_rank() == 0:
            remove_folder(f"{self.location}/{name}")  # an earlier attempt may have had another number of workers
            self.fs.create_dir(f"{self.path}/{name}", recursive=True)
        dist.barrier()
        copy_files(str(folder), f"{self.path}/{name}", destination_filesystem=self.fs)
        dist.barrier()  # the parts of all workers are there now

    @contextmanager
    def load_best(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            copy_files(f"{self.path}/{name}", folder, source_filesystem=self.fs)
            yield Path(folder)

    def prune(self, keep: Sequence[str]) -> None:
        if ray.train.get_context().get_world_rank() == 0:
            for info in self.fs.get_file_info(FileSelector(self.path, allow_not_found=True)):
                if info.base_name not in keep:
                    self.fs.delete_dir(info.path)


def _send(progress: Queue | None, line: dict[str, Any]) -> None:
    """Send a line of metrics to the driver. A lost line does not stop the training: metrics.jsonl has it too."""
    if progress is not None:  # not `if progress`: an empty queue is falsy
        with suppress(ray.exceptions.RayError):
            progress.put(line)


@contextmanager
def _forwarded(progress: Queue | None, on_progress: ProgressCallback | None) -> Iterator[None]:
    """While the block runs, call `on_progress` from a thread with each line that arrives in the queue."""
    if progress is None or on_progress is None:
        yield
        return

    is_finished = threading.Event()

    def forward() -> None:
        while True:
            try:
                line = progress.get(timeout=_POLL_SECONDS)
            except (ray.exceptions.RayError, Empty):  # no line has come, or Ray is restarting the queue
                if is_finished.wait(_POLL_SECONDS):
                    return
            else:
                if line is None:
                    return
                on_progress(line)

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_finished.set()
        with suppress(ray.exceptions.RayError):
            progress.put(None)  # marks the end of the lines
        thread.join()
        with suppress(ray.exceptions.RayError):
            progress.shutdown()


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)
