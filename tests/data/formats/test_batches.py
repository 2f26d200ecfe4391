"""Python batches: what they hold, and that nothing in them is run."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from negvae.data import formats
from tests.data.conftest import one_line


class Evil:
    def __reduce__(self):

        return os.mkdir, ("/tmp/negvae-was-here",)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_batches(make, protocol):
    pixels = make.pixels(0, 6, 3, 32)
    batch = {b"data": pixels.reshape(6, -1), b"labels": [1, 2, 3, 4, 5, 6], b"batch_label": b"one"}
    make.path("data_batch_1").write_bytes(pickle.dumps(batch, protocol))
    found = formats.read(formats.Batches((make.path("data_batch_1"),) * 2, (3, 32, 32)))
    np.testing.assert_array_equal(found.images, np.concatenate([pixels, pixels]))
    assert found.labels.tolist() == [1, 2, 3, 4, 5, 6] * 2


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"data": Evil()}),
        pickle.dumps(Evil(), 2),
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n.",
        pickle.dumps([1, 2]),
        pickle.dumps({"data": [1, 2]}),
        pickle.dumps({"data": np.zeros((2, 5), np.uint8)}),
        pickle.dumps({"data": np.zeros((2, 3072), np.float32)}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1, None]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8)})[:-20],
        b"",
        b"junk",
    ],
)
def test_batches_run_nothing_and_say_what_is_wrong(make, content, tmp_path):
    make.path("data_batch_1").write_bytes(content)
    with pytest.raises(ValueError, match="data_batch_1") as caught:
        formats.read(formats.Batches((make.path("data_batch_1"),), (3, 32, 32)))
    assert one_line(caught.value)

    assert not Path("/tmp/negvae-was-here").exists()
