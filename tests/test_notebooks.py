"""The notebooks: their format, and that they run with the smallest preset."""

import ast
import json

import nbclient
import nbformat
import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COLAB = "https://colab.research.google.com/github/selfreward-jax/selfreward_jax/blob/main/notebooks/"


def test_the_notebooks_exist():
    assert [path.stem for path in NOTEBOOKS] == ["colab_tpu", "reading_a_run", "tour"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_format_of_a_notebook(path):
    book = json.loads(path.read_text())
    first, code = book["cells"][0], [c for c in book["cells"] if c["cell_type"] == "code"]
    assert f"({COLAB}{path.name})" in "".join(first["source"])
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in code)
    for cell in code:
        ast.parse("".join(cell["source"]))
    assert "jax.devices()" in "".join(code[1]["source"])  # after the set-up
    assert sum("assert " in "".join(c["source"]) for c in code) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("SELFREWARD_PRESET", "micro")
    monkeypatch.setenv("SELFREWARD_WORKDIR", str(tmp_path / "run"))
    book = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(book, timeout=900, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    assert (tmp_path / "run" / "report.html").exists()
