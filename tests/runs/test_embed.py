"""Images as rows of features by an encoder, from training to report; and rows of features from files."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from negvae import NegVAEDetector
from negvae.config import preset
from negvae.report.page import write_report
from negvae.runs.artifact import load_artifact
from negvae.runs.score import score_files
from negvae.runs.train import run
from tests.data.test_embedding import write_encoder

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def photos(folder: Path, color: tuple[int, int, int], count: int, seed: int = 0) -> Path:
    """Photos of different sizes and about one color."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    for number in range(count):
        sides = random.integers(9, 14, 2)
        pixels = random.normal(color, 15, (*sides, 3)) + random.normal(0, 10, 3)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("embed")
    write_encoder(place / "encoder.onnx")
    photos(place / "good", (120, 90, 60), 150)
    photos(place / "fresh", (120, 90, 60), 30, seed=1)
    photos(place / "odd", (60, 90, 120), 10, seed=2)
    config = preset(
        "features",
        str(place / "good"),
        embed=str(place / "encoder.onnx"),
        epochs=2,
        device="cpu",
        negatives="augmented",
    )
    run(config, place / "run")
    return place


def test_photos_are_scored_through_the_encoder(trained: Path) -> None:
    out = trained / "scores.csv"
    summary = score_files(trained / "run", [str(trained / "fresh"), str(trained / "odd")], out, device="cpu")
    assert (summary.rows, summary.errors) == (40, 0)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    called = np.array([row["is_outlier"] == "true" for row in rows])
    assert called[30:].all()
    assert called[:30].sum() <= 6
    assert {"neighbors", "p_value"} <= set(rows[0])


def test_the_folder_keeps_the_encoders_hash_and_refuses_another(trained: Path) -> None:
    assert len(load_artifact(trained / "run", "cpu").provenance["encoder"]["sha256"]) == 64
    other = write_encoder(trained / "other.onnx", mean="0,0,0", std="1,1,1")
    with pytest.raises(ValueError, match="another encoder than the one that the detector was trained with"):
        score_files(trained / "run", [str(trained / "odd")], trained / "none.csv", embed=other, device="cpu")
    assert not (trained / "none.csv").exists()
    moved = trained / "moved.onnx"
    moved.write_bytes((trained / "encoder.onnx").read_bytes())
    assert (
        score_files(trained / "run", [str(trained / "odd")], trained / "s.csv", embed=moved, device="cpu").errors == 0
    )


def test_the_report_shows_the_images(trained: Path) -> None:
    found = write_report(trained / "run", [str(trained / "fresh"), str(trained / "odd")], trained / "report.html")
    assert (found.rows, found.failed) == (40, 0)
    assert "The images." in (trained / "report.html").read_text()


def test_an_image_that_cannot_be_read_is_no_inlier(trained: Path, tmp_path: Path) -> None:
    folder = photos(tmp_path / "some", (1, 2, 3), 3)
    (folder / "broken.png").write_bytes(b"nothing")
    config = preset("features", str(folder), embed=str(trained / "encoder.onnx"), epochs=1, device="cpu")
    with pytest.raises(ValueError, match=r"1 of 4 images cannot be read.*broken\.png"):
        run(config, tmp_path / "run")


def test_an_encoder_goes_with_networks_that_take_features() -> None:
    with pytest.raises(ValueError, match="network gray does not take; these do: mlp, linear"):
        preset("gray", "photos", embed="encoder.onnx")


def test_rows_of_a_file_are_trained_on_and_scored(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    np.save(tmp_path / "rows.npy", random.normal(size=(200, 5)))
    np.save(tmp_path / "new.npy", np.concatenate([random.normal(size=(20, 5)), random.normal(9, 1, (5, 5))]))
    run(preset("features", str(tmp_path / "rows.npy"), epochs=1, device="cpu"), tmp_path / "run")
    out = tmp_path / "scores.csv"
    score_files(tmp_path / "run", [str(tmp_path / "new.npy")], out, device="cpu")
    called = [row["is_outlier"] == "true" for row in csv.DictReader(out.read_text().splitlines())]
    assert all(called[20:])
    assert sum(called[:20]) <= 5
    detector = NegVAEDetector.load(tmp_path / "run", device="cpu")
    assert (detector.predict(np.load(tmp_path / "new.npy"))[20:] == -1).all()
