"""Groups of photos that are cut into tiles: each photo counts in the group that its folder names."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from negvae import NegVAEDetector
from negvae.config import preset
from negvae.data.photos import read_photo
from negvae.runs.artifact import load_artifact
from negvae.runs.calibrate import calibrate_run
from negvae.runs.export import export_onnx, run_onnx
from negvae.runs.score import score_files
from negvae.runs.train import run

FAST = dict(network="pyramid", latent_size=2, epochs=1, batch_size=16, precision="float32", device="cpu")
TILES = dict(fit="tile", side=16)
SIZES = ((20, 40), (36, 24), (16, 16))


def products(folder: Path, count: int, seed: int = 0) -> Path:
    """Write photos of three sizes into folders named after two products, the second brighter."""
    random = np.random.default_rng(seed)
    for name, bright in (("dark", 0), ("light", 90)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            coarse = random.integers(0, 160, (3, 3, 3), np.uint8) + np.uint8(bright)
            made = Image.fromarray(coarse).resize(SIZES[number % 3], Image.Resampling.BICUBIC)
            made.save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("products")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEGVAE_CACHE", str(place / "cache"))
        products(place / "in", 40)
        products(place / "new", 12, seed=1)
        (place / "in" / "dark" / "07.png").write_bytes(b"broken")
        config = preset(
            "unsupervised", str(place / "in"), **FAST, **TILES, groups="folders", calibration=0.5, target_fpr=0.2
        )
        run(config, place / "run", heatmaps=False)
    return place


def test_photos_are_held_out_and_counted_in_the_group_of_their_folder(place: Path) -> None:
    calibration = load_artifact(place / "run", "cpu").calibration
    assert calibration is not None
    assert calibration.tiles
    sizes = {name: len(scores) for name, scores in calibration.groups["combined"].items()}
    # Of 80 photos one in five is for testing and half of the others are held out; one file is broken.
    assert set(sizes) == {"dark", "light"}
    assert sum(sizes.values()) in (31, 32)
    assert sum(sizes.values()) == len(calibration.scores["combined"])
    assert calibration.thresholds["dark"] != calibration.thresholds["light"]


def test_calibrating_anew_gives_the_same_groups(place: Path) -> None:
    before = load_artifact(place / "run", "cpu").calibration
    after = calibrate_run(place / "run", device="cpu")
    assert after.thresholds == before.thresholds


def test_scores_of_files_are_decided_by_the_group_of_their_folder(place: Path) -> None:
    score_files(place / "run", [str(place / "new")], place / "scores.parquet", groups="folders", device="cpu")
    calibration = load_artifact(place / "run", "cpu").calibration
    for row in pq.read_table(place / "scores.parquet").to_pylist():
        threshold = calibration.thresholds[Path(row["path"]).parent.name]
        assert row["is_outlier"] == (row["combined"] > threshold)


def test_photos_outside_the_calibrated_folders_are_counted(place: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20, 40)).save(tmp_path / "loose.png")
    lines = list[str]()
    given = [str(tmp_path / "loose.png"), str(place / "new")]
    score_files(place / "run", given, tmp_path / "s.csv", groups="folders", device="cpu", log=lines.append)
    assert (
        "1 row lies in no folder that is named like a calibrated group ('dark', 'light'): it gets the largest p-value"
        " over all groups" in lines
    )
    lines.clear()
    score_files(place / "run", given[1:], tmp_path / "s.csv", groups="folders", device="cpu", log=lines.append)
    assert not any("calibrated group" in line for line in lines)


def test_other_inliers_name_their_groups(place: Path) -> None:
    before = load_artifact(place / "run", "cpu").calibration
    after = calibrate_run(place / "run", data=str(place / "new"), groups="folders", device="cpu")
    assert {name: len(scores) for name, scores in after.groups["combined"].items()} == {"dark": 12, "light": 12}
    limited = calibrate_run(place / "run", data=str(place / "new"), groups="folders", limit=15, device="cpu")
    assert {name: len(scores) for name, scores in limited.groups["combined"].items()} == {"dark": 12, "light": 3}
    assert calibrate_run(place / "run", device="cpu").thresholds == before.thresholds


def test_an_exported_file_takes_the_highest_threshold(place: Path) -> None:
    artifact = load_artifact(place / "run", "cpu")
    export_onnx(place / "run", place / "model.onnx")
    tiles, _ = read_photo(str(place / "new" / "dark" / "00.png"), "a photo", artifact.config.images)
    score, p, decision = run_onnx((place / "model.onnx").read_bytes(), tiles)
    assert len(score) == 1
    assert bool(decision[0]) == bool(score[0] > max(artifact.calibration.thresholds.values()))
    assert p[0] == pytest.approx(artifact.calibration.p_values(score)[0])


def test_a_photo_without_a_folder_of_its_own_is_refused_before_training(place: Path, tmp_path: Path) -> None:
    products(tmp_path / "in", 20)
    Image.new("RGB", (20, 40)).save(tmp_path / "in" / "loose.png")
    config = preset("unsupervised", str(tmp_path / "in"), **FAST, **TILES, groups="folders")
    with pytest.raises(ValueError, match=r"loose.png lies in no subfolder"):
        run(config, tmp_path / "run", heatmaps=False)
    with pytest.raises(ValueError, match=r"product is a column, and .* holds images: ask for groups folders"):
        calibrate_run(place / "run", data=str(place / "new"), groups="product", device="cpu")
    np.save(tmp_path / "new.npy", np.zeros((20, 16, 16, 3), np.uint8))
    with pytest.raises(
        ValueError, match=r"takes a folder of images with a subfolder for each group: .*new.npy is none"
    ):
        calibrate_run(place / "run", data=str(tmp_path / "new.npy"), groups="folders", device="cpu")


def test_a_detector_takes_groups_of_photos(place: Path) -> None:
    detector = NegVAEDetector(
        network="pyramid", latent_size=2, epochs=1, device="cpu", calibration_fraction=0.5, target_fpr=0.2
    )
    with pytest.warns(UserWarning, match="broken"):
        detector.fit(str(place / "in"), groups="folders")
    thresholds = detector.calibration_.thresholds
    assert set(thresholds) == {"dark", "light"}
    files = sorted((place / "new" / "light").iterdir())
    scores = detector.ood_score(files)
    np.testing.assert_array_equal(
        detector.predict(files, groups=["light"] * len(files)) < 0, scores > thresholds["light"]
    )
    whole = detector.predict(str(place / "new"), groups="folders")
    np.testing.assert_array_equal(whole[12:] < 0, scores > thresholds["light"])
    with pytest.raises(ValueError, match="1 groups for 12 rows"):
        detector.predict(files, groups=["light"])


def test_calibration_photos_name_their_groups(place: Path) -> None:
    fresh = sorted((place / "new").glob("*/*.png"))
    detector = NegVAEDetector(network="pyramid", latent_size=2, epochs=1, device="cpu", target_fpr=0.2)
    images = [Image.open(path) for path in sorted((place / "in" / "light").iterdir())]
    detector.fit(images, calibration=fresh, groups=[path.parent.name for path in fresh])
    assert {name: len(scores) for name, scores in detector.calibration_.groups["combined"].items()} == {
        "dark": 12, "light": 12,
    }  # fmt: skip
    with pytest.raises(ValueError, match="1 groups for 40 rows"):
        NegVAEDetector(network="pyramid", latent_size=2, epochs=1, device="cpu").fit(images, groups=["one"])


def test_training_names_groups_of_which_no_photo_is_held_out(tmp_path: Path) -> None:
    folder = products(tmp_path / "in", 12)
    (folder / "rare").mkdir()
    (folder / "dark" / "00.png").rename(folder / "rare" / "00.png")
    lines: list[str] = []
    config = preset("unsupervised", str(folder), **FAST, **TILES, groups="folders", seed=1)
    run(config, tmp_path / "run", heatmaps=False, log=lines.append)
    assert any("no inlier of 1 of 3 groups is held out (rare): such a group has no p-values" in line for line in lines)
