import numpy as np
import pytest
import torch

from negvae.model import build_vae
from negvae.report.samples import pictures, read_strips, write_strips
from tests.conftest import SHAPES, blobs, small_run


@pytest.mark.parametrize("channels", [1, 3])
def test_strips_are_read_as_written(tmp_path, channels):
    randomness = np.random.default_rng(0)
    strips = {name: randomness.integers(0, 256, (4, channels, 5, 6), np.uint8) for name in ("a", "b", "c")}
    write_strips(tmp_path / "s.png", strips)
    back = read_strips(tmp_path / "s.png", ["a", "b", "c"], 4)
    assert list(back) == ["a", "b", "c"]
    for name, images in strips.items():
        np.testing.assert_array_equal(back[name], images)
    with pytest.raises(ValueError, match="does not divide into 2 lines of 4"):
        read_strips(tmp_path / "s.png", ["a", "b"], 4)
    with pytest.raises(ValueError, match="does not divide into 3 lines of 5"):
        read_strips(tmp_path / "s.png", ["a", "b", "c"], 5)


def test_no_picture(tmp_path):
    (tmp_path / "s.png").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"s\.png: not a picture"):
        read_strips(tmp_path / "s.png", ["a"], 1)
    with pytest.raises(FileNotFoundError):
        read_strips(tmp_path / "t.png", ["a"], 1)


@pytest.mark.parametrize("source", ["none", "generated"])
def test_pictures_of_a_model(source):
    config = small_run(negatives=source)
    model = build_vae(config, SHAPES["gray"]).eval()
    inliers, outliers = blobs(9, SHAPES["gray"]), 255 - blobs(9, SHAPES["gray"], 1)
    shown = pictures(model, config, inliers, outliers, 3)
    assert ("Negatives" in shown) == (source != "none")
    assert {images.shape for images in shown.values()} == {(3, 1, 28, 28)}
    np.testing.assert_array_equal(shown["Outliers"], outliers[:3].numpy())
    again = pictures(model, config, inliers, outliers, 3)
    assert all(np.array_equal(shown[name], again[name]) for name in shown)
    assert not torch.equal(torch.from_numpy(shown["Inliers, reconstructed"]), inliers[:3])
