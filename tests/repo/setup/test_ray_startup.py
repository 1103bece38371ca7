"""Tests that every documented start of Ray, and our own, requires a token and hides the dashboard."""

import os
import re
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

FILES = [
    ROOT / "README.md",
    ROOT / "cluster.yaml",
    *sorted((*(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").iterdir())),
]
PAGES = [str(path.relative_to(ROOT)) for path in FILES]


def starts(text):
    """Yield each `ray start` with its options, which may span lines, and whether RAY_AUTH_MODE=token is set for it."""
    joined = re.sub(r"\\\n\s*", " ", text)
    joined = re.sub(r"(ray start[^\n]*)\n\s+(?=--)", r"\1 ", joined)
    for match in re.finditer(r"^[^\n#]*\bray start (?=-)[^\n]*", joined, re.M):
        block = joined[: match.start()].rpartition("```")[2]
        yield match[0], "RAY_AUTH_MODE=token" in match[0] or "export RAY_AUTH_MODE=token" in block


def test_every_documented_start_requires_a_token():
    documented = [(page, *start) for page in PAGES for start in starts((ROOT / page).read_text())]
    assert len(documented) >= 4  # README.md, deploy/cluster.md, and head and workers in cluster.yaml
    for page, command, token in documented:
        assert token, f"{page}: {command} lacks RAY_AUTH_MODE=token"
        if "--head" in command:
            assert "--dashboard-host=127.0.0.1" in command, f"{page}: {command}"


@pytest.mark.parametrize("page", PAGES)
def test_no_page_exposes_the_dashboard_or_disables_tokens(page):
    text = (ROOT / page).read_text()
    assert not re.search(r"dashboard-host[=: '\"]*(0\.0\.0\.0|::)", text)
    assert not re.search(r"RAY_AUTH_MODE[=: ]*disabled|mode: disabled", text)
    for address in re.findall(r"job submit --address (\S+)", text):
        assert address == "http://127.0.0.1:8265"


def test_the_check_detects_an_unsafe_start():
    unsafe = "```\nray start --head \\\n    --dashboard-host=0.0.0.0\n```\n"
    ((command, token),) = starts(unsafe)
    assert "--dashboard-host=0.0.0.0" in command and not token


START_RAY = """
import os, sys, time
from pipeline.execution.ray_cluster import connected_ray
from pipeline.config.hardware import Hardware
with connected_ray(Hardware(ray_cpus=2)):
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.readline()
"""
CONNECT = """
import sys, ray
from ray.exceptions import AuthenticationError
try:
    ray.init(address=sys.argv[1], logging_level="fatal", log_to_driver=False)
except (ConnectionError, AuthenticationError):
    sys.exit(3)
"""


@pytest.fixture
def our_ray(tmp_path):
    """A Ray as `rondo run` starts it, with a new home folder. Gives its address and environment."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", START_RAY],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        umask=0,
    )
    yield process.stdout.readline().strip(), environment
    process.communicate("\n", timeout=60)
    assert process.returncode == 0


def test_our_ray_admits_nobody_without_the_token(our_ray, tmp_path):
    address, environment = our_ray
    token = tmp_path / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o077 == 0
    stranger = environment | {"HOME": str(tmp_path / "another"), "RAY_BACKEND_LOG_LEVEL": "fatal"}
    for client_environment, status in (
        (stranger | {"RAY_AUTH_MODE": "disabled"}, 3),
        (environment | {"RAY_AUTH_MODE": "token"}, 0),
    ):
        command = [sys.executable, "-c", CONNECT, address]
        process = subprocess.run(command, env=client_environment, capture_output=True, timeout=100, check=False)
        assert process.returncode == status, process.stderr


def test_an_address_without_ray_is_reported_at_once(monkeypatch):
    import ray

    from pipeline.config import UserError
    from pipeline.config.hardware import Hardware
    from pipeline.execution.ray_cluster import connected_ray

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray itself tries for ten minutes"))
    with (
        pytest.raises(UserError, match="RAY_ADDRESS is '127.0.0.1:1', and no Ray answers there"),
        connected_ray(Hardware()),
    ):
        pass
