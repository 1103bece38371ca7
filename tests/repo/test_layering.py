"""Tests of the code's structure: import order, light modules, folder sizes, docstrings, and file names in prose."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

CODE = ("pipeline", "judges", "jobs", "newsroom", "bench")
# A package may import the packages of earlier lines. Packages of the same line do not import each other.
ORDER = (
    ("judges",),
    ("pipeline.config",),
    ("pipeline.storage",),
    ("pipeline.data", "pipeline.inference", "pipeline.training"),
    ("pipeline.judging", "pipeline.trl"),
    ("pipeline.stages",),
    ("pipeline.evaluation", "pipeline.execution"),
    ("pipeline.round",),
    ("jobs",),
    ("pipeline",),  # its __init__ exports `run`, `align` and `judge_card`
    ("newsroom",),
    ("bench",),
    ("tests",),
)


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def module_name(path: Path) -> str:
    """`pipeline.config.run` for its file, `pipeline.config` for the package's __init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in python_files(*CODE, "tests")}


def imported_names(path: Path) -> Iterator[str]:
    """The names that a file imports, also inside functions. `from a.b import c` gives both `a.b` and `a.b.c`."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imported_modules(name: str) -> frozenset[str]:
    """Modules of this repository that a module imports.

    `from a.b import c` counts as an import of `a.b.c` if that is a module, else of `a.b`.
    """
    modules = set()
    for node in ast.walk(parse(MODULES[name])):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                modules.add(submodule if submodule in MODULES else node.module)
    return frozenset(modules & MODULES.keys())


def package_of(module: str) -> str:
    """The entry of ORDER to which a module belongs: the longest that is a prefix of its name."""
    packages = (package for group in ORDER for package in group)
    return max((p for p in packages if f"{module}.".startswith(f"{p}.")), key=len)


def rank(package: str) -> int:
    return next(i for i, group in enumerate(ORDER) if package in group)


def test_every_package_of_the_pipeline_is_in_the_order():
    """Otherwise its modules would belong to `pipeline`, which may import all other packages under pipeline/."""
    assert [name for name in MODULES if package_of(name) == "pipeline"] == ["pipeline"]


@pytest.mark.parametrize("package", [package for group in ORDER for package in group])
def test_a_package_imports_only_earlier_ones(package):
    wrong = []
    for module in (name for name in MODULES if package_of(name) == package):
        for target in sorted(imported_modules(module)):
            other = package_of(target)
            if other != package and rank(other) >= rank(package):
                wrong.append(f"{module} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_no_imports_are_circular():
    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for module in imported_modules(waiting.pop()) - seen:
                seen.add(module)
                waiting.append(module)
        return seen

    reached = {name: reachable(name) for name in MODULES}
    cycles = {frozenset(other for other in reached[name] if name in reached[other]) for name in MODULES}
    assert not [sorted(cycle) for cycle in cycles if cycle]


def test_stages_do_not_import_each_other():
    stages = {name for name in MODULES if name.startswith("pipeline.stages.")} - {"pipeline.stages.base"}
    wrong = {name: sorted(imported_modules(name) & (stages - {name})) for name in stages}
    assert not {name: others for name, others in wrong.items() if others}


def test_test_files_share_code_through_helpers_only():
    test_files = {name for name in MODULES if name.rpartition(".")[2].startswith("test_")}
    wrong = {name: sorted(imported_modules(name) & test_files) for name in MODULES}
    assert not {name: others for name, others in wrong.items() if others}


def importers(package: str, *folders: str) -> list[str]:
    """The files in `folders` that import an external package, also inside functions."""
    return [
        str(path.relative_to(ROOT))
        for path in python_files(*folders)
        if any(name.split(".")[0] == package for name in imported_names(path))
    ]


@pytest.mark.parametrize("path", python_files("judges"), ids=lambda path: path.name)
def test_judges_need_light_libraries_only(path):
    """The standard library, regex, and two libraries for text in judges/text.

    So a judge can be tried without Ray or torch.
    """
    allowed = {*sys.stdlib_module_names, "judges", "regex"}
    if path.is_relative_to(ROOT / "judges" / "text"):
        allowed |= {"sentencex", "py3langid"}
    assert not {name for name in imported_names(path) if name.split(".")[0] not in allowed}


def test_only_one_module_imports_vllm():
    assert importers("vllm", "pipeline", "judges", "jobs") == ["pipeline/inference/vllm.py"]


def test_only_the_harness_imports_lm_eval():
    assert importers("lm_eval", "pipeline", "judges", "jobs") == ["pipeline/evaluation/benchmark/harness.py"]


def test_only_the_ray_job_imports_ray_for_training():
    assert {str(Path(path).parent) for path in importers("ray", "pipeline/training")} == {"pipeline/training/ray_job"}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("jobs.cli", {"ray", "torch", "vllm", "pydantic", "pyarrow"}),
        ("pipeline", {"ray", "torch", "vllm", "pyarrow", "pydantic"}),
        ("pipeline.config.run", {"ray", "torch", "vllm", "pyarrow"}),
        ("pipeline.config.loader", {"ray", "torch", "vllm", "pyarrow"}),
        ("pipeline.data.preference_formats", {"ray", "torch", "vllm", "transformers"}),
        ("pipeline.judging.preference", {"ray", "torch", "vllm", "pyarrow"}),
        ("pipeline.storage.ledger", {"ray", "torch", "vllm"}),
        ("judges.mcq", {"ray", "torch", "vllm", "pydantic"}),
        ("judges.text.languages", {"ray", "torch", "vllm", "pydantic", "numpy"}),  # the model is loaded when needed
        ("judges.text.sentences", {"ray", "torch", "vllm", "pydantic", "numpy"}),
        ("judges.text.tokens", {"ray", "torch", "vllm", "pydantic", "numpy"}),
        ("pipeline.round", {"vllm"}),
    ],
)
def test_light_modules_do_not_load_heavy_packages(module, forbidden):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not forbidden & set(loaded.split())


def folders_of(root: str) -> list[Path]:
    return [ROOT / root, *(path for path in sorted((ROOT / root).rglob("*")) if path.is_dir())]


@pytest.mark.parametrize("root", [*CODE, "tests"])
def test_a_folder_has_at_most_ten_entries(root):
    """Beside __init__.py, and `pipeline/trl/`, which users import by this name as they import `trl`."""
    counts = {}
    for folder in folders_of(root):
        if "__pycache__" not in folder.parts:
            entries = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
            not_counted = {"__init__.py", "__pycache__"} | ({"trl"} if folder == ROOT / "pipeline" else set())
            counts[str(folder.relative_to(ROOT))] = len(entries - not_counted)
    assert not {folder: count for folder, count in counts.items() if count > 10}


def test_every_module_and_package_has_a_docstring():
    without_docstring = [str(path.relative_to(ROOT)) for path in MODULES.values() if not ast.get_docstring(parse(path))]
    assert not without_docstring


def test_docstrings_of_pipeline_packages_have_3_to_10_lines():
    packages = [path for path in python_files("pipeline") if path.name == "__init__.py"]
    lines = {str(path.relative_to(ROOT)): len(ast.get_docstring(parse(path)).splitlines()) for path in packages}
    assert not {path: count for path, count in lines.items() if not 3 <= count <= 10}


def prose(path: Path) -> Iterator[str]:
    """Docstrings and comments of a file."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def test_file_names_in_docstrings_and_comments_exist():
    """A name is relative to the file's folder, to a folder above it, or to pipeline/."""
    missing = []
    for path in python_files(*CODE, "tests"):
        folders = [ROOT / "pipeline", *(folder for folder in path.parents if folder.is_relative_to(ROOT))]
        for text in prose(path):
            names = re.findall(r"[\w./-]*\w\.py\b|docs/[\w/-]+\.md\b", text)
            unknown = [name for name in names if not any((folder / name).exists() for folder in folders)]
            missing += [f"{path.relative_to(ROOT)}: {name}" for name in unknown]
    assert not missing, "\n".join(missing)
