"""Creates a RayJob, waits for its end, and exits with its result. The CronJob's pod runs this script.

The pod lives as long as the round. So concurrencyPolicy covers the whole round, the CronJob's history lists rounds, and
deleting a Job deletes its RayJob. If a pod is lost, the one that Kubernetes starts instead finds the existing RayJob
and waits for it.

Exit status: 0 if the round succeeded, 1 if it failed, 2 if Kubernetes did not answer.
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
POLL_SECONDS = 20.0  # between two requests for the status
GIVE_UP_SECONDS = 600.0  # without an answer; then Kubernetes may start another pod


class Unanswered(Exception):
    """Kubernetes does not answer, or not with the status of the RayJob."""


def submit(api: httpx.Client, namespace: str, rayjob: Mapping[str, Any], name: str, uid: str, pause: float) -> bool:
    """Create a RayJob owned by a Job, unless it exists, and wait for its end.

    Args:
        api: client of the Kubernetes API, with authentication.
        namespace: of the Job and the RayJob.
        rayjob: the manifest.
        name, uid: of the Job; the RayJob gets the same name.
        pause: seconds between two requests.

    Returns:
        whether the round succeeded.

    Raises:
        Unanswered: the result cannot be found out.
    """
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
    metadata = {k: v for k, v in rayjob.get("metadata", {}).items() if k != "generateName"}
    manifest = {**rayjob, "metadata": {**metadata, "name": name, "ownerReferences": [owner]}}
    path = f"/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    response = _request(api, "POST", path, pause, manifest)
    if response.status_code not in (201, 409):
        raise Unanswered(f"could not create the RayJob: {response.status_code} {response.text[:500]}")
    print(f"RayJob {name} {'created' if response.status_code == 201 else 'exists'}", flush=True)
    printed_state = ""
    while True:
        response = _request(api, "GET", f"{path}/{name}", pause)
        if response.status_code == 404:
            print(f"RayJob {name} was deleted", flush=True)
            return False
        if response.status_code != 200:
            raise Unanswered(f"could not read RayJob {name}: {response.status_code} {response.text[:500]}")
        status = response.json().get("status") or {}
        state = status.get("jobDeploymentStatus", "")
        if state != printed_state:
            print(f"RayJob {name}: {state}  {status.get('message', '')}".rstrip(), flush=True)
            printed_state = state
        if state in ENDED:
            return status.get("jobStatus") == "SUCCEEDED"
        time.sleep(pause)


def _request(api: httpx.Client, method: str, path: str, pause: float, body: Any = None) -> httpx.Response:
    """Send a request. Retry while the server does not answer or is overloaded (429, 5xx)."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while True:
        try:
            response = api.request(method, path, json=body)
            if response.status_code < 500 and response.status_code != 429:
                return response
            problem = f"{response.status_code} {response.text[:500]}"
        except httpx.TransportError as error:
            problem = str(error)
        if time.monotonic() > deadline:
            raise Unanswered(f"Kubernetes did not answer for {GIVE_UP_SECONDS:.0f} s: {problem}")
        time.sleep(pause)


def _with_token(request: httpx.Request) -> httpx.Request:
    # Read for every request, because Kubernetes replaces the token every hour.
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
            return 0 if submit(api, namespace, rayjob, name, uid, POLL_SECONDS) else 1
        except Unanswered as error:
            print(f"error: {error}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
