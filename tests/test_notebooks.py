"""The notebooks run from top to bottom.

Their cells are plain Python, so they run in order in one namespace. A kernel, and the dozens of packages that it takes,
would test Jupyter and nothing of this project. Trainings are cut to a few epochs, which is enough for what is checked.
"""

import json
from pathlib import Path

import pytest

from tests.test_snippets import short_trainings

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
EXPECTED = {
    "beside_other_detectors": "asked: 5% false alarms",
    "first_detector": "pieces of photos: 100% are called outliers",
    "idea_in_pictures": "two priors: AUROC of kl",
    "own_photos": "dent-009",
}
"""Text that each prints."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:.*(held-out inlier|steps? (is|are) few)")
def test_a_notebook_runs_and_holds_no_outputs(path, tmp_path, monkeypatch, capsys):
    book = json.loads(path.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["metadata"]["kernelspec"]["name"]) == (4, "python3")
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in book["cells"] if cell["cell_type"] == "code")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    short_trainings(monkeypatch, epochs=8)
    names = {}
    for number, code in enumerate(cells):
        exec(compile(code, f"{path.name}, code cell {number}", "exec"), names)
    assert EXPECTED[path.stem] in capsys.readouterr().out
