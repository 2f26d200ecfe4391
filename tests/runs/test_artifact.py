import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from negvae.cli import main
from negvae.config import FORMAT, preset
from negvae.detector.estimator import NegVAEDetector
from negvae.runs.artifact import CALIBRATION, CONFIG, WEIGHTS, load_artifact
from negvae.runs.calibrate import calibrate_run
from negvae.runs.card import CARD
from negvae.runs.train import run
from negvae.training.history import METRICS
from tests.conftest import blobs

NEEDED = (CONFIG, WEIGHTS, CALIBRATION)
GARBAGE = np.random.default_rng(0).bytes(3000)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two artifacts of the same networks, trained with other seeds."""
    place = tmp_path_factory.mktemp("pair")
    np.save(place / "in.npy", blobs(60, (1, 28, 28)).numpy())
    for seed in (0, 1):
        config = preset(
            "gray", str(place / "in.npy"), epochs=1, batch_size=16, device="cpu", calibration=0.5, seed=seed
        )
        run(config, place / f"run{seed}")
    return place / "run0", place / "run1"


@pytest.fixture
def copy(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pair[0], tmp_path / "copy"))


def damage(path: Path, how: str, other: Path) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "swapped":
        shutil.copy(other / path.name, path)
    else:
        damaged = {"truncated": content[: len(content) // 2], "garbage": GARBAGE, "empty": b""}
        path.write_bytes(damaged[how])


@pytest.mark.parametrize("name", [WEIGHTS, CALIBRATION])
def test_a_single_changed_bit_is_noticed_and_decides_nothing(copy: Path, name: str) -> None:
    whole = (copy / name).read_bytes()
    for place in [*np.random.default_rng(0).integers(len(whole) // 2, len(whole), size=12).tolist(), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (copy / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{name}: damaged"):
            load_artifact(copy, "cpu")
    (copy / name).write_bytes(whole)
    assert load_artifact(copy, "cpu").calibration is not None


def test_another_threshold_in_the_file_is_noticed_and_calibrate_makes_it_anew(copy: Path) -> None:
    before, path = load_artifact(copy, "cpu").calibration, copy / CALIBRATION
    assert before is not None
    path.write_bytes(path.read_bytes().replace(b'threshold\\": ', b'threshold\\": 9', 1)[:-1])
    with pytest.raises(ValueError, match=r"calibration\.safetensors: damaged .* `negvae calibrate` makes it anew"):
        load_artifact(copy, "cpu")
    assert calibrate_run(copy).threshold == before.threshold
    assert load_artifact(copy, "cpu").calibration is not None


@pytest.mark.parametrize("how", ["missing", "truncated", "garbage", "empty", "swapped"])
@pytest.mark.parametrize("name", NEEDED)
def test_a_folder_that_is_not_whole_is_refused_in_one_line(
    copy: Path, pair: tuple[Path, Path], name: str, how: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    damage(copy / name, how, pair[1])
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_artifact(copy, "cpu")
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)
    assert name in str(caught.value)
    with pytest.raises(type(caught.value)):
        NegVAEDetector.load(copy)
    monkeypatch.setattr("sys.argv", ["negvae", "score", str(copy), str(pair[0].parent / "in.npy")])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"negvae: {caught.value}\n"


@pytest.mark.parametrize("how", ["missing", "truncated", "garbage", "empty", "swapped"])
@pytest.mark.parametrize("name", [METRICS, CARD])
def test_what_is_there_for_people_stops_no_score(copy: Path, pair: tuple[Path, Path], name: str, how: str) -> None:
    damage(copy / name, how, pair[1])
    images = blobs(5, (1, 28, 28), 3).numpy()
    detector = NegVAEDetector.load(copy)
    np.testing.assert_array_equal(detector.ood_score(images), NegVAEDetector.load(pair[0]).ood_score(images))
    detector.save(copy.parent / "again")
    assert load_artifact(copy.parent / "again", "cpu").calibration is not None


@pytest.mark.parametrize("how", ["missing", "truncated", "garbage", "swapped"])
def test_a_new_calibration_heals(copy: Path, pair: tuple[Path, Path], how: str) -> None:
    damage(copy / CALIBRATION, how, pair[1])
    calibrate_run(copy, score="bpd", target_fpr=0.2)
    assert load_artifact(copy, "cpu").calibration.score == "bpd"


def test_a_folder_of_a_later_version_is_refused_and_of_version_0_1_read(copy: Path) -> None:
    text = (copy / CONFIG).read_text()
    (copy / CONFIG).write_text(text.replace(f"format: {FORMAT}", f"format: {FORMAT + 1}"))
    with pytest.raises(ValueError, match=f"reads formats up to {FORMAT}: upgrade negvae"):
        load_artifact(copy, "cpu")
    (copy / CONFIG).write_text(text.replace(f"format: {FORMAT}\n", "").removesuffix("...\n"))
    assert load_artifact(copy, "cpu").calibration is not None


@pytest.mark.parametrize("content", [None, b"#!/bin/sh\n", b"run: 5\nshape: 3\nprovenance: no\n", b"run: !!python/x"])
def test_a_foreign_folder_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / CONFIG).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path)):
        load_artifact(tmp_path, "cpu")


def test_a_copy_gives_the_same_scores_in_a_fresh_process(copy: Path, pair: tuple[Path, Path]) -> None:
    images = blobs(5, (1, 28, 28), 3).numpy()
    np.save(copy.parent / "x.npy", images)
    program = (
        "import json, numpy, negvae; d = negvae.NegVAEDetector.load('copy', device='cpu'); x = numpy.load('x.npy');"
        "print(json.dumps([d.ood_score(x).tolist(), d.p_values(x).tolist(), d.predict(x).tolist()]))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], cwd=copy.parent, capture_output=True, text=True, check=True
    )
    detector = NegVAEDetector.load(pair[0], device="cpu")
    scores, p_values, labels = json.loads(printed.stdout)
    np.testing.assert_allclose(scores, detector.ood_score(images), rtol=1e-5)
    np.testing.assert_allclose(p_values, detector.p_values(images), atol=0.04)  # a rank, should two scores tie
    np.testing.assert_array_equal(labels, detector.predict(images))
