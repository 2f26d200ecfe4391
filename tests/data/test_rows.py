from pathlib import Path

import numpy as np
import pytest

from negvae.data.rows import finite_rows, holds_rows, load_rows


def test_files_of_rows_are_told_from_files_of_images(tmp_path: Path):
    rows = np.arange(12, dtype=np.int16).reshape(4, 3)
    np.save(tmp_path / "rows.npy", rows)
    np.savez(tmp_path / "rows.npz", X=rows, y=np.zeros(4))
    np.save(tmp_path / "images.npy", np.zeros((4, 8, 8), np.uint8))
    assert holds_rows(tmp_path / "rows.npy")
    assert holds_rows(tmp_path / "rows.npz")
    assert not holds_rows(tmp_path / "images.npy")
    assert not holds_rows("fashion-mnist")
    for name in ("rows.npy", "rows.npz"):
        assert np.array_equal(load_rows(tmp_path / name), rows)
    assert len(load_rows(tmp_path / "rows.npy", limit=2)) == 2


def test_what_is_no_number_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="row 1, column 0 is nan"):
        finite_rows(np.array([[1.0, 2], [np.nan, 3]]), "here")
    with pytest.raises(ValueError, match="encode categories first"):
        finite_rows(np.array([["red"], ["blue"]]), "here")
    with pytest.raises(ValueError, match="N x D numbers"):
        finite_rows(np.zeros(3), "here")
