"""What the CronJob's pod runs: makes a RayJob, waits for its end, and ends as it did.

So concurrencyPolicy holds for the round, the CronJob's history is one of rounds, and a Job that is removed takes its
RayJob with it. A pod that Kubernetes starts in the place of a lost one finds the RayJob there, and waits on.

Exit status: 0 the round succeeded, 1 it failed, 2 Kubernetes could not be asked.
"""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
ENDED = ("Complete", "Failed", "ValidationFailed")
PAUSE = 20.0  # seconds between two looks
PATIENCE = 600.0  # seconds without an answer, before another pod may try


class Unanswered(Exception):
    """Kubernetes gives no answer, or one that is no use."""


def submit(api: httpx.Client, namespace: str, rayjob: Mapping[str, Any], name: str, uid: str, pause: float) -> bool:
    """Make a RayJob that belongs to a Job, unless it is there, and wait for its end.

    Args:
        api: where Kubernetes answers, with what it wants to be shown.
        name, uid: the Job's.

    Returns:
        whether the round succeeded.

    Raises:
        Unanswered: there is no way to know.
    """
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
    metadata = {k: v for k, v in rayjob.get("metadata", {}).items() if k != "generateName"}
    wanted = {**rayjob, "metadata": {**metadata, "name": name, "ownerReferences": [owner]}}
    place = f"/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    answer = _ask(api, "POST", place, pause, wanted)
    if answer.status_code not in (201, 409):
        raise Unanswered(f"no RayJob could be made: {answer.status_code} {answer.text[:500]}")
    print(f"RayJob {name} is {'made' if answer.status_code == 201 else 'there'}", flush=True)
    told = ""
    while True:
        answer = _ask(api, "GET", f"{place}/{name}", pause)
        if answer.status_code == 404:
            print(f"RayJob {name} was removed", flush=True)
            return False
        if answer.status_code != 200:
            raise Unanswered(f"RayJob {name}: {answer.status_code} {answer.text[:500]}")
        status = answer.json().get("status") or {}
        state = status.get("jobDeploymentStatus", "")
        if state != told:
            print(f"RayJob {name}: {state}  {status.get('message', '')}".rstrip(), flush=True)
            told = state
        if state in ENDED:
            return status.get("jobStatus") == "SUCCEEDED"
        time.sleep(pause)


def _ask(api: httpx.Client, method: str, path: str, pause: float, body: Any = None) -> httpx.Response:
    """One question, asked again while nobody or an overloaded server answers."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            answer = api.request(method, path, json=body)
            why = f"{answer.status_code} {answer.text[:500]}"
            if answer.status_code < 500 and answer.status_code != 429:
                return answer
        except httpx.TransportError as error:
            why = str(error)
        if time.monotonic() > deadline:
            raise Unanswered(why)
        time.sleep(pause)


def _with_token(request: httpx.Request) -> httpx.Request:
    # Read each time: Kubernetes puts a new one there every hour.
    request.headers["Authorization"] = f"Bearer {(ACCOUNT / 'token').read_text().strip()}"
    return request


def main(path: str) -> int:
    rayjob = yaml.safe_load(Path(path).read_text())
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    address = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    namespace = (ACCOUNT / "namespace").read_text().strip()
    with httpx.Client(base_url=address, verify=str(ACCOUNT / "ca.crt"), auth=_with_token, timeout=30) as api:
        try:
            name, uid = os.environ["JOB_NAME"], os.environ["JOB_UID"]
            return 0 if submit(api, namespace, rayjob, name, uid, PAUSE) else 1
        except Unanswered as error:
            print(f"error: {error}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
