"""Tests deploy/: the schemas of Kubernetes and KubeRay, rules that every edit must keep, and `deploy/submit.py`."""

import copy
import importlib.util
import json
import shlex
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import httpx
import pytest
import ray
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from tests.helpers.paths import ROOT

DEPLOY = ROOT / "deploy"
SCHEMAS = {path.name: json.loads(path.read_text()) for path in (ROOT / "tests" / "repo" / "schemas").glob("*.json")}
REGISTRY = Registry().with_resources(
    (name, Resource.from_contents(schema, DRAFT202012)) for name, schema in SCHEMAS.items()
)
API_GROUP_OF_KIND = {
    "CronJob": "batch",
    "PersistentVolumeClaim": "core",
    "ServiceAccount": "core",
    "Role": "rbac",
    "RoleBinding": "rbac",
    "NetworkPolicy": "networking",
}


def documents() -> list[Any]:
    """All manifests in deploy/."""
    files = [path for path in sorted(DEPLOY.glob("*.yaml")) if path.name != "kustomization.yaml"]
    return [document for path in files for document in yaml.safe_load_all(path.read_text())]


def problems(document: Any) -> list[str]:
    """Errors of a manifest against its schema."""
    kind = document["kind"]
    if kind in API_GROUP_OF_KIND:
        schema = f"kubernetes.json#/$defs/io.k8s.api.{API_GROUP_OF_KIND[kind]}.v1.{kind}"
    else:
        schema = f"kuberay.json#/$defs/{kind}"
    errors = Draft202012Validator({"$ref": schema}, registry=REGISTRY).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in errors]


def of_kind(kind: str) -> Any:
    return next(document for document in documents() if document["kind"] == kind)


def pods(value: Any) -> Iterator[Any]:
    """Every pod spec, at any depth."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for part in value.values():
            yield from pods(part)
    elif isinstance(value, list):
        for part in value:
            yield from pods(part)


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every field, at any depth."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield (*path, name)
            yield from fields(part, (*path, name))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from fields(part, (*path, number))


@pytest.mark.parametrize("document", documents(), ids=lambda document: document["kind"])
def test_the_schemas_accept_the_manifest(document):
    assert problems(document) == []


FREE = {"labels", "matchLabels", "annotations", "rayStartParams", "requests", "limits"}  # maps with free keys


@pytest.mark.parametrize("document", documents(), ids=lambda document: document["kind"])
def test_the_schemas_detect_a_misspelt_field_anywhere(document):
    tested = 0
    for path in fields(document):
        if FREE & {str(part) for part in path[:-1]}:
            continue
        broken = copy.deepcopy(document)
        parent = broken
        for part in path[:-1]:
            parent = parent[part]
        if path == ("kind",):
            continue
        parent[f"{path[-1]}s_"] = parent.pop(path[-1])
        assert problems(broken), f"the schemas accept a misspelt {path}"
        tested += 1
    assert tested >= 3


@pytest.mark.parametrize("document", documents(), ids=lambda document: document["kind"])
def test_no_pod_runs_as_root_or_can_become_root(document):
    for pod in pods(document):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_ray_requires_a_token_and_its_dashboard_is_not_exposed():
    for spec in (of_kind("RayCluster")["spec"], of_kind("RayJob")["spec"]["rayClusterSpec"]):
        assert spec["authOptions"]["mode"] == "token"
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert not spec["headGroupSpec"].get("enableIngress")
    policy = of_kind("NetworkPolicy")["spec"]
    ours, operator = policy["ingress"]
    assert policy["policyTypes"] == ["Ingress"]
    assert ours["from"] == [{"podSelector": policy["podSelector"]}]
    assert [port["port"] for port in operator["ports"]] == [8265]
    (label,) = policy["podSelector"]["matchLabels"].items()
    spec = of_kind("RayJob")["spec"]
    cluster = spec["rayClusterSpec"]
    for template in (
        spec["submitterPodTemplate"],
        cluster["headGroupSpec"]["template"],
        *(group["template"] for group in cluster["workerGroupSpecs"]),
    ):
        assert label in template["metadata"]["labels"].items()


def test_keys_come_only_from_secrets():
    for document in documents():
        for pod in pods(document):
            for container in pod["containers"]:
                for variable in container.get("env", []):
                    assert not {"KEY", "TOKEN", "SECRET", "PASSWORD"} & set(variable["name"].split("_"))
                for source in container.get("envFrom", []):
                    assert set(source) == {"secretRef"}


def test_the_account_may_only_create_and_read_rayjobs():
    assert of_kind("Role")["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]


def test_the_rayjob_and_the_raycluster_have_the_same_spec():
    cluster = of_kind("RayCluster")["spec"]
    assert of_kind("RayJob")["spec"]["rayClusterSpec"] == cluster
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-gpus": "0"}
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == 0 < group["maxReplicas"]
    images = {
        container["image"] for document in documents() for pod in pods(document) for container in pod["containers"]
    }
    assert len(images) == 1


def test_a_round_is_not_started_twice():
    assert of_kind("CronJob")["spec"]["concurrencyPolicy"] == "Forbid"


def test_the_entrypoint_is_a_valid_rondo_command():
    import typer

    from jobs.cli import app

    shell, option, line = shlex.split(of_kind("RayJob")["spec"]["entrypoint"])
    assert (shell, option) == ("bash", "-c")
    words = shlex.split(line)
    assert words[:5] == ["cd", "/opt/rondo", "&&", "exec", "rondo"]
    name, *arguments = words[5:]
    command = typer.main.get_command(app).commands[name]
    parameters = command.make_context(name, arguments).params
    assert (ROOT / parameters["config"]).exists()
    assert parameters["once"] is True
    assert any(override.startswith("run=/") for override in parameters["overrides"])


# deploy/submit.py, with a fake Kubernetes API server


@pytest.fixture(scope="module")
def submit() -> Any:
    spec = importlib.util.spec_from_file_location("submit", DEPLOY / "submit.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kubernetes() -> Iterator[Any]:
    """A server for creating and reading RayJobs. Each read returns the next of `states`."""

    class Handler(BaseHTTPRequestHandler):
        jobs: ClassVar[dict[str, Any]] = {}
        states: ClassVar[list[dict[str, str]]] = []
        overloaded = 0

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if Handler.overloaded:
                Handler.overloaded -= 1
                return self._answer(503, {})
            if problems(body):
                return self._answer(422, {"message": problems(body)})
            if body["metadata"]["name"] in Handler.jobs:
                return self._answer(409, {"reason": "AlreadyExists"})
            Handler.jobs[body["metadata"]["name"]] = body
            return self._answer(201, body)

        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            if name not in Handler.jobs:
                return self._answer(404, {})
            return self._answer(200, {"status": Handler.states.pop(0) if Handler.states else {}})

        def _answer(self, status: int, body: Any) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    Handler.jobs, Handler.states = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}") as client:
        yield Handler, client
    server.shutdown()


RUNNING, DONE = {"jobDeploymentStatus": "Running"}, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
FAILED = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "the round ended with exit status 2"}


@pytest.mark.parametrize(("last", "succeeded"), [(DONE, True), (FAILED, False)])
def test_submit_waits_for_the_round_and_returns_its_result(submit, kubernetes, last, succeeded, capsys):
    cluster, api = kubernetes
    cluster.states = [{}, RUNNING, RUNNING, last]
    cluster.overloaded = 2
    assert submit.submit(api, "ml", of_kind("RayJob"), "rondo-1", "u-1", 0.01) is succeeded
    metadata = cluster.jobs["rondo-1"]["metadata"]
    assert metadata["ownerReferences"] == [{"apiVersion": "batch/v1", "kind": "Job", "name": "rondo-1", "uid": "u-1"}]
    assert "generateName" not in metadata
    output = capsys.readouterr().out
    assert output.count("Running") == 1
    assert succeeded or "exit status 2" in output


def test_a_second_pod_of_the_job_waits_for_the_same_rayjob(submit, kubernetes):
    cluster, api = kubernetes
    cluster.states = [DONE, RUNNING, DONE]
    assert submit.submit(api, "ml", of_kind("RayJob"), "rondo-1", "u-1", 0.01)
    assert submit.submit(api, "ml", of_kind("RayJob"), "rondo-1", "u-1", 0.01)
    assert len(cluster.jobs) == 1


def test_a_refused_rayjob_is_not_a_failed_round(submit, kubernetes):
    _, api = kubernetes
    with pytest.raises(submit.Unanswered, match="could not create the RayJob: 422"):
        submit.submit(api, "ml", of_kind("RayJob") | {"spec": {"entrypiont": "x"}}, "rondo-1", "u-1", 0.01)


def test_submit_stops_waiting_when_the_rayjob_is_deleted(submit, kubernetes):
    cluster, api = kubernetes

    def delete_once_read() -> None:
        while len(cluster.states) == 1000:
            time.sleep(0.01)
        cluster.jobs.clear()

    cluster.states = [RUNNING] * 1000
    threading.Thread(target=delete_once_read, daemon=True).start()
    assert submit.submit(api, "ml", of_kind("RayJob"), "rondo-1", "u-1", 0.01) is False
