"""Requests and responses of the Open Inference Protocol, version 2, over REST: JSON, and the binary tensor extension.

Pure functions from bytes to arrays and back. The protocol is that of KServe; binary tensors are Triton's extension: a
header `Inference-Header-Content-Length` says where the JSON ends, and the tensors' bytes follow it, little-endian, in
the order of the tensors that say `binary_data_size`.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negvae.data.batches import InputSpec
from negvae.service.guard import Refused

HEADER = "inference-header-content-length"
SMALL = 1_000_000
"""Largest body that is read in the event loop, in bytes."""
NUMBER = 64
"""Bytes that a number may take in a body, with what stands between it and the next."""
SHORT = 2048
"""Largest JSON of a request with tensors as bytes that is kept to be recognized, in bytes."""
OUTPUTS = {"score": ("FP32", "<f4"), "p_value": ("FP64", "<f8"), "is_outlier": ("BOOL", "?")}
_NAMES = {
    "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4",
    "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_TYPES = {name: np.dtype(text) for name, text in _NAMES.items()}


@dataclass(frozen=True)
class InferRequest:
    """A request for scores.

    Attributes:
        stored: images (uint8, N x C x H x W, of the model's shape, or of any height and width if the model tiles them)
            or rows (float64, N x D x 1 x 1).
        id: identifier that the response repeats; empty for none.
        outputs: names of the outputs that are wanted, and whether each is sent as bytes.
    """

    stored: NDArray[Any]
    id: str
    outputs: Mapping[str, bool]


@dataclass(frozen=True)
class _Layout:
    """What the JSON of a request says.

    Attributes:
        shape: shape of the input.
        kind: datatype of the input.
        size: number of bytes of the input that follow the JSON; None if its numbers are in the JSON.
        data: numbers of the input in the JSON; None if there are none.
        id: see `InferRequest`.
        outputs: see `InferRequest`.
    """

    shape: tuple[int, ...]
    kind: str
    size: Any
    data: Any
    id: str
    outputs: Mapping[str, bool]


def input_metadata(spec: InputSpec) -> dict[str, Any]:
    """Return name, type and shape of a model's input; -1 is any size."""
    if spec.features:
        return {"name": "rows", "datatype": "FP64", "shape": [-1, spec.shape[0]]}
    if spec.tiled:
        return {"name": "images", "datatype": "UINT8", "shape": [-1, spec.shape[0], -1, -1]}
    return {"name": "images", "datatype": "UINT8", "shape": [-1, *spec.shape]}


def output_metadata() -> list[dict[str, Any]]:
    """Return name, type and shape of the outputs."""
    return [{"name": name, "datatype": kind, "shape": [-1]} for name, (kind, _) in OUTPUTS.items()]


def most_bytes(spec: InputSpec, max_batch: int, max_body: int) -> int:
    """Return the size of the largest body that a request can need.

    Args:
        spec: form of the model's inputs.
        max_batch: maximum number of images or rows.
        max_body: maximum size of any body, in bytes.

    Returns:
        The size in bytes, decompressed.
    """
    return max_body if spec.tiled else min(max_body, SMALL + NUMBER * max_batch * math.prod(spec.shape))


def inflated(body: bytes, encoding: str, limit: int) -> bytes:
    """Decompress a body.

    Args:
        body: body of a request.
        encoding: its content encoding: "gzip", "deflate", or "" or "identity" for none.
        limit: maximum size of the content, in bytes.

    Returns:
        The content.

    Raises:
        Refused: if the content is larger than the limit.
        ValueError: if the encoding is another, or the content is damaged.
    """
    encoding, content = encoding.strip().lower(), body
    if encoding not in ("", "identity", "gzip", "deflate"):
        raise ValueError(f"content encoding is {encoding}: gzip, deflate and identity are accepted")
    is_whole = True
    if encoding in ("gzip", "deflate"):
        try:
            inflator = zlib.decompressobj(47)
            content = inflator.decompress(body, limit + 1)
        except zlib.error as error:
            raise ValueError(f"the body is not {encoding} ({error})") from None
        is_whole = inflator.eof
    if len(content) > limit:
        raise Refused(413, f"the body has more than {limit:,} bytes, which no request to this model needs")
    if not is_whole:
        raise ValueError(f"the end of the {encoding} body is missing")
    return content


def parse(body: bytes, json_size: str | None, spec: InputSpec, max_batch: int) -> InferRequest:
    """Read a request.

    Args:
        body: body of the request, decompressed.
        json_size: value of the header that says where the JSON ends; None if all is JSON.
        spec: form of the model's inputs.
        max_batch: maximum number of images or rows.

    Returns:
        The request.

    Raises:
        ValueError: if the request is not one that the model can answer; the message says what is wrong.
    """
    size = len(body)
    if json_size is not None:
        if not (json_size.isascii() and json_size.isdigit() and len(json_size) < 20 and int(json_size) <= size):
            raise ValueError(f"header {HEADER} is {json_size!r}: expected a number of bytes within the body")
        size = int(json_size)
    # Clients who send tensors as bytes send the same JSON again and again.
    known = json_size is not None and size <= SHORT
    layout = _short_layout(body[:size], spec, max_batch) if known else _layout(body[:size], spec, max_batch)
    return InferRequest(_tensor(layout, body[size:], spec), layout.id, layout.outputs)


def _layout(text: bytes, spec: InputSpec, max_batch: int) -> _Layout:
    """Read the JSON of a request."""
    content = _mapping(_loaded(text), "the request")
    inputs = content.get("inputs")
    wanted = input_metadata(spec)
    name, kind = wanted["name"], wanted["datatype"]
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise ValueError(f"inputs must be a list of one tensor, {name}")
    tensor = _mapping(inputs[0], "the input")
    if tensor.get("name") != name:
        raise ValueError(f"the input is named {str(tensor.get('name'))[:80]!r}: this model takes {name!r}")
    shape = _shape(tensor.get("shape"), wanted, max_batch, spec.max_pixels)
    given = tensor.get("datatype")
    if given != kind and not (spec.features and isinstance(given, str) and given in _TYPES):
        raise ValueError(f"{name} have datatype {str(given)[:80]}: this model takes {kind}")
    size = _parameters(tensor).get("binary_data_size")
    if size is not None and "data" in tensor:
        raise ValueError(f"{name} have both data in the JSON and binary_data_size")
    identifier = content.get("id", "")
    if not isinstance(identifier, str):
        raise ValueError("id must be a text")
    return _Layout(shape, str(given), size, tensor.get("data"), identifier, _wanted(content))


_short_layout = lru_cache(256)(_layout)


def _loaded(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, and of numbers with too many digits
        raise ValueError(f"the request is not JSON ({str(error)[:200]})") from None


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object")
    return value


def _parameters(value: dict[str, Any]) -> dict[str, Any]:
    return _mapping(value.get("parameters") or {}, "parameters")


def _tensor(layout: _Layout, rest: bytes, spec: InputSpec) -> NDArray[Any]:
    """Read the one input of a request, from its JSON or from the bytes after it."""
    name, kind = ("rows", "FP64") if spec.features else ("images", "UINT8")
    dtype, shape = _TYPES[layout.kind], layout.shape
    if layout.size is not None:
        wanted = math.prod(shape) * dtype.itemsize
        if not (type(layout.size) is int and layout.size == len(rest) == wanted):
            raise ValueError(
                f"{name} of shape {list(shape)} and type {layout.kind} take {wanted:,} bytes after the JSON:"
                f" there are {len(rest):,}, and binary_data_size is {str(layout.size)[:40]}"
            )
        values = np.frombuffer(rest, dtype)
    else:
        if rest:
            raise ValueError(f"{len(rest):,} bytes follow the JSON, and no input has binary_data_size")
        values = _numbers(layout.data, name, kind, shape)
    if not spec.features:
        return values.reshape(shape)
    rows = values.astype(np.float64).reshape(shape[0], *spec.shape)
    if not np.isfinite(rows).all():
        raise ValueError("rows hold NaN or infinity")
    return rows


def _shape(shape: Any, wanted: dict[str, Any], max_batch: int, max_pixels: int) -> tuple[int, ...]:
    """Return the shape of a tensor if the model takes it."""
    each = wanted["shape"][1:]
    fits = isinstance(shape, list) and len(shape) == len(each) + 1 and all(type(size) is int for size in shape)
    if not fits or not all(size == want or (want < 0 < size) for size, want in zip(shape[1:], each, strict=True)):
        form = " x ".join(text if size < 0 else str(size) for size, text in zip(each, " HW", strict=False))
        raise ValueError(f"{wanted['name']} have shape {str(shape)[:80]}: this model takes N x {form}")
    if not 1 <= shape[0] <= max_batch:
        raise ValueError(f"{wanted['name']} have shape {str(shape)[:80]}: N must lie between 1 and {max_batch}")
    if -1 in each and shape[2] * shape[3] > max_pixels:
        raise ValueError(f"{wanted['name']} have shape {str(shape)[:80]}: at most {max_pixels:,} pixels are accepted")
    return tuple(shape)


def _numbers(data: Any, name: str, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Convert the numbers of a tensor, flat or nested as its shape says, to a flat array.

    All is checked before NumPy sees it, which would make texts as long as the longest of whatever is among them.
    """
    count, whole = math.prod(shape), kind == "UINT8"
    if not isinstance(data, list):
        raise ValueError(f"{name} have no data: expected a list of {count:,} numbers")
    values, sizes = _flattened(data, name)
    if len(values) != count:
        raise ValueError(f"{name} have {len(values):,} numbers: their shape has {count:,}")
    if len(sizes) > 1 and sizes != shape:
        raise ValueError(f"{name} are nested as {str(list(sizes))[:80]}: their shape is {list(shape)}")
    if not set(map(type, values)) <= ({int} if whole else {int, float}):
        raise ValueError(f"{name} must be a list of {'whole numbers' if whole else 'numbers'}, flat or in rows alike")
    if whole and (min(values) < 0 or max(values) > 255):
        raise ValueError(f"{name} must lie within 0 and 255")
    try:
        return np.array(values, _TYPES[kind])
    except OverflowError:
        raise ValueError(f"{name} hold a number that is too large for {kind}") from None


def _flattened(data: list[Any], name: str) -> tuple[list[Any], tuple[int, ...]]:
    """Return what nested lists hold, one after the other, and the sizes of the array that they are."""
    sizes = [len(data)]
    while data and type(data[0]) is list:
        sizes.append(len(data[0]))
        if not all(type(each) is list and len(each) == sizes[-1] for each in data):
            raise ValueError(f"{name} must be a list of numbers, flat or in rows alike")
        data = list(chain.from_iterable(data))
    return data, tuple(sizes)


def _wanted(content: dict[str, Any]) -> dict[str, bool]:
    """Return the outputs that a request wants, and whether each is sent as bytes; without a list, all of them."""
    binary = _parameters(content).get("binary_data_output") is True
    listed = content.get("outputs")
    if listed is None or listed == []:
        return dict.fromkeys(OUTPUTS, binary)
    if not isinstance(listed, list):
        raise ValueError("outputs must be a list of objects")
    found = {}
    for each in listed:
        output = _mapping(each, "an output")
        name = output.get("name")
        if not isinstance(name, str) or name not in OUTPUTS:
            raise ValueError(f"output {str(name)[:80]!r} is unknown: this model has {', '.join(OUTPUTS)}")
        found[name] = _parameters(output).get("binary_data", binary) is True
    return found


def options(body: bytes, known: Collection[str]) -> dict[str, bool]:
    """Read a request that holds nothing but options, true or false, some of them within `parameters`.

    Args:
        body: body of the request; an empty one has no options.
        known: names of the options.

    Returns:
        The options that are given.

    Raises:
        ValueError: if there is anything else in the request.

    >>> options(b'{"parameters": {"unload_dependents": false}}', {"unload_dependents"})
    {'unload_dependents': False}
    """
    content = _mapping(_loaded(body or b"{}"), "the request")
    found = {name: value for name, value in content.items() if name != "parameters"} | _parameters(content)
    for name, value in found.items():
        if name not in known:
            raise ValueError(f"{name[:80]!r} is no option of this request: {', '.join(known) or 'it has none'}")
        if type(value) is not bool:
            raise ValueError(f"{name} must be true or false")
    return found


def respond(model: str, asked: InferRequest, values: Mapping[str, NDArray[Any]]) -> tuple[bytes, int | None]:
    """Write a response.

    Args:
        model: name of the model.
        asked: the request.
        values: values (N each) of all outputs, by name.

    Returns:
        The body, and the size of the JSON in it if bytes follow, else None.
    """
    count = len(values["score"])
    if not asked.id and all(asked.outputs.values()):
        head = _binary_head(model, tuple(asked.outputs), count)
        return b"".join([head, *(_bytes(name, values) for name in asked.outputs)]), len(head)
    tensors, tail = [], []
    for name, binary in asked.outputs.items():
        tensor: dict[str, Any] = {"name": name, "datatype": OUTPUTS[name][0], "shape": [count]}
        if binary:
            tail.append(_bytes(name, values))
            tensor["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            tensor["data"] = plain(values[name])
        tensors.append(tensor)
    content: dict[str, Any] = {"model_name": model, "model_version": "1", "outputs": tensors}
    if asked.id:
        content["id"] = asked.id
    head = json.dumps(content).encode()
    return b"".join([head, *tail]), len(head) if tail else None


@lru_cache(256)
def _binary_head(model: str, names: tuple[str, ...], count: int) -> bytes:
    """Return the JSON of a response without an id whose outputs all follow it as bytes."""
    outputs = [
        {
            "name": name, "datatype": OUTPUTS[name][0], "shape": [count],
            "parameters": {"binary_data_size": count * np.dtype(OUTPUTS[name][1]).itemsize},
        }
        for name in names
    ]  # fmt: skip
    return json.dumps({"model_name": model, "model_version": "1", "outputs": outputs}).encode()


def _bytes(name: str, values: Mapping[str, NDArray[Any]]) -> bytes:
    return values[name].astype(OUTPUTS[name][1], copy=False).tobytes()


def as_score(threshold: float) -> float:
    """Return a threshold as scores are written: a score as it is written lies above it where the score does.

    >>> as_score(0.1), as_score(float(np.float32(0.1)))
    (0.099999994, 0.1)
    """
    single = np.float32(threshold)
    below = np.nextafter(single, np.float32(-np.inf)) if float(single) > threshold else single
    return float(plain(np.array([below]))[0])


def plain(values: NDArray[Any]) -> list[Any]:
    """Return values for JSON; float32 as the number whose shortest text is theirs, as `negvae score` writes it.

    >>> plain(np.array([0.1], np.float32))
    [0.1]
    """
    return [float(str(value)) for value in values] if values.dtype == np.float32 else list(values.tolist())
