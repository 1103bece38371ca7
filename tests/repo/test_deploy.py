"""deploy/ against the schemas of Kubernetes and KubeRay, what must hold of any edit of it, and what submits a round."""

import copy
import importlib.util
import json
import shlex
import threading
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
OF_KUBERNETES = {
    "CronJob": "batch",
    "PersistentVolumeClaim": "core",
    "ServiceAccount": "core",
    "Role": "rbac",
    "RoleBinding": "rbac",
    "NetworkPolicy": "networking",
}


def documents() -> list[Any]:
    files = [path for path in sorted(DEPLOY.glob("*.yaml")) if path.name != "kustomization.yaml"]
    return [document for path in files for document in yaml.safe_load_all(path.read_text())]


def problems(document: Any) -> list[str]:
    kind = document["kind"]
    if kind in OF_KUBERNETES:
        where = f"kubernetes.json#/$defs/io.k8s.api.{OF_KUBERNETES[kind]}.v1.{kind}"
    else:
        where = f"kuberay.json#/$defs/{kind}"
    found = Draft202012Validator({"$ref": where}, registry=REGISTRY).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]


def of_kind(kind: str) -> Any:
    return next(document for document in documents() if document["kind"] == kind)


def pods(value: Any) -> Iterator[Any]:
    """Every pod's spec, wherever it is."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for part in value.values():
            yield from pods(part)
    elif isinstance(value, list):
        for part in value:
            yield from pods(part)


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every field."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield (*path, name)
            yield from fields(part, (*path, name))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from fields(part, (*path, number))


@pytest.mark.parametrize("document", documents(), ids=lambda document: document["kind"])
def test_the_schemas_accept_it(document):
    assert problems(document) == []


FREE = {"labels", "matchLabels", "annotations", "rayStartParams", "requests", "limits"}  # maps, of names of one's own


@pytest.mark.parametrize("document", documents(), ids=lambda document: document["kind"])
def test_a_misspelt_field_is_found_wherever_it_is(document):
    tried = 0
    for path in fields(document):
        if FREE & {str(part) for part in path[:-1]}:
            continue
        broken = copy.deepcopy(document)
        place = broken
        for part in path[:-1]:
            place = place[part]
        if path == ("kind",):
            continue
        place[f"{path[-1]}s_"] = place.pop(path[-1])
        assert problems(broken), f"{path} may be misspelt"
        tried += 1
    assert tried >= 3


@pytest.mark.parametrize("document", documents(), ids=lambda document: document["kind"])
def test_no_pod_is_root_or_may_become_it(document):
    for pod in pods(document):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_ray_wants_a_token_and_its_dashboard_is_not_exposed():
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


def test_secrets_come_from_secrets_and_from_nowhere_else():
    for document in documents():
        for pod in pods(document):
            for container in pod["containers"]:
                for variable in container.get("env", []):
                    assert not {"KEY", "TOKEN", "SECRET", "PASSWORD"} & set(variable["name"].split("_"))
                for source in container.get("envFrom", []):
                    assert set(source) == {"secretRef"}


def test_the_account_that_submits_may_make_a_rayjob_and_look_at_it():
    assert of_kind("Role")["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]


def test_the_job_brings_the_cluster_that_stands_beside_it():
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


def test_the_entrypoint_is_a_command_that_there_is():
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


# What submits a round, before a server that speaks as Kubernetes does


@pytest.fixture(scope="module")
def submit() -> Any:
    spec = importlib.util.spec_from_file_location("submit", DEPLOY / "submit.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kubernetes() -> Iterator[Any]:
    """RayJobs, made and looked at over HTTP; each look is answered with the next of `states`."""

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
def test_it_waits_for_the_round_and_ends_as_it_did(submit, kubernetes, last, succeeded, capsys):
    cluster, api = kubernetes
    cluster.states = [{}, RUNNING, RUNNING, last]
    cluster.overloaded = 2
    assert submit.submit(api, "ml", of_kind("RayJob"), "rondo-1", "u-1", 0.01) is succeeded
    made = cluster.jobs["rondo-1"]["metadata"]
    assert made["ownerReferences"] == [{"apiVersion": "batch/v1", "kind": "Job", "name": "rondo-1", "uid": "u-1"}]
    assert "generateName" not in made
    said = capsys.readouterr().out
    assert said.count("Running") == 1
    assert succeeded or "exit status 2" in said


def test_a_second_pod_of_the_job_waits_for_the_same_round(submit, kubernetes):
    cluster, api = kubernetes
    cluster.states = [DONE, RUNNING, DONE]
    assert submit.submit(api, "ml", of_kind("RayJob"), "rondo-1", "u-1", 0.01)
    assert submit.submit(api, "ml", of_kind("RayJob"), "rondo-1", "u-1", 0.01)
    assert len(cluster.jobs) == 1


def test_what_kubernetes_refuses_is_no_failed_round(submit, kubernetes):
    _, api = kubernetes
    with pytest.raises(submit.Unanswered, match="no RayJob could be made: 422"):
        submit.submit(api, "ml", of_kind("RayJob") | {"spec": {"entrypiont": "x"}}, "rondo-1", "u-1", 0.01)


def test_a_rayjob_that_somebody_removed_is_not_waited_for(submit, kubernetes):
    cluster, api = kubernetes
    threading.Timer(0.3, cluster.jobs.clear).start()
    cluster.states = [RUNNING] * 1000
    assert submit.submit(api, "ml", of_kind("RayJob"), "rondo-1", "u-1", 0.01) is False
