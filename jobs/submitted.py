"""What only a job that `ray job submit` started must be told. Left out: whatever any other run is told too."""

import os

from pipeline.config import Alignment, Config
from pipeline.execution.progress import Display


def warn_of_what_ray_removes(settings: Config | Alignment, display: Display) -> None:
    """Say which of the settings' folders would not outlive the job, if this is one."""
    if "RAY_JOB_ID" not in os.environ:
        return
    removed = "lies in this job's copy of the working directory, which Ray removes in time"
    if "://" not in settings.run and not os.path.isabs(settings.run):
        display.warn(f"run={settings.run} {removed}: give a path or URI that outlives it, as in run=$PWD/runs/demo")
    lora, model = settings.training.lora, settings.policy.model
    if lora is not None and not lora.merge and os.path.isdir(model) and not os.path.isabs(model):
        display.warn(
            f"policy.model={model} {removed}, and the adapters of this run are nothing without it: give a path or URI "
            "that outlives it, or set training.lora.merge=true"
        )
