"""A local server that speaks the Hugging Face hub's API, as far as `huggingface_hub` needs it to push a folder."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_Secret0123456789abcdef"
OWNER = "ann"


@dataclass
class Repo:
    """A repository: its files by branch, and the messages of its commits."""

    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """The hub. It knows one token, which may write to `OWNER`'s repositories.

    Attributes:
        url: its address.
        repos: by "models/OWNER/NAME" or "datasets/OWNER/NAME".
        requests: the method and the path of each request, in order.
        fail: the status of each answer to a commit; 0: it works.
    """

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    fail: int = 0


@contextmanager
def serving() -> Iterator[Hub]:
    """Run the server while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        status, answer = self._answer(path, body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        if "error" in answer:
            self.send_header("X-Error-Message", answer["error"])
        if "code" in answer:
            self.send_header("X-Error-Code", answer["code"])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if path.startswith("/blobs/"):  # the storage of large files, to which no token goes
            self.hub.blobs[path.rpartition("/")[2]] = body
            return 200, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given != TOKEN:
            return 401, {"error": f"Invalid credentials in Authorization header: {given}"}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith("/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        kind, owner, name, *rest = path.removeprefix("/api/").split("/")
        repo = self.hub.repos.get(f"{kind}/{owner}/{name}")
        if repo is None:
            return 404, {"error": "Repository not found", "code": "RepoNotFound"}
        if self.command != "GET" and owner != OWNER:
            return 403, {"error": f"You don't have the rights to write to {owner}/{name}"}
        return self._use(repo, rest, body)

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        owner = wanted.get("organization") or OWNER
        if owner != OWNER:
            return 403, {"error": f"You don't have the rights to create a model under the namespace {owner}"}
        key = f"{wanted.get('type', 'model')}s/{owner}/{wanted['name']}"
        self.hub.repos[key] = Repo(private=wanted.get("private") or wanted.get("visibility") == "private")
        return 200, {"url": f"{self.hub.url}/{owner}/{wanted['name']}"}

    def _batch(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.url}/blobs/{each['oid']}"}}}
            for each in wanted["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def _use(self, repo: Repo, rest: list[str], body: bytes) -> tuple[int, Any]:
        action, branch = [*rest, "", ""][:2]
        files = repo.branches.get(branch or "main")
        if action == "branch":
            repo.branches[branch] = dict(repo.branches["main"])
            return 200, {}
        if action in ("", "revision"):
            siblings = [{"rfilename": name} for name in files or ()]
            return 200, {"id": "x", "private": repo.private, "siblings": siblings, "sha": "0" * 40, "tags": []}
        if files is None:
            return 404, {"error": "Invalid rev id", "code": "RevisionNotFound"}
        if action == "tree":
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()]
            return 200, tree
        if action == "preupload":
            modes = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith((".safetensors", ".parquet")) else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(body)["files"]
            ]
            return 200, {"files": modes}
        assert action == "commit", self.path
        return self._commit(repo, files, body)

    def _commit(self, repo: Repo, files: dict[str, bytes], body: bytes) -> tuple[int, Any]:
        if self.hub.fail:
            return self.hub.fail, {"error": "it does not work today"}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repo.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                data = self.hub.blobs[value["oid"]]
                assert hashlib.sha256(data).hexdigest() == value["oid"]
                files[value["path"]] = data
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        return 200, {
            "commitUrl": f"{self.hub.url}/{OWNER}/x/commit/{'0' * 40}",
            "commitOid": "0" * 40,
            "pullRequestUrl": None,
        }
