"""The Ray Train job: the same run on one worker or many, on CPUs or GPUs, that goes on after a worker has died.

All of Ray that training needs is here; what a worker does is in `loop.py`. Left out: making references, and judging
the result on articles.
"""

import os
import signal
import tempfile
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
from pipeline.training.batches.dataset import read_examples
from pipeline.training.loop import TrainLoop

TRAINING_ERRORS = (ray.train.TrainingFailedError, ray.exceptions.RayActorError)  # of a worker, and of who watches them
RETRIES = 3
_LOOK = 1.0  # seconds between two looks for lines of progress
Progress = Callable[[dict[str, Any]], None]
_OWNER = "owner"  # file beside the checkpoints: the token of the driver that trains here
# Of the hardware, what a worker needs to know.
_LAYOUT = (
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
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a model on preference pairs with DPO, and write it.

    A worker that dies is started again, three times at most, on the step of the last checkpoint; so is a run whose
    driver died, if it is called again with the same `checkpoint_path`. That must be a path that no other recipe uses,
    and like every other path here one that all nodes see. The result does not depend on `hardware`, but for rounding.

    Args:
        rows_path: folder of Parquet parts, a path or URI; see `rows.read`.
        rows_parts: the names of the parts.
        model_path: Hugging Face model or LoRA adapter by path, URI or name on the hub.
        out_path: gets the trained model's or adapter's folder and metrics.jsonl: a line for each step, and one for
            each evaluation.
        settings: see `loop.Run`.
        hardware: how many workers, above one of which the weights are sharded over them, and what each has.
        checkpoint_path: where checkpoints are kept, a path or URI.
        reference_digest: `weights.digest` of the reference, which each row must name; None trains without one.
        reference_path: of the reference, as `model_path`; None: the model to train is the reference.
        on_progress: called in this process, from a thread, with each line of metrics and `steps`, how many there are
            to be. After a restart, lines since the last checkpoint come again.

    Returns:
        What `loop.Run.play` returns.

    Raises:
        ValueError: rows or a model that cannot be trained on, or that do not fit each other.
        Failed: a worker, or Ray Train's controller, failed more than three times.
    """
    for tries in range(RETRIES + 1):
        try:
            return _train(
                rows_path=rows_path,
                rows_parts=rows_parts,
                model_path=model_path,
                out_path=out_path,
                settings=settings,
                hardware=hardware,
                storage=_absolute(checkpoint_path),
                reference_digest=reference_digest,
                reference_path=reference_path,
                on_progress=on_progress,
            )
        except ray.exceptions.RayActorError:
            # Ray Train starts workers again, but nobody the controller, which watches them: its node may be gone.
            if tries == RETRIES:
                raise
    raise AssertionError("the last try returns or raises")


def _train(
    *,
    rows_path: str,
    rows_parts: Sequence[str],
    model_path: str,
    out_path: str,
    settings: dict[str, Any],
    hardware: TrainerHardware,
    storage: str,
    reference_digest: str | None,
    reference_path: str | None,
    on_progress: Progress | None,
) -> dict[str, Any]:
    """`train`, for as long as Ray Train's controller lives."""
    token = uuid.uuid4().hex
    fs, place = open_location(storage)
    fs.create_dir(place, recursive=True)
    with fs.open_output_stream(f"{place}/{_OWNER}") as stream:
        stream.write(token.encode())
    progress = Queue(actor_options=driver_node_options()) if on_progress else None
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            # Absolute, because Ray Train's workers run in a folder of their own.
            "rows_path": _absolute(rows_path),
            "rows_parts": tuple(rows_parts),
            "model_path": locate(model_path),
            "out_path": _absolute(out_path),
            "settings": settings,
            "layout": {name: getattr(hardware, name) for name in _LAYOUT},
            "reference_digest": reference_digest,
            "reference_path": None if reference_path is None else locate(reference_path),
            "shelf": _Shelf(f"{storage}/best", token),
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
            name="train",  # Ray Train goes on where a run of this name in this place was
            storage_path=storage,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=RETRIES),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    on_interrupt = signal.getsignal(signal.SIGINT)
    with _shown(progress, on_progress):
        try:
            answer = trainer.fit().return_value
        finally:
            # Ray Train leaves a handler behind that would turn a later Ctrl-C into a clean exit.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, on_interrupt)
    if "refused" in answer:
        raise ValueError(answer["refused"]) from RuntimeError(answer["traceback"])
    return answer


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """What runs in each of Ray Train's processes. Rank 0's answer is what `fit` gives.

    What a person must put right is an answer and not raised, or Ray Train would try it three times more.
    """
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        run, refused = None, None
        try:
            run = _prepare(config)
        except (ValueError, FileNotFoundError) as error:
            refused = _refusal(error)
        # One worker may see what others do not, such as a path that is not on its node: they would wait for it.
        answers = [None] * ray.train.get_context().get_world_size()
        dist.all_gather_object(answers, refused)
        if any(answers):
            return next(filter(None, answers))
        assert run is not None
        try:
            return _play(run, config["out_path"], scratch, config["shelf"])
        except ValueError as error:  # found in numbers that all workers share
            return _refusal(error)


def _prepare(config: dict[str, Any]) -> TrainLoop:
    context, progress, reference = ray.train.get_context(), config["progress"], config["reference_path"]
    run = TrainLoop(
        examples=read_examples(config["rows_path"], config["rows_parts"], config["reference_digest"]),
        model_path=config["model_path"],  # not as a folder of this node: an adapter names its base for all nodes
        settings=config["settings"],
        **config["layout"],
        device=ray.train.torch.get_device(),
        rank=context.get_world_rank(),
        workers=context.get_world_size(),
        # Not by `ray.train.report`: it waits until the controller, which looks every 2 s, has taken the last one.
        report=partial(_report, progress),
        shelf=config["shelf"],
        from_reference=reference is None,
    )
    if reference is not None and run.rank == 0:  # what it finds, the others are told
        dtype, tree = config["settings"]["dtype"], config["layout"]["article_tree"]
        consistency.check_reference(reference, run.examples, dtype, run.device, article_tree=tree)
    return run


@dataclass(frozen=True)
class _Shelf:
    """The last checkpoint with Ray Train, which gives it to whoever goes on; the best weights beside it.

    Attributes:
        place: of the best weights.
        token: of the driver. Workers outlive a driver that was killed; what they then write would be among what its
            successor's workers write.
    """

    place: str
    token: str

    @property
    def fs(self) -> FileSystem:
        return open_location(self.place)[0]

    @property
    def path(self) -> str:
        return open_location(self.place)[1]

    def check(self) -> None:
        """Raise RuntimeError if another driver has taken over."""
        with self.fs.open_input_stream(f"{self.path.rsplit('/', 1)[0]}/{_OWNER}") as stream:
            if stream.read().decode() != self.token:
                raise RuntimeError("another driver trains here now: this worker is of one that is gone")

    def keep(self, folder: Path) -> None:
        self.check()
        ray.train.report({}, checkpoint=Checkpoint.from_directory(folder))

    def keep_best(self, name: str, folder: Path) -> None:
        self.check()
        if ray.train.get_context().get_world_rank() == 0:
            remove_folder(f"{self.place}/{name}")  # what is there may be of another number of workers
            self.fs.create_dir(f"{self.path}/{name}", recursive=True)
        dist.barrier()
        copy_files(str(folder), f"{self.path}/{name}", destination_filesystem=self.fs)
        dist.barrier()  # from here on it is whole

    @contextmanager
    def best(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            copy_files(f"{self.path}/{name}", folder, source_filesystem=self.fs)
            yield Path(folder)

    def forget(self, but: Sequence[str]) -> None:
        if ray.train.get_context().get_world_rank() == 0:
            for info in self.fs.get_file_info(FileSelector(self.path, allow_not_found=True)):
                if info.base_name not in but:
                    self.fs.delete_dir(info.path)


def _play(run: TrainLoop, out_path: str, scratch: str, shelf: "_Shelf") -> dict[str, Any]:
    last = ray.train.get_checkpoint()
    if last is None:
        answer = run.play()
    else:
        with last.as_directory() as folder:
            answer = run.play(resume_from=Path(folder))
    shelf.check()
    local = "://" not in out_path
    out = Path(out_path) if local else Path(scratch, "out")
    run.save(out)
    if run.rank == 0 and not local:
        filesystem, inner = open_location(out_path)
        filesystem.create_dir(inner, recursive=True)
        copy_files(str(out), inner, destination_filesystem=filesystem)
    return answer


def _refusal(error: Exception) -> dict[str, str]:
    return {"refused": str(error), "traceback": "".join(traceback.format_exception(error))}


@contextmanager
def _shown(progress: Queue | None, on_progress: Progress | None) -> Iterator[None]:
    """Give what arrives in the queue to the callback, from a thread, until the block ends."""
    if progress is None or on_progress is None:
        yield
        return

    over = threading.Event()

    def show() -> None:
        while True:
            try:
                line = progress.get(timeout=_LOOK)
            except (ray.exceptions.RayError, Empty):  # nothing has come, or the queue is being started again
                if over.wait(_LOOK):
                    return
            else:
                if line is None:
                    return
                on_progress(line)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        with suppress(ray.exceptions.RayError):
            progress.put(None)  # behind the last line
        thread.join()
        with suppress(ray.exceptions.RayError):
            progress.shutdown()


def _report(progress: Queue | None, line: dict[str, Any]) -> None:
    """Tell of a step. A line that nobody can be told is no reason to stop: metrics.jsonl has it."""
    if progress is not None:  # an empty queue is falsy
        with suppress(ray.exceptions.RayError):
            progress.put(line)


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)
