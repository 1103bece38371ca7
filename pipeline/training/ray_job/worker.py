"""What each worker of a Ray Train job runs: one training after the other, until the driver closes the board."""

import gc
import time
from typing import Any

import ray
import ray.exceptions
import ray.train


def work(config: dict[str, Any]) -> None:
    """Do the trainings of `config["board"]`, until it is closed or gone. Each Ray Train worker runs this."""
    board, context, done = config["board"], ray.train.get_context(), 0
    if _ask(board.is_open) is not True:
        return
    gc.disable()  # imports make a million objects, none of which is garbage
    from pipeline.training.ray_job.training import train  # before there is a training, because it takes seconds

    gc.enable()
    actor = ray.get_runtime_context().current_actor
    while (task := _ask(board.next_training, done, context.get_world_rank(), actor)) is not None:
        done, training = task
        answer = train(board, **training)
        if context.get_world_rank() == 0:
            ray.get(board.finish.remote(answer))


def _ask(method: Any, *arguments: Any) -> Any:
    """What a method of the board answers; None if the board is gone. The driver then takes another job."""
    while True:
        try:
            return ray.get(method.remote(*arguments))
        except ray.exceptions.ActorUnavailableError:  # it may be back soon
            time.sleep(1)
        except ray.exceptions.RayActorError:
            return None
