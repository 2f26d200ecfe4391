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
        b"\x80\x04\x8c\x09numpy\nabc\x8c\x04name\x93.",  # a name of two lines
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


class Calls:
    """Pickles as a call of a function of NumPy."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def from_buffer(length):
    return Calls(np.empty(1).__reduce_ex__(5)[0], b"x", np.dtype("u1"), (length,), "C")


HOSTILE = {
    "pointers from the file": pickle.dumps({"data": 0, "labels": [Calls(np.ndarray, (1,), "O", b"A" * 8)] * 2}),
    "a deep tuple as a key": b"\x80\x02}K\x00" + b"\x85" * 200_000 + b"K\x01s.",
    "a far entry of the memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "more bytes claimed than held": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"x.",
    "attributes of a function": b"\x80\x02cnumpy\ndtype\n}X\x04\x00\x00\x00evilK\x01sb.",
    "a type with fields": pickle.dumps({"data": np.zeros(3, [("a", "u1")])}),
    "objects": pickle.dumps({"data": np.array([{}], object)}),
    "dates": pickle.dumps({"data": np.zeros(3, "M8[s]")}),
    "too large a shape": pickle.dumps({"data": from_buffer(2**62)}),
    "a negative shape": pickle.dumps({"data": from_buffer(-1)}),
    "text copied without end": (
        b"\x80\x02}X\x04\x00\x00\x00data(c_codecs\nencode\nq\x01X" + (60_000).to_bytes(4, "little") + b"x" * 60_000
        + b"X\x06\x00\x00\x00latin1\x86q\x02R" + b"h\x01h\x02R" * 3000 + b"lsb."
    ),
    "persistent names": b"\x80\x02Pevil\n.",
    "an instance": b"(ios\nsystem\n.",
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_batches_are_refused(make, content):
    """Some of these end the process where the pickle gets hold of NumPy's own constructors, or of a real dict."""
    make.path("data_batch_1").write_bytes(content)
    with pytest.raises(ValueError, match="data_batch_1") as caught:
        formats.read(formats.Batches((make.path("data_batch_1"),), (3, 32, 32)))
    assert one_line(caught.value)


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("labels", [np.arange(6, dtype=">i2"), list(np.arange(6)), [np.int32(i) for i in range(6)]])
def test_numbers_come_out_as_they_were(make, protocol, labels):
    pixels = np.asfortranarray(make.pixels(0, 6, 3, 32).reshape(6, -1))
    make.path("val_data").write_bytes(pickle.dumps({"data": pixels, "labels": labels, "mean": np.zeros(3)}, protocol))
    found = formats.read(formats.Batches((make.path("val_data"),), (3, 32, 32)))
    np.testing.assert_array_equal(found.images.reshape(6, -1), pixels)
    assert found.labels.tolist() == list(range(6))
    assert found.images.flags.writeable
