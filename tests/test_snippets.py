"""Every block of Python in the README and the docs runs, on small data; docs/extending.md has tests of its own."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser
from torch.utils.data import DataLoader, TensorDataset

import negvae
import negvae.data
from negvae.data import ImageSet
from tests.conftest import blobs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if page.name != "extending.md" and "```python" in page.read_text()]
ELSEWHERE = {
    "model.onnx": "tests/runs/test_export.py: it reads a file that a command has written",
    "heatmaps=True": "tests/runs/test_heatmaps.py: training maps takes minutes",
    "open_patch_maps": "tests/runs/test_patches.py: it needs an encoder",
    "tritonclient": "tests/service/test_protocol.py: it needs a running service",
}
"""What blocks hold that are not run here: the test that runs the like, and why."""


def load(name, split="train", **options):
    """Small images in place of a data set that would be fetched."""
    images = blobs(120, (1, 28, 28), seed=len(f"{name}{split}"))
    return ImageSet(str(name), split, images.numpy(), None, "memory", "0" * 64)


def short_trainings(monkeypatch, **options):
    """Let detectors have other defaults, so that a fit takes a second."""
    begin = negvae.NegVAEDetector.__init__

    @functools.wraps(begin)
    def quick(self, *arguments, **parameters):
        begin(self, *arguments, **{**options, **parameters})

    monkeypatch.setattr(negvae.NegVAEDetector, "__init__", quick)


@pytest.fixture
def names(monkeypatch, tmp_path):
    """What the blocks take for granted: the reader's data, and detectors that train for one epoch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(negvae, "load_images", load, raising=False)
    monkeypatch.setattr(negvae.data, "load", load)
    short_trainings(monkeypatch, epochs=1, batch_size=100, device="cpu")
    images, fresh = blobs(1600, (1, 16, 16)).numpy(), blobs(20, (1, 16, 16), seed=1).numpy()
    inputs = torch.from_numpy(images[:200])
    loader = DataLoader(TensorDataset(inputs, torch.zeros(200, dtype=torch.long)), batch_size=50)
    return {
        "good_images": images, "new_images": fresh, "good": images, "new": fresh, "batch": fresh,
        "X": images[:200], "X_new": images[:20], "data_loader": loader, "images": inputs[:4],
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
@pytest.mark.filterwarnings("ignore:.*(held-out inlier|steps? (is|are) few)")
def test_every_block_runs(page, names):
    names["faulty"] = 255 - names["good"][:100]
    if page.stem == "drift":
        names["detector"] = negvae.NegVAEDetector(preset="general").fit(names["good"])
        names["new_inliers"] = names["batch"]
    if page.stem == "rows":
        rows = np.random.default_rng(0).normal(size=(600, 4))
        names |= {"rows": rows, "new": rows[:20]}
    examples = list(Document.parse(str(page), PythonCodeBlockParser()).examples())
    assert len(examples) == page.read_text().count("```python")
    for example in examples:
        code = str(example.parsed)
        if any(text in code for text in ELSEWHERE):
            continue
        try:
            exec(compile(code.replace("epochs=4", "epochs=1"), page.name, "exec"), names)
        except ImportError as error:
            if "is not installed" not in str(error):
                raise


def test_blocks_that_run_elsewhere_name_their_test():
    assert all((ROOT / why.partition(":")[0]).is_file() for why in ELSEWHERE.values())
