"""The Open Inference Protocol as pure functions: what is read, and what is refused with which words."""

import gzip
import json

import numpy as np
import pytest

from negvae.data.batches import InputSpec
from negvae.service.guard import Refused
from negvae.service.protocol import inflated, most_bytes, options, parse, plain, respond

IMAGES, ROWS = InputSpec((1, 2, 2)), InputSpec((3, 1, 1), features=True)


def request(data=(1, 2, 3, 4), shape=(1, 1, 2, 2), name="images", datatype="UINT8", **more):
    tensor = {"name": name, "shape": list(shape), "datatype": datatype, "data": data}
    return {"inputs": [{name: value for name, value in tensor.items() if value is not None}], **more}


def read(content, spec=IMAGES, tail=b"", size=None):
    body = json.dumps(content).encode()
    size = str(len(body)) if tail and size is None else size
    return parse(body + tail, size, spec, 8)


def test_tensors_are_read_flat_nested_and_as_bytes():
    nested = read(request([[[[1, 2], [3, 4]]]]))
    flat = read(request())
    binary = {"name": "images", "shape": [1, 1, 2, 2], "datatype": "UINT8", "parameters": {"binary_data_size": 4}}
    packed = read({"inputs": [binary]}, tail=bytes([1, 2, 3, 4]))
    for asked in (nested, flat, packed):
        assert asked.stored.dtype == np.uint8
        assert asked.stored.tolist() == [[[[1, 2], [3, 4]]]]
    rows = read(request([[0.5, 2, -3]], (1, 3), "rows", "FP32"), ROWS)
    assert (rows.stored.dtype, rows.stored.shape, rows.stored.ravel().tolist()) == (
        np.float64,
        (1, 3, 1, 1),
        [0.5, 2, -3],
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must be a JSON object"),
        ({}, "inputs must be a list of one tensor"),
        ({"inputs": [1]}, "the input must be a JSON object"),
        (request(name="x"), "this model takes 'images'"),
        (request(shape=(1, 4)), r"takes N x 1 x 2 x 2"),
        (request(shape=(True, 1, 2, 2)), "takes N x 1 x 2 x 2"),
        (request([], (0, 1, 2, 2)), "N must lie between 1 and 8"),
        (request([0] * 36, (9, 1, 2, 2)), "N must lie between 1 and 8"),
        (request(datatype="FP32"), "this model takes UINT8"),
        (request(None), "no data"),
        (request([1, 2, 3]), "have 3 numbers: their shape has 4"),
        (request([[1, 2], [3]]), "flat or in rows alike"),
        (request([[1, 2], [3, 4]]), r"nested as \[2, 2\]: their shape is \[1, 1, 2, 2\]"),
        (request([[[[1], [2]], [[3], [4]]]]), r"nested as \[1, 2, 2, 1\]: their shape is \[1, 1, 2, 2\]"),
        (request([1, 2, 3, 256]), "within 0 and 255"),
        (request([1, 2, 3, 2**70]), "within 0 and 255"),
        (request([1, 2, 3, [4]]), "whole numbers"),
        (request([[1, 2], 3]), "flat or in rows alike"),
        (request([[[[1, 2], [3, "4"]]]]), "whole numbers"),
        (request([0.5, 1, 1, 1]), "whole numbers"),
        (request([True] * 4), "whole numbers"),
        (request(["1"] * 4), "whole numbers"),
        (request(id=1), "id must be a text"),
        (request(outputs="score"), "outputs must be a list"),
        (request(outputs=[{"name": "scores"}]), "this model has score, p_value, is_outlier"),
        (request(parameters=[1]), "parameters must be a JSON object"),
    ],
)
def test_what_is_wrong_is_named(content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(content)
    assert len(str(caught.value)) < 500


def test_rows_are_nested_as_their_shape_says():
    with pytest.raises(ValueError, match=r"rows are nested as \[3, 2\]: their shape is \[2, 3\]"):
        read(request([[1, 2], [3, 4], [5, 6]], (2, 3), "rows", "FP32"), ROWS)


def test_what_is_no_number_is_refused_before_numpy_sees_it(monkeypatch):
    for data in ([1, 2, "x"], [1.0, True, 2], [1, None, 2], [1, {}, 2], ["x" * 50, *range(10_000)]):
        with monkeypatch.context() as patch:
            for name in ("array", "asarray"):
                patch.setattr(np, name, lambda *given: pytest.fail("converted"))
            with pytest.raises(ValueError, match="numbers"):
                read(request(data, (1, 3), "rows", "FP64"), ROWS)
    with pytest.raises(ValueError, match="too large for FP64"):
        read(request([1, 10**400, 2], (1, 3), "rows", "FP64"), ROWS)


def test_bytes_that_do_not_fit_are_refused():
    binary = {"name": "images", "shape": [1, 1, 2, 2], "datatype": "UINT8", "parameters": {"binary_data_size": 4}}
    for tail, size in ((b"123", None), (b"12345", None), (b"1234", "-1"), (b"1234", "9999"), (b"1234", "x")):
        with pytest.raises(ValueError, match="bytes"):
            read({"inputs": [binary]}, tail=tail, size=size)
    with pytest.raises(ValueError, match="follow the JSON"):
        read(request(), tail=b"1")
    with pytest.raises(ValueError, match="NaN"):
        read(request([[0, 0, float("nan")]], (1, 3), "rows", "FP64"), ROWS)
    for text in (b"[" * 100_000, b"\xff", b"9" * 10_000, b""):
        with pytest.raises(ValueError, match="not JSON"):
            parse(text, None, IMAGES, 8)


def test_compressed_bodies_are_read_up_to_the_limit():
    packed = gzip.compress(b"x" * 1000)
    assert inflated(packed, "gzip", 1000) == b"x" * 1000
    for body, encoding, message in (
        (packed, "br", "br"), (packed[:-9], "gzip", "missing"), (b"abc", "gzip", "not gzip"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            inflated(body, encoding, 1000)
    for body, encoding in ((packed, "gzip"), (b"x" * 1000, "")):
        with pytest.raises(Refused, match="more than 999 bytes") as caught:
            inflated(body, encoding, 999)
        assert caught.value.status == 413


def test_a_body_may_be_as_large_as_the_model_can_need():
    assert most_bytes(ROWS, 10, 10**9) == 1_000_000 + 64 * 10 * 3
    assert most_bytes(ROWS, 10, 1_000) == 1_000
    rows = [[-1.7976931348623157e308] * 3] * 1000
    assert len(json.dumps(rows, indent=4)) < most_bytes(ROWS, 1000, 10**9)


def test_options_that_would_be_left_undone_are_refused():
    assert options(b"", {"ready"}) == options(b"{}", set()) == options(b'{"parameters": {}}', set()) == {}
    for body, message in (
        (b'{"ready": 1}', "true or false"), (b'{"parameters": {"config": "{}"}}', "'config' is no option"),
        (b"nonsense", "not JSON"), (b"[]", "JSON object"), (b'{"parameters": 3}', "JSON object"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            options(body, {"ready"})


def test_answers_are_text_or_bytes_as_asked():
    values = {
        "score": np.array([0.1, 3], np.float32),
        "p_value": np.array([0.5, 1]),
        "is_outlier": np.array([True, False]),
    }
    body, size = respond("m", read(request(id="7")), values)
    assert size is None
    assert json.loads(body)["id"] == "7"
    assert [tensor["data"] for tensor in json.loads(body)["outputs"]] == [[0.1, 3], [0.5, 1], [True, False]]
    body, size = respond("m", read(request(outputs=[{"name": "score", "parameters": {"binary_data": True}}])), values)
    assert body[size:] == values["score"].tobytes()
    assert [tensor["name"] for tensor in json.loads(body[:size])["outputs"]] == ["score"]


def test_float32_is_written_as_negvae_score_writes_it():
    import pyarrow as pa

    values = np.random.default_rng(0).normal(0, 1e5, 200).astype(np.float32)
    assert plain(values) == [float(text) for text in pa.array(values).cast(pa.string()).to_pylist()]
