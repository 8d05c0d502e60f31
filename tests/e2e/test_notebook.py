"""The notebook runs from top to bottom on the demo, and is committed without outputs."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

from bintally.bins.shards import read_index
from project import ROOT, Project

NOTEBOOK = ROOT / "notebooks/explore.ipynb"


def run(project: Project, folder: Path, cells: int | None = None) -> list[nbformat.NotebookNode]:
    """Run the first ``cells`` cells in ``folder`` and return the code cells; a cell that fails raises."""
    notebook = nbformat.read(project.folder / "notebooks/explore.ipynb", as_version=4)
    notebook.cells = notebook.cells[:cells]
    client = NotebookClient(notebook, timeout=180, kernel_name="python3")
    client.execute(env=project.environment(), cwd=str(folder))
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_code_cell_after_the_first_shows_a_figure(reproduced: Project) -> None:
    first, *rest = run(reproduced, reproduced.folder / "notebooks")
    bins = len(read_index(reproduced.folder / "data/bins"))
    assert f"{bins} rendered demo bins" in first.outputs[0].data["text/plain"]
    assert len(rest) == 12
    for cell in rest:
        kinds = [output.output_type for output in cell.outputs]
        assert kinds == ["execute_result"] and "image/png" in cell.outputs[0].data, f"{cell.id}: {kinds}"


def test_it_finds_the_data_from_the_root(reproduced: Project) -> None:
    (first,) = run(reproduced, reproduced.folder, cells=2)
    assert "demo bins" in first.outputs[0].data["text/plain"]


def test_it_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    assert all(set(cell.metadata) == set() for cell in notebook.cells)
    assert notebook.metadata.kernelspec.name == "python3"
