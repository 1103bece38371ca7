"""Tests of the setup: pinned requirements, pip's settings for uv, pytest's markers, no registry or local path."""

import ast
import importlib.util
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.helpers.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(*names: str) -> dict[str, Version]:
    """The pinned version of each package. Fails on any line but `package==version`, such as a URL or an option."""
    versions = {}
    for name in names:
        for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
            if not line.startswith("#"):
                package, version = line.split("==")
                versions[canonicalize_name(Requirement(line).name)] = Version(version)
                assert package == Requirement(line).name
    return versions


@pytest.mark.parametrize(
    ("files", "extras"),
    [
        (["cpu"], ["cpu"]),
        (["gpu"], ["gpu"]),
        (["cpu", "benchmark"], ["benchmark"]),
        (["cpu", "dev"], ["benchmark", "dev"]),
        (["cpu", "docs"], ["docs"]),
    ],
)
def test_pins_satisfy_pyproject(files, extras):
    pinned = pins(*files)
    required = list(PROJECT["dependencies"])
    for extra in extras:
        required += PROJECT["optional-dependencies"][extra]
    for requirement in map(Requirement, required):
        if requirement.name != PROJECT["name"]:  # `dev` has what `benchmark` has
            assert pinned[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("extra", ["benchmark", "dev", "docs"])
def test_an_extra_has_only_additional_packages(extra):
    added, cpu, gpu = pins(extra), pins("cpu"), pins("gpu")
    assert not added.keys() & cpu.keys()
    assert all(gpu.get(name, version) == version for name, version in added.items())


def test_a_cpu_head_and_gpu_workers_have_the_same_versions():
    cpu, gpu = pins("cpu"), pins("gpu")
    for package in ("ray", "cloudpickle", "pyarrow", "numpy", "pandas", "torch", "transformers", "pydantic"):
        assert cpu[package].public == gpu[package].public


def test_the_cpu_packages_exclude_those_that_break_transformers():
    assert not {"torchvision", "torchaudio", "torchcodec"} & pins("cpu", "dev").keys()


@pytest.fixture(scope="module")
def installer():
    spec = importlib.util.spec_from_file_location("install", ROOT / "requirements" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_uv_uses_the_package_indexes_of_pip(installer, monkeypatch, tmp_path):
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://mirror.example/simple\nfind-links = /a\n    /b\ntimeout = 9\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_FIND_LINKS", "/c /d")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://only-for-uv.example/simple")
    settings = installer.pip_settings_for_uv(sys.executable)
    assert settings["UV_FIND_LINKS"] == "/c,/d"  # the environment overrides the file, as in pip
    assert settings["UV_DEFAULT_INDEX"] == "https://only-for-uv.example/simple"  # and uv's own variables override both
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    settings = installer.pip_settings_for_uv(sys.executable)
    assert settings["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert settings["UV_FIND_LINKS"] == "/a,/b"


def test_no_file_contains_a_registry_or_a_local_path():
    hosts = [("pypi", "org"), ("pythonhosted", "org"), ("download", "pytorch", "org"), ("registry", "npmjs", "org")]
    hosts += [("deb", "debian", "org"), ("conda", "anaconda", "org"), ("ghcr", "io"), ("docker", "io")]
    patterns = [r"\.".join(host) for host in hosts] + [r"(^|[^.[:alnum:]_])/(work|root)/"]
    search = ["git", "grep", "--untracked", "-nIE", "|".join(patterns), "--", "."]
    matches = subprocess.run(search, cwd=ROOT, capture_output=True, text=True, check=False)
    if matches.returncode > 1:
        pytest.skip("not a git checkout: " + matches.stderr.strip())
    assert matches.stdout == ""


def test_no_test_has_a_marker_that_skips_it():
    """`--strict-markers` still allows skip and xfail, which are pytest's own. This project does not use them."""
    allowed = {"slow", "gpu", "parametrize", "usefixtures"}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pytest.mark":
                assert node.attr in allowed, f"{path.name}:{node.lineno} uses pytest.mark.{node.attr}"
