"""Ray, started or joined, and kept quiet.

A job that `ray job submit` started, or RAY_ADDRESS, says which cluster to join; else a Ray of our own is started on
this machine, which wants a token, and stopped at the end. A Ray that this process has started before is used, and left
running. Left out: what runs there.
"""

import logging
import os
import secrets
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.config import UserError
from pipeline.config.hardware import Hardware


@contextmanager
def connected_ray(hardware: Hardware) -> Iterator[Hardware]:
    """Ray while the block runs.

    Yields:
        The hardware settings, with smaller shares of CPUs where a cluster that was joined has fewer than they ask.

    Raises:
        UserError: the hardware settings ask for more GPUs than this machine has, and there is no cluster to join; or
            nobody answers at RAY_ADDRESS.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ core writes past every Python logger
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # 2 s, else, are lost at each end of a training
    import ray
    from ray.data import DataContext

    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    there = ray.is_initialized()  # in a notebook, say
    joined = there or bool(os.environ.get("RAY_ADDRESS"))
    own = hardware.ray_cpus or max(os.cpu_count() or 1, hardware.cpus())
    how: dict[str, Any] = {} if joined else {"address": "local", "num_cpus": own, "include_dashboard": False}
    if not joined:
        _keep_token()
    elif not there:
        _knock(os.environ["RAY_ADDRESS"])
    try:
        if not there:
            with _muted():
                ray.init(**how, logging_level="error", log_to_driver=False)
    except ConnectionError as error:
        raise _nobody(os.environ["RAY_ADDRESS"], error) from None
    try:
        gpus = ray.cluster_resources().get("GPU", 0)
        if not joined and hardware.gpus() > gpus:
            raise UserError(
                f"hardware asks for {hardware.gpus():g} GPUs at a time and this machine has {gpus:g}: lower "
                "hardware.*.gpus_per_replica, replicas or workers, or join a cluster (README, On a cluster)"
            )
        # What Ray Data would log of an error it also raises: twice said, and a log that is kept keeps engines alive.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # A cluster with GPUs may still grow; one without has what it has, and Ray Data would wait for more for ever.
        yield hardware.within(ray.cluster_resources().get("CPU", 0)) if joined and not hardware.gpus() else hardware
    finally:
        if not there:
            ray.shutdown()


def _knock(address: str) -> None:
    """See that somebody listens at an address that says where: Ray would try for ten minutes, and say nothing."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()
        except OSError as error:
            raise _nobody(address, error) from None


def _nobody(address: str, error: Exception) -> UserError:
    return UserError(f"RAY_ADDRESS is {address!r}, and no Ray answers there: {error}")


def _keep_token() -> None:
    """A token that only this user can read, for a Ray of our own.

    Its ports are open to the network, and to other users of the machine. Ray 2.60 lets in whoever has the token (unless
    RAY_AUTH_MODE says otherwise), and by itself writes it into a file that everybody may read.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    if path.stat().st_uid == os.getuid():
        path.chmod(0o600)


@contextmanager
def _muted() -> Iterator[None]:
    """Standard error to nowhere, at the level of the file: Ray's core announces its log level there, and only there.

    Whatever goes wrong meanwhile is raised, not printed.
    """
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
