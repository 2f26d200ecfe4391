"""A model repository for the Triton Inference Server: the exported file, and the description that Triton reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from negvae.device import own_state
from negvae.files import write_text
from negvae.model import VAE
from negvae.runs.artifact import load_artifact
from negvae.runs.export import Export, export_onnx

MAX_BATCH = 256
"""Maximum number of images or rows that Triton scores together."""
_OUTPUTS = {"score": "TYPE_FP32", "p_value": "TYPE_FP64", "is_outlier": "TYPE_BOOL"}


@own_state()
def export_triton(
    directory: Path | str,
    repository: Path | str,
    *,
    score: str | None = None,
    target_fpr: float | None = None,
    confidence: float | None = None,
) -> Export:
    """Write a calibrated detector into a Triton model repository, as NAME/1/model.onnx and NAME/config.pbtxt.

    NAME is the name of the run's folder. The repository may hold other models; another version of this one is replaced.

    Args:
        directory: folder of the run.
        repository: folder of the model repository; created if it does not exist.
        score: another of the calibrated scores to decide by; None for the calibration's.
        target_fpr: another false-positive rate for the threshold; None for the calibration's rule.
        confidence: confidence with which the rate holds; see `negvae.runs.export.export_onnx`.

    Returns:
        The file that was written.

    Raises:
        FileNotFoundError: if there is no such detector.
        ImportError: if the extra "onnx" is not installed.
        ValueError: if the detector cannot be exported, if the folder's name cannot be a model's, or if the model would
            lie in the run's own folder.
    """
    directory = Path(directory)
    name = directory.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise ValueError(f"{directory}: Triton takes no model named {name!r}: rename the folder")
    artifact = load_artifact(directory, "cpu", calibration=False)
    tiled = artifact.config.images is not None and artifact.config.images.tiled
    place = Path(repository) / name
    if place.resolve() == directory.resolve():
        raise ValueError(f"--triton {repository} holds the run itself, where the model would lie: take another folder")
    with _folders(place / "1"):
        written = export_onnx(
            directory, place / "1" / "model.onnx", score=score, target_fpr=target_fpr, confidence=confidence
        )
        write_text(place / "config.pbtxt", configuration(name, artifact.model, tiled))
    return written


@contextmanager
def _folders(place: Path) -> Iterator[None]:
    """Create a folder and those above it; after an error, the ones that were created and are empty are removed.

    Triton takes a folder without a model for a model that does not load.
    """
    made = [folder for folder in (place, *place.parents) if not folder.exists()]
    place.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # one that holds something stays, and so do those above it
            for folder in made:
                folder.rmdir()
        raise


def configuration(name: str, model: VAE, tiled: bool = False) -> str:
    """Return Triton's description of an exported model, in the text format of protocol buffers.

    Of a model of tiled images, a request holds the tiles of one image, any number of them, and is not put into a batch
    with others, since the score is one for all tiles of a call.

    Args:
        name: name of the model.
        model: the model, whose inputs are described.
        tiled: whether the inputs are the tiles of one image.

    Returns:
        The content of config.pbtxt.
    """
    rows = model.takes_features
    dims = ", ".join(map(str, [*([-1] if tiled else []), *(model.shape[:1] if rows else model.shape)]))
    lines = [
        f'name: "{name}"', 'backend: "onnxruntime"', f"max_batch_size: {0 if tiled else MAX_BATCH}", "input [", "  {",
        f'    name: "{"rows" if rows else "images"}"', f"    data_type: {'TYPE_FP64' if rows else 'TYPE_UINT8'}",
        f"    dims: [ {dims} ]", "  }", "]", "output [",
    ]  # fmt: skip
    # One number for each input: Triton wants a dimension beside the batch's, which the graph does not have.
    shape = "" if tiled else "\n    reshape: { shape: [ ] }"
    outputs = [
        f'  {{\n    name: "{output}"\n    data_type: {kind}\n    dims: [ 1 ]{shape}\n  }}'
        for output, kind in _OUTPUTS.items()
    ]
    return "\n".join([*lines, ",\n".join(outputs), "]", *([] if tiled else ["dynamic_batching { }"]), ""])
