"""The pinned requirements, what pip's settings become for uv, and what no file of the repository may hold."""

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
    """Package to version. Whatever is not exactly `package==version`, an address or an option say, is an error here."""
    found = {}
    for name in names:
        for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
            if not line.startswith("#"):
                package, version = line.split("==")
                found[canonicalize_name(Requirement(line).name)] = Version(version)
                assert package == Requirement(line).name
    return found


@pytest.mark.parametrize(("files", "extras"), [(["cpu"], ["cpu"]), (["gpu"], ["gpu"]), (["cpu", "dev"], ["dev"])])
def test_pins_satisfy_pyproject(files, extras):
    pinned = pins(*files)
    wanted = list(PROJECT["dependencies"])
    for extra in extras:
        wanted += PROJECT["optional-dependencies"][extra]
    for requirement in map(Requirement, wanted):
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier


def test_dev_only_adds():
    assert not pins("dev").keys() & (pins("cpu") | pins("gpu")).keys()


def test_a_cpu_head_and_gpu_workers_understand_each_other():
    cpu, gpu = pins("cpu"), pins("gpu")
    for package in ("ray", "cloudpickle", "pyarrow", "numpy", "pandas", "torch", "transformers", "pydantic"):
        assert cpu[package].public == gpu[package].public


def test_the_cpu_set_leaves_out_what_breaks_transformers():
    assert not {"torchvision", "torchaudio", "torchcodec"} & pins("cpu", "dev").keys()


@pytest.fixture(scope="module")
def installer():
    spec = importlib.util.spec_from_file_location("install", ROOT / "requirements" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_uv_looks_where_pip_would(installer, monkeypatch, tmp_path):
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://mirror.example/simple\nfind-links = /a\n    /b\ntimeout = 9\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_FIND_LINKS", "/c /d")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://only-for-uv.example/simple")
    settings = installer.pip_settings_for_uv(sys.executable)
    assert settings["UV_FIND_LINKS"] == "/c,/d"  # the environment wins over the file, as in pip
    assert settings["UV_DEFAULT_INDEX"] == "https://only-for-uv.example/simple"  # and uv's own over both
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    settings = installer.pip_settings_for_uv(sys.executable)
    assert settings["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert settings["UV_FIND_LINKS"] == "/a,/b"


def test_no_file_names_a_registry_or_a_path_of_one_machine():
    hosts = [("pypi", "org"), ("pythonhosted", "org"), ("download", "pytorch", "org"), ("registry", "npmjs", "org")]
    hosts += [("deb", "debian", "org"), ("conda", "anaconda", "org"), ("ghcr", "io"), ("docker", "io")]
    patterns = [r"\.".join(host) for host in hosts] + [r"(^|[^.[:alnum:]_])/(work|root)/"]
    search = ["git", "grep", "--untracked", "-nIE", "|".join(patterns), "--", "."]
    found = subprocess.run(search, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode > 1:
        pytest.skip("not a git checkout: " + found.stderr.strip())
    assert found.stdout == ""


def test_no_test_is_switched_off():
    """--strict-markers lets pytest's own skip and xfail through; a test is slow, needs a GPU, or runs."""
    allowed = {"slow", "gpu", "parametrize", "usefixtures"}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pytest.mark":
                assert node.attr in allowed, f"{path.name}:{node.lineno} uses pytest.mark.{node.attr}"
