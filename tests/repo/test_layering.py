"""Imports go one way, and what should be light is light."""

import ast
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

STAGES = {"articles", "questions", "summaries", "scores", "pairs", "references", "policy", "evaluation"} | {
    "own_pairs",
    "second",
    "drift",
    "replay",
}


def imports(path):
    """Modules that a file imports at any place in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


def python_files(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def importers(package, *folders):
    found = python_files(*folders)
    return [path.name for path in found if any(name.split(".")[0] == package for name in imports(path))]


@pytest.mark.parametrize("path", python_files("judges"), ids=lambda path: path.name)
def test_judges_need_the_standard_library_only(path):
    for name in imports(path):
        top = name.split(".")[0]
        assert top in sys.stdlib_module_names or top == "judges", f"{path.name} imports {name}"


@pytest.mark.parametrize("name", sorted(STAGES))
def test_stages_do_not_import_each_other(name):
    others = {f"pipeline.{other}" for other in STAGES - {name}}
    assert not others & set(imports(ROOT / "pipeline" / f"{name}.py"))


def test_only_one_module_imports_vllm():
    assert importers("vllm", "pipeline", "judges", "jobs") == ["vllm.py"]


def test_only_the_worker_imports_ray_for_training():
    assert importers("ray", "pipeline/training") == ["ray_job.py"]


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("jobs.cli", {"ray", "torch", "vllm", "pydantic", "pyarrow"}),
        ("pipeline", {"ray", "torch", "vllm", "pyarrow", "pydantic"}),
        ("pipeline.config.run", {"ray", "torch", "vllm", "pyarrow"}),
        ("pipeline.config.loader", {"ray", "torch", "vllm", "pyarrow"}),
        ("pipeline.data.preference_formats", {"ray", "torch", "vllm", "transformers"}),
        ("pipeline.judging.preference", {"ray", "torch", "vllm", "pyarrow"}),
        ("pipeline.storage.ledger", {"ray", "torch", "vllm"}),
        ("judges.mcq", {"ray", "torch", "vllm", "pydantic"}),
        ("pipeline.round", {"vllm"}),
    ],
)
def test_what_is_light_stays_light(module, without):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not without & set(loaded.split())


def test_modules_say_what_they_are_for_and_have_one_idea():
    for path in python_files("pipeline", "judges", "jobs", "newsroom"):
        text = path.read_text(encoding="utf-8")
        assert len(text.split("\n")) <= 350, f"{path} has two ideas in it"
        if text.strip():
            assert ast.get_docstring(ast.parse(text)), f"{path} does not say what it is for"
