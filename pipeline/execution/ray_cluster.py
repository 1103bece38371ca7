"""Starts or joins Ray, and keeps it quiet.

A job of `ray job submit`, or RAY_ADDRESS, says which cluster to join. Else Ray is started on this machine, with token
authentication, and stopped at the end. A Ray that this process started before is used and left running.
"""

import logging
import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.config import UserError
from pipeline.config.hardware import Hardware

_EXECUTOR_TIMEOUT = 60.0  # seconds in which Ray Data's threads should end
_LOOK_TIMEOUT = 120.0  # seconds in which all nodes should say what GPUs they have
_MIB = 1 << 20


@contextmanager
def connected_ray(hardware: Hardware) -> Iterator[Hardware]:
    """Provide Ray while the block runs.

    Yields:
        the hardware settings. If a joined cluster has fewer CPUs than they ask for, each actor asks for fewer CPUs.

    Raises:
        UserError: there is no cluster to join, and this machine has fewer GPUs than the settings ask for; or no Ray
            answers at RAY_ADDRESS.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's C++ core bypasses Python's loggers
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault(
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5"
    )  # the default of 2 s delays the end of each training
    # It only logs which nodes are about to be taken away, and costs a process in each training.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    import ray
    from ray.data import DataContext

    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    is_running = ray.is_initialized()  # for example in a notebook
    joined = is_running or bool(os.environ.get("RAY_ADDRESS"))
    cpus = hardware.ray_cpus or max(os.cpu_count() or 1, hardware.cpus())
    options: dict[str, Any] = {} if joined else {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    if not joined:
        _create_token()
    elif not is_running:
        _check_address(os.environ["RAY_ADDRESS"])
    try:
        if not is_running:
            with _silenced_stderr():
                ray.init(**options, logging_level="error", log_to_driver=False)
    except ConnectionError as error:
        raise _no_ray(os.environ["RAY_ADDRESS"], error) from None
    try:
        gpus = ray.cluster_resources().get("GPU", 0)
        if not joined and hardware.gpus() > gpus:
            raise UserError(
                f"hardware asks for {hardware.gpus():g} GPUs at a time and this machine has {gpus:g}: lower "
                "hardware.*.gpus_per_replica, replicas or workers, "
                + ("set hardware.together=false, " if hardware.together else "")
                + "or join a cluster (README, On a cluster)"
            )
        if joined:
            _check_nodes(hardware)
        elif hardware.policy.nodes_per_replica > 1 or hardware.judge.nodes_per_replica > 1:
            raise UserError(
                "hardware has nodes_per_replica above 1, and Ray is started on this machine alone: join a cluster "
                "(README, On a cluster), or remove nodes_per_replica"
            )
        # Ray Data also raises the errors that it logs. A kept log record would keep engines alive.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # A cluster with GPUs may still grow. One without GPUs will not, and Ray Data would wait for more CPUs for ever.
        yield hardware.scaled_to(ray.cluster_resources().get("CPU", 0)) if joined and not hardware.gpus() else hardware
    finally:
        if not is_running:
            _wait_for_executors()
            ray.shutdown()


def gpu_memory_here() -> float | None:
    """Bytes of the smallest GPU of this machine; None if it has no GPU."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    sizes = [float(line) * _MIB for line in finished.stdout.split() if line.isdigit()]
    return min(sizes) if sizes and finished.returncode == 0 else None


def gpu_memory_of_cluster() -> float | None:
    """Bytes of the smallest GPU of the cluster's nodes; None if it has no GPU by now, or a node does not answer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0)(gpu_memory_here)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    try:
        sizes = ray.get([look.options(scheduling_strategy=place).remote() for place in places], timeout=_LOOK_TIMEOUT)
    except ray.exceptions.RayError:
        return None
    return min(sizes) if sizes and None not in sizes else None


def _check_nodes(hardware: Hardware) -> None:
    """Raise UserError if engines would wait for a node that the cluster does not have."""
    import ray

    gpus = [node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]]
    try:
        hardware.check_nodes(gpus)
    except ValueError as error:
        raise UserError(
            f"{error}. The nodes of the cluster have {', '.join(f'{count:g}' for count in gpus)} GPUs"
        ) from None


def _wait_for_executors() -> None:
    """Wait until Ray Data's threads have ended. One that calls Ray after `ray.shutdown()` makes Ray end this process.

    Ray Data itself waits for 2 s. After Ctrl-C its thread may need longer, if it waits for an actor that is starting.
    """
    deadline = time.monotonic() + _EXECUTOR_TIMEOUT
    for thread in threading.enumerate():
        if thread.name.startswith("StreamingExecutor"):
            thread.join(max(0.0, deadline - time.monotonic()))


def _check_address(address: str) -> None:
    """Check that a program listens at the address. Ray itself would try for ten minutes without a message."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()
        except OSError as error:
            raise _no_ray(address, error) from None


def _no_ray(address: str, error: Exception) -> UserError:
    return UserError(f"RAY_ADDRESS is {address!r}, and no Ray answers there: {error}")


def _create_token() -> None:
    """Create a token that only this user can read, for a Ray that we start.

    Ray's ports are open to the network, and to other users of the machine. Ray 2.60 accepts only clients with the token
    (unless RAY_AUTH_MODE says otherwise). Ray itself would write the token into a file that everybody can read.
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
def _silenced_stderr() -> Iterator[None]:
    """Discard what is written to standard error while the block runs, because Ray's core announces its log level there.

    The file descriptor itself is redirected. No error is lost: errors are raised, not printed.
    """
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)
