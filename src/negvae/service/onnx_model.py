"""An exported .onnx file behind the service. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negvae.checksums import CHECKSUM, sha256_without
from negvae.data.batches import Batch, InputSpec
from negvae.data.tiling import blend
from negvae.decoding import Decoding
from negvae.files import need
from negvae.messages import first_line
from negvae.scoring.calibration import Calibration
from negvae.service.models import Inputs

BLOCK = 32
"""Number of inputs of one run: always the same, so that a score does not depend on the other inputs of a request."""
_TYPES = {"images": "tensor(uint8)", "rows": "tensor(double)"}


@dataclass(eq=False)
class OnnxModel:
    """An exported file in onnxruntime; see `negvae.service.models.Served` for the attributes."""

    path: Path
    spec: InputSpec
    calibration: Calibration
    unit: str
    meaning: str
    _session: Any
    platform: str = "onnx_onnxruntime"
    offers: frozenset[str] = frozenset()
    no_score: str = "its score is not a number"

    def scores(self, inputs: Inputs) -> NDArray[np.float32]:
        """Compute the decision scores (N) of images or rows; NaN for one that is not a number."""
        if inputs.owners is None:
            return self._blocks("score", inputs.stored)
        starts = np.flatnonzero(np.diff(inputs.owners)) + 1  # the graph takes the tiles of one image at a time
        return np.concatenate([self._run("score", tiles) for tiles in np.split(inputs.stored, starts)])

    def look(self, batch: Batch, rows: NDArray[np.int64], wanted: Collection[str]) -> dict[str, list[NDArray[Any]]]:
        """Compute heat maps (H x W), if the file has them; it holds nothing else that could be wanted."""
        if missing := sorted(set(wanted) - self.offers):
            raise ValueError(f"an exported file gives no {' or '.join(missing)}: serve the run's folder for it")
        if not wanted:
            return {}
        stored, owners = batch.inputs(rows)
        if owners is None:
            return {"heatmap": list(self._blocks("heatmap", stored))}
        return {
            "heatmap": [
                blend(self._run("heatmap", stored[owners == place]), batch.tilings[row])
                for place, row in enumerate(rows)
            ]
        }

    def _blocks(self, output: str, stored: NDArray[Any]) -> NDArray[Any]:
        """Return an output for images or rows, computed in blocks of one size."""
        given, found = stored.reshape(len(stored), -1) if self.spec.features else stored, []
        for start in range(0, len(given), BLOCK):
            part = given[start : start + BLOCK]
            filled = np.concatenate([part, np.repeat(part[-1:], BLOCK - len(part), axis=0)])
            found.append(self._run(output, filled)[: len(part)])
        return np.concatenate(found)

    def _run(self, output: str, given: NDArray[Any]) -> NDArray[Any]:
        name = self._session.get_inputs()[0].name
        values: NDArray[Any] = self._session.run([output], {name: np.ascontiguousarray(given)})[0]
        return values

    def samples(self, count: int, seed: int) -> NDArray[np.uint8]:
        """Refuse to generate images, which an exported file cannot do."""
        raise ValueError("an exported file generates no images: serve the run's folder for samples")

    def priors(self, count: int) -> dict[str, NDArray[np.float64]]:
        """Return no places, since an exported file has no latent map."""
        return {}


def load_onnx(path: Path, threads: int) -> OnnxModel:
    """Load an exported file, and check that its metadata agree with its graph.

    Args:
        path: file that `negvae export` wrote.
        threads: number of threads of onnxruntime.

    Returns:
        The model.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if onnxruntime is not installed.
        ValueError: if the file is no ONNX model, was not exported by this version of negvae or a later one, has changed
            since, or its metadata do not fit its graph.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    runtime = need("onnxruntime", "serve-onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    content = path.read_bytes()  # whose path may be no text for onnxruntime
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        facts = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # onnxruntime has many kinds for a damaged file
        raise ValueError(f"{path}: not a model that onnxruntime reads ({first_line(error)})") from None
    if "negvae" not in facts or "held_out_scores" not in facts:
        raise ValueError(f"{path}: was not exported by this version of negvae: run `negvae export` again")
    written = facts.get(CHECKSUM)  # files of earlier versions have none
    if written is not None and sha256_without(content, written) != written:
        raise ValueError(f"{path}: its content has changed since it was exported: run `negvae export` again")
    offers = frozenset(output.name for output in session.get_outputs()) & {"heatmap"}
    try:
        return OnnxModel(
            path, _spec(facts, session), _calibration(facts), facts["units"], facts["score_meaning"], session,
            offers=offers,
        )  # fmt: skip
    except (KeyError, TypeError, json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{path}: its metadata are damaged ({error}): run `negvae export` again") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}: run `negvae export` again") from None


def _spec(facts: Mapping[str, str], session: Any) -> InputSpec:
    """Return the form of the inputs, as the metadata have it and the graph confirms."""
    given = session.get_inputs()[0]
    features = facts["layout"] == "ND"
    shape = tuple(int(size) for size in facts["shape"].split("x"))
    if given.name not in _TYPES or _TYPES[given.name] != given.type or features != (given.name == "rows"):
        raise ValueError(f"its input is {given.name}, {given.type}, and its metadata name another")
    if "tiles" in facts and "images" not in facts:
        raise ValueError("it takes tiles, and its metadata do not say how images are cut")
    if tuple(given.shape[1:]) != shape or facts["layout"] not in ("NCHW", "ND"):
        raise ValueError(f"its input has shape {given.shape[1:]}, and its metadata say {facts['shape']}")
    order = {1: "gray", 3: "RGB"}.get(shape[0], "as given to fit")
    if not features and (facts["value_range"], facts["channel_order"]) != ("0 to 255", order):
        raise ValueError(f"its pixels are {facts['channel_order']}, {facts['value_range']}, which is not served")
    outputs = [output.name for output in session.get_outputs()]
    if outputs[:3] != ["score", "p_value", "is_outlier"] or outputs[3:] not in ([], ["heatmap"]):
        raise ValueError(f"its outputs are {', '.join(outputs)}")
    decoding = Decoding.from_dict(json.loads(facts["images"])) if "images" in facts else None
    return InputSpec((shape[0], 1, 1) if features else (shape[0], shape[1], shape[2]), features, decoding=decoding)


def _calibration(facts: Mapping[str, str]) -> Calibration:
    """Return the calibration that the metadata describe; its rule draws the same decisions as the graph."""
    name = facts["score"]
    held_out = np.sort(np.asarray(json.loads(facts["held_out_scores"]), np.float32).astype(np.float64))
    groups = {
        group: np.sort(np.asarray(scores, np.float32).astype(np.float64))
        for group, scores in json.loads(facts.get("held_out_scores_of_groups", "{}")).items()
    }
    if not held_out.size or not np.isfinite(held_out).all():
        raise ValueError("its held-out scores are damaged")
    rate = float(facts["target_fpr"]) if "target_fpr" in facts else None
    return Calibration(
        {name: held_out}, name, float(facts.get("threshold_of_all_groups", facts["threshold"])), rate,
        float(facts.get("contamination", 0)), groups={name: groups} if groups else {},
        confidence=float(facts["confidence"]) if "confidence" in facts else None,
        thresholds=json.loads(facts.get("group_thresholds", "{}")),
        joined=facts.get("held_out_rows_are_references") == "true",
        trimmed=float(facts.get("trimmed", 0)),
    )  # fmt: skip
