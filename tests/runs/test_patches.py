"""Maps of patches by an encoder that gives one: the patch that differs is the one that is shown."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from negvae.config import preset
from negvae.data.embedding import _map_of, load_encoder
from negvae.runs.patches import PATCHES, open_patch_maps
from negvae.runs.train import run
from negvae.scoring.patches import PatchBank, fit_bank
from tests.cli.test_commands import call
from tests.data.test_embedding import write_encoder

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def photos(count: int, seed: int) -> np.ndarray:
    """Noise about one color, 8 x 8."""
    color = np.array([120, 90, 60])[:, None, None]
    return np.clip(np.random.default_rng(seed).normal(color, 15, (count, 3, 8, 8)), 0, 255).astype(np.uint8)


def test_a_distance_is_the_mean_of_the_three_smallest() -> None:
    draw = np.random.default_rng(0)
    training, held_out = ([draw.normal(3, 2, (5, 6, 7)) for _ in range(count)] for count in (8, 3))
    bank = fit_bank(training, held_out)
    rows = np.concatenate([patches.reshape(5, -1).T for patches in training])
    np.testing.assert_allclose(bank.center, rows.mean(0))
    np.testing.assert_allclose(bank.scale, rows.std(0))
    here = ((held_out[1].reshape(5, -1).T - rows.mean(0)) / rows.std(0))[:, None]
    every = np.sqrt(((here - (rows - rows.mean(0)) / rows.std(0)) ** 2).sum(2))
    wanted = np.sort(every, 1)[:, :3].mean(1).reshape(6, 7)
    np.testing.assert_allclose(bank.distances(held_out[1]), wanted)
    assert wanted.max() in bank.images
    assert len(bank.held_out) == 3 * 42
    assert fit_bank([np.ones((2, 3, 3))], [np.ones((2, 1, 1))]).scale.tolist() == [
        1,
        1,
    ]  # of features that are constant


def test_the_map_shows_the_part_that_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good").mkdir()
    for number, image in enumerate(photos(80, 0)):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "good" / f"{number:02}.png")
    # Its map of patches is the image itself.
    write_encoder(tmp_path / "encoder.onnx", output="map")
    config = preset("features", str(tmp_path / "good"), embed=str(tmp_path / "encoder.onnx"), epochs=1, device="cpu")
    run(config, tmp_path / "run")
    maps = open_patch_maps(tmp_path / "run")
    fresh, odd = photos(60, 1), photos(5, 2)
    odd[:, :, 2:4, 5:7] = 255 - odd[:, :, 2:4, 5:7]
    values = maps(torch.from_numpy(odd))
    assert (values.shape, values.dtype) == ((5, 8, 8), np.float32)
    largest = np.log10(len(maps.bank.held_out) + 1)
    np.testing.assert_allclose(values[:, 2:4, 5:7], largest, rtol=1e-6)
    # One patch in ten of fresh inliers has a p-value of a tenth at most.
    usual = maps(torch.from_numpy(fresh))
    assert 0.07 < (usual >= 1).mean() < 0.13
    assert (maps.p_values(maps.image_scores(torch.from_numpy(odd))) == 1 / (len(maps.bank.images) + 1)).all()
    assert maps.p_values(maps.image_scores(torch.from_numpy(fresh))).mean() == pytest.approx(0.5, abs=0.15)
    together, alone = values, [maps(torch.from_numpy(odd[i : i + 1])) for i in range(5)]
    assert np.array_equal(together, np.concatenate(alone))
    (path, first), *_ = maps.of_files([str(tmp_path / "good")])
    assert (Path(path).name, first.shape) == ("00.png", (8, 8))
    out = ["--out", tmp_path / "scores.csv", "--heatmaps", tmp_path / "maps"]
    assert call(capsys, "score", tmp_path / "run", tmp_path / "good", *out)[0] == 0
    with open(tmp_path / "maps" / "00.png", "rb") as file:
        shown = np.asarray(Image.open(file))
    assert len(list((tmp_path / "maps").iterdir())) == 80
    assert np.abs(shown / 255 * 6 - first.clip(0, 6)).max() <= 0.5 * 6 / 255 + 1e-6
    (tmp_path / "run" / PATCHES).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"patches\.safetensors: damaged"):
        open_patch_maps(tmp_path / "run")


def test_an_encoder_of_whole_images_has_no_maps(tmp_path: Path) -> None:
    encoder = load_encoder(write_encoder(tmp_path / "encoder.onnx"))
    assert encoder.map_output == ""
    with pytest.raises(ValueError, match="gives no map of patches"):
        next(encoder.patches(photos(1, 0)))


def test_tokens_are_a_square_of_patches_after_those_of_the_class() -> None:
    tokens = np.arange(5 * 3, dtype=float).reshape(1, 5, 3)
    found = _map_of(tokens)
    assert found.shape == (3, 2, 2)
    assert found[:, 0, 1].tolist() == tokens[0, 2].tolist()
    assert _map_of(tokens[:, 1:]).tolist() == found.tolist()


def test_what_does_not_belong_together_is_refused() -> None:
    patches = list(np.random.default_rng(0).normal(size=(6, 2, 3, 3)))
    bank = fit_bank(patches[:4], patches[4:])
    assert (len(bank.rows), len(bank.held_out), len(bank.images)) == (36, 18, 2)
    with pytest.raises(ValueError, match="do not belong together"):
        PatchBank(**{**bank.arrays(), "scale": np.zeros(2)})
    with pytest.raises(ValueError, match="hold out a part"):
        fit_bank(patches, [])
