"""The notebook of docs/ runs, and its calls name settings that exist."""

import ast
from typing import Any

import pytest

from pipeline.config.loader import combine_config, parse_alignment
from tests.helpers.paths import ROOT

nbformat = pytest.importorskip("nbformat")
NOTEBOOK = ROOT / "docs/results/from_python.ipynb"


def code_cells() -> list[str]:
    return [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]


def calls() -> list[tuple[str, list[Any], dict[str, Any]]]:
    """Each call of a function of `pipeline`: its name, and the arguments that are literals."""
    found = []
    for node in ast.walk(ast.parse("\n".join(code_cells()))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("run", "judge_card", "align")
        ):
            literal = {each.arg: each.value for each in node.keywords if not isinstance(each.value, ast.Name)}
            keywords = {name: ast.literal_eval(value) for name, value in literal.items() if name is not None}
            found.append((node.func.id, [ast.literal_eval(each) for each in node.args], keywords))
    return found


def test_its_calls_name_settings_that_exist() -> None:
    assert {name for name, _, _ in calls()} == {"run", "judge_card", "align"}
    for name, arguments, keywords in calls():
        if name == "align":
            start = keywords.pop("aligned")
            sections = {section: keywords.pop(section) for section in ("policy", "hardware")}
            sections["policy"]["model"] = start
            parse_alignment({"run": keywords.pop("out"), "pairs": "pairs.jsonl", "training": keywords, **sections})
        else:
            combine_config(ROOT / arguments[0], **keywords)


def test_its_cells_hold_no_results() -> None:
    """A stored result would be of another version."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.slow
def test_it_runs(tmp_path) -> None:
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("runs/", f"{tmp_path}/")
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(ROOT)}}).execute()
    report = next(cell for cell in notebook.cells if cell.source == "result.report()").outputs[0].data
    assert report["text/markdown"] == (tmp_path / "notebook/report.md").read_text(encoding="utf-8")
    assert (tmp_path / "notebook-aligned/policy/config.json").is_file()
