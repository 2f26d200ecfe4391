import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from negvae import NegVAEDetector
from negvae.detector.cleaning import clean, cross_fit
from tests.conftest import blobs

QUICK = dict(epochs=1, device="cpu", target_fpr=None)


def mixed() -> tuple[np.ndarray, np.ndarray]:
    """120 rows of which 6 are outliers, and which."""
    random = np.random.default_rng(0)
    rows, odd = random.normal(size=(120, 4)), np.zeros(120, bool)
    odd[random.choice(120, 6, replace=False)] = True
    rows[odd] += random.choice([-7, 7], (6, 4))
    return rows, odd


def test_no_row_is_judged_by_a_detector_that_has_seen_it():
    rows, odd = mixed()
    seen = []

    class Spy(NegVAEDetector):
        def fit(self, X, y=None, negatives=None):
            seen.append({row.tobytes() for row in X})
            return super().fit(X)

        def ood_score(self, X, score=None):
            if len(X) < 60 and not {row.tobytes() for row in X}.isdisjoint(seen[-1]):
                raise AssertionError("judged what it was fitted to")
            return super().ood_score(X, score)

    found = cross_fit(lambda: Spy(**QUICK), rows, log=lambda text: None)
    assert len(seen) == 3
    assert sorted(found.order.tolist()) == list(range(120))
    assert odd[found.order[:6]].sum() >= 5
    assert found.least_usual(0.05).sum() == 6


def test_what_is_trimmed_is_left_out():
    rows, odd = mixed()
    detector = NegVAEDetector(trim=0.05, **QUICK).fit(rows)
    assert detector.left_out_.sum() == 6
    assert (detector.left_out_ & odd).sum() >= 5
    assert len(detector.calibration_.reference.neighbors.whitened) == 114
    assert not NegVAEDetector(**QUICK).fit(rows).left_out_.any()
    with pytest.raises(ValueError, match=r"trim is 0\.7"):
        NegVAEDetector(trim=0.7).fit(rows)


def test_the_list_ranks_and_changes_nothing(tmp_path: Path):
    rows, odd = mixed()
    path = tmp_path / "rows.npy"
    np.save(path, rows)
    before = path.read_bytes()
    found = clean(str(path), tmp_path / "list.csv", log=lambda text: None, epochs=1, device="cpu")
    assert path.read_bytes() == before
    lines = list(csv.DictReader((tmp_path / "list.csv").read_text().splitlines()))
    assert found.rows == len(lines) == 120
    assert [int(line["rank"]) for line in lines] == list(range(1, 121))
    assert odd[[int(line["index"]) for line in lines[:6]]].sum() >= 5
    assert all(0 < float(line["p_value"]) <= 1 for line in lines)


def test_images_are_named_by_their_files(tmp_path: Path):
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(blobs(18, (1, 16, 16))):
        Image.fromarray(image[0].numpy()).save(folder / f"{number:02}.png")
    clean(str(folder), tmp_path / "list.csv", log=lambda text: None, folds=2, epochs=1, device="cpu", network="pyramid",
          preset="general", negatives="none")  # fmt: skip
    names = {Path(line["path"]).name for line in csv.DictReader((tmp_path / "list.csv").read_text().splitlines())}
    assert names == {f"{number:02}.png" for number in range(18)}


def test_what_cannot_be_cleaned_is_refused_in_one_line(tmp_path: Path):
    np.save(tmp_path / "few.npy", np.zeros((5, 2)))
    with pytest.raises(ValueError, match="5 rows in 3 folds"):
        clean(str(tmp_path / "few.npy"), tmp_path / "list.csv", log=lambda text: None)
    with pytest.raises(ValueError, match=r"written as \.csv"):
        clean(str(tmp_path / "few.npy"), tmp_path / "list.txt")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        clean(str(tmp_path / "few.npy"), tmp_path / "none" / "list.csv")


def test_photos_of_several_sizes_are_ranked_and_broken_ones_left_out(tmp_path: Path):
    random = np.random.default_rng(0)
    for number in range(40):
        odd = number in (7, 19)
        coarse = (
            random.integers(0, 256, (24, 24, 3), np.uint8) if odd else random.integers(90, 120, (2, 2, 3), np.uint8)
        )
        size = [(40, 20), (36, 24), (20, 20)][number % 3]
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(tmp_path / "in" / f"{number:02d}.png")
    (tmp_path / "in" / "30.png").write_bytes(b"broken")
    lines: list[str] = []
    found = clean(str(tmp_path / "in"), tmp_path / "list.csv", epochs=5, log=lines.append, device="cpu")
    with (tmp_path / "list.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert found.rows == len(rows) == 39
    assert {"07.png", "19.png"} <= {Path(row["path"]).name for row in rows[:4]}
    assert any("30.png" in line and "left out" in line for line in lines)
    assert any("39 images" in line for line in lines)


@pytest.mark.parametrize("given", ["a folder", "a list of Pillow's images"])
def test_trim_leaves_out_photos_of_several_sizes(tmp_path: Path, given: str):
    random = np.random.default_rng(0)
    images = []
    for number in range(60):
        odd = number in (7, 19, 40)
        coarse = (
            random.integers(0, 256, (24, 24, 3), np.uint8) if odd else random.integers(90, 120, (2, 2, 3), np.uint8)
        )
        size = [(40, 20), (36, 24), (20, 20)][number % 3]
        images.append(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        images[-1].save(tmp_path / f"{number:02d}.png")
    detector = NegVAEDetector(trim=0.05, epochs=5, device="cpu", random_state=0, target_fpr=0.3)
    if given == "a folder":
        (tmp_path / "99.png").write_bytes(b"broken")
        with pytest.warns(UserWarning, match="broken"):
            detector.fit(str(tmp_path), groups=["a", "b"] * 30 + ["b"])
        assert len(detector.left_out_) == 61
        assert set(detector.calibration_.thresholds) == {"a", "b"}
    else:
        detector.fit(images)
    # Two odd photos in one fold raise one another's p-values, so that one of them may be missed on some processor.
    assert detector.left_out_.sum() == 3
    assert len({7, 19, 40} & set(np.flatnonzero(detector.left_out_))) >= 2
    assert detector.ood_score(images[7:8]) > detector.ood_score(images[:7]).max()


def test_a_table_of_the_user_is_not_replaced_by_the_list(tmp_path):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(40, 3)))
    own, earlier = tmp_path / "labels.csv", tmp_path / "list.csv"
    own.write_text("file,label\na.png,1\n")
    with pytest.raises(ValueError, match=r"labels\.csv exists and is no list of"):
        clean(str(tmp_path / "rows.npy"), own, log=lambda text: None, epochs=1, device="cpu")
    assert own.read_text() == "file,label\na.png,1\n"
    for _ in range(2):  # an earlier list is replaced
        clean(str(tmp_path / "rows.npy"), earlier, log=lambda text: None, epochs=1, device="cpu")
    assert len(earlier.read_text().splitlines()) == 41
