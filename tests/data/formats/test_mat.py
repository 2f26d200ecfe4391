"""SVHN's MATLAB files."""

import numpy as np
import pytest

from negvae.data import formats


@pytest.mark.parametrize("content", [{"Y": np.zeros(3)}, {"X": np.zeros((4, 4, 2, 3), np.uint8)}, {"X": np.zeros(3)}])
def test_bad_mat(make, content):
    from scipy.io import savemat

    savemat(make.path("train_32x32.mat"), content)
    with pytest.raises(ValueError, match=r"train_32x32\.mat"):
        formats.read(formats.Mat(make.path("train_32x32.mat")))
    make.path("train_32x32.mat").write_bytes(b"junk" * 50)
    with pytest.raises(ValueError, match=r"train_32x32\.mat"):
        formats.read(formats.Mat(make.path("train_32x32.mat")))
