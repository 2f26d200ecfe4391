"""Images as rows of features: the embeddings of any ONNX encoder.

An encoder takes one batch of images and returns N x D numbers, or a map of patches, N x D x h x w (N x T x D for
tokens), which is averaged over the patches. It runs in onnxruntime, one image at a time and each in one thread, so that
an embedding is a function of the image alone. The SHA-256 of the model identifies the encoder.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negvae.data.catalog import Shape
from negvae.files import need
from negvae.messages import first_line

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of pixels in [0, 1] with which most encoders of color images are trained."""
SIDE = 224
"""Height and width of the images, in pixels, if the encoder accepts any size."""
_EXTRA = "onnx"


@dataclass(frozen=True)
class Encoder:
    """An ONNX model that turns images into rows of features.

    Attributes:
        path: path of the model file.
        sha256: SHA-256 of the model file and of the weight files beside it that it names.
        shape: shape (C, H, W) of the images that the encoder takes.
        size: number of features in a row, D.
        channels_last: whether the encoder takes N x H x W x C.
        mean: mean that is subtracted from pixels in [0, 1], one number per channel; empty if the encoder takes uint8.
        std: standard deviation that the difference is divided by, one number per channel; empty if the encoder takes
            uint8.
        output: name of the model output that holds the features.
        map_output: name of the model output that holds the features of patches; "" if there is none.
        upright: whether image files are turned as their EXIF orientation says; runs of earlier versions did not.
    """

    path: Path
    sha256: str
    shape: Shape
    size: int
    channels_last: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    output: str
    map_output: str
    _session: Any = field(repr=False, compare=False)
    upright: bool = True

    def rows(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the embeddings of images.

        Args:
            images: images, uint8, N x C x H x W.

        Returns:
            Rows of features as models take them, float64, N x D x 1 x 1.

        Raises:
            ValueError: if the images have another shape, or an embedding is not finite.
        """
        found = self.embed(images)
        if not np.isfinite(found).all():
            raise ValueError(f"{self.path}: the embedding of an image is not finite")
        return found

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the embeddings of images as `rows` does, and leave values that are not finite to the caller.

        Args:
            images: images, uint8, N x C x H x W.

        Returns:
            Rows of features, float64, N x D x 1 x 1.

        Raises:
            ValueError: if the images have another shape.
        """
        found = np.stack(list(self._each(images, self._one))) if len(images) else np.zeros((0, self.size))
        return found.reshape(len(images), self.size, 1, 1)

    def patches(self, images: NDArray[np.uint8]) -> Iterator[NDArray[np.float64]]:
        """Yield the features of the patches of each image, D x h x w.

        Args:
            images: images, uint8, N x C x H x W.

        Yields:
            The patches of the next image.

        Raises:
            ValueError: if the encoder gives no map of patches, or the images have another shape.
        """
        if not self.map_output:
            raise ValueError(f"{self.path}: gives no map of patches")
        yield from self._each(images, lambda image: _map_of(self._run(image, self.map_output)))

    def _each(
        self, images: NDArray[np.uint8], function: Callable[[NDArray[np.uint8]], NDArray[np.float64]]
    ) -> Iterator[NDArray[np.float64]]:
        if images.dtype != np.uint8 or images.shape[1:] != self.shape:
            found, wanted = ("x".join(map(str, shape)) for shape in (images.shape[1:], self.shape))
            raise ValueError(
                f"{self.path} takes uint8 images of {wanted} (C x H x W), these are {images.dtype} {found}"
            )
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with ThreadPoolExecutor(min(cores, 8), "negvae-embedding") as pool:
            yield from pool.map(function, images)

    def _one(self, image: NDArray[np.uint8]) -> NDArray[np.float64]:
        return _pooled(self._run(image, self.output))

    def _run(self, image: NDArray[np.uint8], output: str) -> NDArray[Any]:
        given: NDArray[Any] = image
        if self.mean:
            mean, std = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (self.mean, self.std))
            given = (image.astype(np.float32) / np.float32(255) - mean) / std
        given = given.transpose(1, 2, 0) if self.channels_last else given
        feed = {self._session.get_inputs()[0].name: np.ascontiguousarray(given)[None]}
        found: NDArray[Any] = self._session.run([output], feed)[0]
        return _channels_first(found) if self.channels_last else found

    def facts(self) -> dict[str, Any]:
        """Return what a run's folder records about the encoder: "sha256", "describes" and "upright"."""
        return {"sha256": self.sha256, "describes": self.describe(), "upright": self.upright}

    def describe(self) -> str:
        """Describe the encoder in one line."""
        shape = "x".join(map(str, self.shape))
        return f"{self.path.name} (sha256 {self.sha256[:16]}), images of {shape} to rows of {self.size:,} numbers"


def load_encoder(path: Path | str, sha256: str | None = None) -> Encoder:
    """Load an encoder.

    An encoder that takes floats gets pixels in [0, 1], less "mean" and divided by "std" of the model's metadata
    (comma-separated numbers, one per channel). If these are missing, color images are normalized with ImageNet's mean
    and standard deviation, and other images are not normalized.

    Args:
        path: path of the .onnx file.
        sha256: SHA-256 that the model must have; None to accept any model.

    Returns:
        The encoder, ready to run on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if the extra "onnx" is not installed.
        ValueError: if the file is not an ONNX model, has another SHA-256, or does not turn images into features.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; --embed takes an encoder as an .onnx file")
    found = _sha256(path)
    if sha256 is not None and found != sha256:
        raise ValueError(
            f"{path} is another encoder than the one that the detector was trained with: its sha256 is {found[:16]},"
            f" not {sha256[:16]}"
        )
    runtime = need("onnxruntime", _EXTRA)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has exceptions of its own for every kind of fault
        raise ValueError(f"{path}: not an ONNX model that onnxruntime runs ({first_line(error)})") from None
    shape, channels_last, kind = _images_of(path, session)
    mean, std = _normalization(path, session, shape[0]) if kind != "tensor(uint8)" else ((), ())
    output = min(session.get_outputs(), key=lambda each: abs(len(each.shape or []) - 2)).name
    draft = Encoder(path, found, shape, 0, channels_last, mean, std, output, "", session)
    blank = np.zeros(shape, np.uint8)
    try:
        size = draft._one(blank).size
        # Of a model with several maps, the one with the most patches.
        maps = {each.name: _grid(draft._run(blank, each.name)) for each in session.get_outputs()}
    except Exception as error:  # as above
        raise ValueError(f"{path}: does not encode an image ({first_line(error)})") from None
    map_output = max(maps, key=lambda name: maps[name], default="")
    return Encoder(
        path, found, shape, size, channels_last, mean, std, output,
        map_output if maps.get(map_output) else "", session,
    )  # fmt: skip


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a model file followed by the weight files beside it.

    Raises:
        ValueError: if the file is not an ONNX model, or names a file that does not exist.
    """
    onnx = need("onnx", _EXTRA)
    try:
        model = onnx.load(path, load_external_data=False)
        places = {
            entry.value
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if tensor.data_location == onnx.TensorProto.EXTERNAL and entry.key == "location"
        }
        digest = hashlib.sha256()
        for each in (path, *(_beside(path, place) for place in sorted(places))):
            with each.open("rb") as file:
                while part := file.read(1 << 20):
                    digest.update(part)
    except Exception as error:  # protobuf has exceptions of its own
        raise ValueError(f"{path}: not an ONNX model with its weights ({first_line(error)})") from None
    return digest.hexdigest()


def _beside(path: Path, place: str) -> Path:
    """Return the path of a weight file; only regular files in the model's own folder are read, whatever it names."""
    folder = path.parent.resolve()
    found = (folder / place).resolve()
    if folder not in found.parents or not found.is_file():
        raise ValueError(f"it names {place!r} as a weight file, which is no file in its folder")
    return found


def _images_of(path: Path, session: Any) -> tuple[Shape, bool, str]:
    """Return the shape (C, H, W) of the images that a model takes, whether channels come last, and its input type."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in ("tensor(float)", "tensor(uint8)"):
        found = ", ".join(f"{each.name}: {each.type} {each.shape}" for each in inputs)
        raise ValueError(f"{path}: takes {found}; an encoder takes one batch of float or uint8 images, N x C x H x W")
    batch, *sizes = (size if isinstance(size, int) else None for size in inputs[0].shape)
    if batch not in (None, 1):
        raise ValueError(f"{path}: takes batches of exactly {batch}; export it with a free batch size, or with 1")
    channels_last = sizes[2] in (1, 3) and sizes[0] not in (1, 3)
    channels, height, width = (sizes[2], *sizes[:2]) if channels_last else sizes
    return (channels or 3, height or SIDE, width or SIDE), channels_last, inputs[0].type


def _normalization(path: Path, session: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel."""
    properties = session.get_modelmeta().custom_metadata_map
    if "mean" not in properties and "std" not in properties:
        return IMAGENET if channels == 3 else ((0.0,) * channels, (1.0,) * channels)
    try:
        mean, std = (tuple(float(part) for part in properties[name].split(",")) for name in ("mean", "std"))
    except (KeyError, ValueError):
        mean = std = ()
    if len(mean) != channels or len(std) != channels or not all(value > 0 for value in std):
        raise ValueError(f"{path}: its metadata must have mean and std, {channels} numbers each, with commas between")
    return mean, std


def _channels_first(output: NDArray[Any]) -> NDArray[Any]:
    """Return an output of an encoder that takes N x H x W x C, where patches are 1 x h x w x D, as 1 x D x h x w.

    Such an encoder may give 1 x D x h x w all the same: if these two sizes are equal and the first is another.
    """
    if output.ndim != 4 or output.shape[1] != output.shape[2] == output.shape[3]:
        return output
    return np.moveaxis(output, 3, 1)


def _pooled(output: Any) -> NDArray[np.float64]:
    """Return one row (D) from the output for one image: 1 x D, patches 1 x D x h x w or tokens 1 x T x D."""
    values: NDArray[np.float64] = np.asarray(output, np.float64)[0]
    patches = {3: (1, 2), 2: (0,)}.get(values.ndim)
    pooled: NDArray[np.float64] = values.ravel() if patches is None else values.mean(patches)
    return pooled


def _grid(output: Any) -> int:
    """Return the number of patches in an output: of a map 1 x D x h x w, or of tokens 1 x T x D; 0 if it has none."""
    shape = np.shape(output)
    if len(shape) == 4:
        return int(shape[2] * shape[3]) if shape[2] * shape[3] > 1 else 0
    if len(shape) != 3:
        return 0
    return next((count for count in (shape[1], shape[1] - 1) if count > 1 and math.isqrt(count) ** 2 == count), 0)


def _map_of(output: Any) -> NDArray[np.float64]:
    """Return the patches D x h x w of one image; of tokens, the first is left out if the others form a square."""
    values: NDArray[np.float64] = np.asarray(output, np.float64)[0]
    if not np.isfinite(values).all():
        raise ValueError("the embedding of a patch is not finite")
    if values.ndim == 3:
        return values
    count = _grid(output)
    side = math.isqrt(count)
    return np.ascontiguousarray(values[-count:].T).reshape(-1, side, side)
