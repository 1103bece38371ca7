"""The notebook of docs/ runs, and its calls name settings that exist."""

import pytest

from tests.helpers.paths import ROOT
from tests.repo.docs.documentation import check_call, pipeline_calls

nbformat = pytest.importorskip("nbformat")
NOTEBOOK = ROOT / "docs/results/from_python.ipynb"


def code_cells() -> list[str]:
    return [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]


def test_its_calls_name_settings_that_exist() -> None:
    calls = pipeline_calls("\n".join(code_cells()))
    assert {name for name, _, _ in calls} == {"run", "judge_card", "align"}
    for call in calls:
        check_call(*call)


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
