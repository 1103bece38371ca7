"""One worker's share of a training in a Ray Train job. It talks to the other workers by torch.distributed."""

import gc
import os
import tempfile
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
import transformers
from pyarrow.fs import copy_files

from pipeline.storage.files import open_location
from pipeline.storage.model_files.hub import fetch
from pipeline.training import consistency, metrics
from pipeline.training.batches.dataset import write_examples
from pipeline.training.batches.example_table import ExampleTable
from pipeline.training.batches.node_file import shared_file
from pipeline.training.loop import TrainLoop
from pipeline.training.modeling import loading
from pipeline.training.modeling.fsdp import PolicyModule, place_policy
from pipeline.training.ray_job.board import Answer, Line
from pipeline.training.ray_job.checkpoints import SharedCheckpointStore


def train(board: Any, *, checkpoint_path: str, token: str, **config: Any) -> Answer:
    """Train on this worker, from the last checkpoint if there is one, and write the result.

    Args:
        board: the board of the job, which gets the lines of metrics.
        checkpoint_path: folder for the checkpoints, a path or URI.
        token: the driver's token in that folder.
        config: the other arguments of `driver.run_training`, with absolute paths.

    Returns:
        The result of `TrainLoop.run`; or the result of `_user_error`, if only the user can fix the error. Such an error
        is not raised, because Ray Train would then run the training three more times.
    """
    transformers.utils.logging.disable_progress_bar()
    if config["all_cores"]:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ray.train.get_context().get_local_world_size()))
    metrics.reset_peak_memory(ray.train.torch.get_device())
    fetch.cache_clear()  # an earlier training may have fetched another model from the same place
    checkpoints = SharedCheckpointStore(checkpoint_path, token, ray.train.get_context().get_world_rank())
    try:
        return _train(board, config, checkpoints)
    except _WorkerRefusal as refusal:
        return refusal.answer
    except ValueError as error:  # all workers raise it, because they compute it from numbers that they share
        return _user_error(error)
    finally:
        _free_memory()


def _train(board: Any, config: dict[str, Any], checkpoints: SharedCheckpointStore) -> Answer:
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as shared:
        examples = _on_all_workers(partial(_map_examples, config, checkpoints.token, shared))
        shared.close()  # the workers of this node have mapped the file of examples by now
        if config["reference_path"] is not None:
            _check_reference(config, examples)
        loop = _on_all_workers(partial(_make_loop, config, examples, checkpoints, partial(_send, board)))
        return _train_and_save(loop, config["out_path"], scratch, checkpoints)


def _free_memory() -> None:
    """Give the memory of models back to which nothing refers any more, for the next model or for other processes."""
    gc.collect()  # sharded modules are in reference cycles
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


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
    """The answer of a worker after an error that only the user can fix. The driver raises it as ValueError."""
    return {"user_error": str(error), "traceback": "".join(traceback.format_exception(error))}


def _map_examples(config: dict[str, Any], token: str, shared: ExitStack) -> ExampleTable:
    """Map this node's file of examples, which has its name until `shared` is closed."""
    write = partial(
        write_examples,
        config["rows_path"],
        config["rows_parts"],
        config["reference_digest"],
        loss_on=config["settings"]["loss_on"],
        with_shared_logps=config["settings"]["ld_alpha"] is not None,
    )
    return ExampleTable.map_file(shared.enter_context(shared_file(token, write)))


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
    _free_memory()


def _make_loop(
    config: dict[str, Any], examples: ExampleTable, checkpoints: SharedCheckpointStore, report: Callable[[Line], None]
) -> TrainLoop:
    context = ray.train.get_context()
    return TrainLoop(
        examples=examples,
        model_path=config["model_path"],  # not a folder of this node: an adapter names its base for all nodes
        settings=config["settings"],
        **config["layout"],
        device=ray.train.torch.get_device(),
        rank=context.get_world_rank(),
        workers=context.get_world_size(),
        report=report,
        checkpoints=checkpoints,
        from_reference=config["reference_path"] is None,
    )


def _train_and_save(loop: TrainLoop, out_path: str, scratch: str, checkpoints: SharedCheckpointStore) -> Answer:
    with checkpoints.load_last() as folder:
        if folder is not None:
            loop.resume(folder)
    answer = loop.run()
    checkpoints.check_owner()
    is_local = "://" not in out_path
    out = Path(out_path) if is_local else Path(scratch, "out")
    loop.save(out)
    if loop.rank == 0 and not is_local:
        filesystem, folder_path = open_location(out_path)
        filesystem.create_dir(folder_path, recursive=True)
        copy_files(str(out), folder_path, destination_filesystem=filesystem)
    return answer


def _send(board: Any, line: Line) -> None:
    ray.get(board.send.remote(line))
