"""Evaluate a run on a folder in the layout of MVTec AD: which images have a defect, and where.

train/good/*          inliers to train on
test/good/*           inliers to test on
test/KIND/*           images with a kind of defect
ground_truth/KIND/NAME_mask.png    the pixels of the defect in test/KIND/NAME.*, not 0
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table
from rich.text import Text
from sklearn.metrics import roc_auc_score

from negvae.data.embedding import Encoder
from negvae.data.fit import map_of_image
from negvae.data.formats.folder import IMAGE_ENDINGS, walk
from negvae.data.load import is_defect_layout
from negvae.data.streams import stream
from negvae.data.tiling import resized
from negvae.decoding import Decoding
from negvae.device import own_state
from negvae.files import home, require_writable, write_text
from negvae.messages import Log, silent, visible
from negvae.runs.artifact import Artifact, load_artifact
from negvae.runs.embed import embedded, encoder_of, spec_of
from negvae.runs.pictures import own_form, whole_maps
from negvae.runs.provenance import provenance
from negvae.runs.score import scores_of
from negvae.scoring.localization import localization
from negvae.scoring.scorer import Scorer
from negvae.scoring.tiles import UNCALIBRATED, combine

FILE = "evaluation.json"
GOOD = "good"


@own_state()
def evaluate_defects(
    directory: Path,
    root: Path | None = None,
    *,
    precision: str | None = None,
    device: str = "auto",
    embed: Path | str | None = None,
    log: Log = silent,
) -> dict[str, Any]:
    """Measure how well a run finds the images and the pixels with a defect, and write evaluation.json.

    Args:
        directory: folder of the run.
        root: folder in the layout of MVTec AD; None for the folder that the run was trained on.
        precision: precision of the scores; None for that of the calibration.
        device: device to compute on: "auto", "cpu", "cuda" or "cuda:N".
        embed: present path of the encoder that the model was trained with; None for the path at the time of training.
        log: called with each line that the user should see.

    Returns:
        What was written: {"train", "score", "kinds", "pixel_auroc", "pro", "without_mask", "provenance"}. "kinds" has
        for each kind of defect, and for "all" of them, the number of images and the AUROC against test/good of the
        decision score and of "defects", the score of the heat maps. Pixels are those of the maps.
        Without heat maps, "defects" and the measures of pixels are None.

    Raises:
        FileNotFoundError: if the run does not exist.
        OSError: if evaluation.json cannot be written, which is found out first.
        ValueError: if the folder has another layout, or holds no defects or no inliers that can be scored.
    """
    artifact = load_artifact(directory, device)
    require_writable(directory / FILE)
    place = home(artifact.config.data) if root is None else root
    if not is_defect_layout(place):
        raise ValueError(f"{place}: expected the folders train/good, test/good and test/KIND, as in MVTec AD")
    names = sorted(path.name for path in (place / "test").iterdir() if path.is_dir())
    decides = artifact.calibration.score if artifact.calibration else "kl"
    scorer, encoder = artifact.scorer(precision), encoder_of(artifact, embed)
    found = {kind: _measured(place, kind, artifact, scorer, encoder, decides, log) for kind in names}
    found = {kind: each for kind, each in found.items() if len(each.scores)}
    if GOOD not in found or len(found) < 2:
        raise ValueError(f"{place}: test/good and one test/KIND at least must hold images that can be scored")
    content = {
        "train": artifact.config.data,
        "score": decides,
        "kinds": _kinds(found),
        **_pixels(found, log),
        "provenance": {**provenance(artifact.config, scorer), "trained": artifact.provenance},
    }
    write_text(directory / FILE, json.dumps(content, indent=1))
    return content


@dataclass
class _Kind:
    """What was computed for the images of one folder below test/: scores, maps and masks of defects."""

    scores: NDArray[Any]
    defects: NDArray[Any] | None
    maps: list[NDArray[Any]]
    masks: list[NDArray[np.bool_] | None]


def _measured(
    root: Path, kind: str, artifact: Artifact, scorer: Scorer, encoder: Encoder | None, decides: str, log: Log
) -> _Kind:
    """Score the images of one folder below test/, and compute their maps if the run has some."""
    maps = artifact.heatmaps
    rule = (artifact.calibration.tiles if artifact.calibration else "") or UNCALIBRATED
    folder = root / "test" / kind
    scores: list[NDArray[Any]] = [np.empty(0)]
    defects: list[NDArray[Any]] = [np.empty(0)]
    measured = _Kind(scores[0], None, [], [])
    if not any(True for _ in walk(str(folder), IMAGE_ENDINGS)):
        return measured
    spec = spec_of(artifact, encoder, True)
    for images in stream([str(folder)], spec):
        batch = embedded(images, encoder)
        for path, error in zip(batch.paths, batch.errors, strict=True):
            if error:
                log(f"{path}: {error}")
        good = batch.good()
        if not len(good):
            continue
        scores.append(scores_of(scorer, batch, good, [decides], rule)[decides])
        if maps is not None:
            inputs, owners = batch.inputs(good)
            of_inputs = maps.image_scores(torch.from_numpy(inputs))
            defects.append(of_inputs if owners is None else combine(of_inputs, owners, rule))
            whole = [
                _over_image(values, batch.paths[row], spec.decoding)
                for row, values in zip(good, whole_maps(maps, batch, good), strict=True)
            ]
            measured.maps += whole
            measured.masks += [
                _mask(root, kind, batch.paths[row], values.shape) for row, values in zip(good, whole, strict=True)
            ]
    measured.scores = np.concatenate(scores)
    measured.defects = None if maps is None else np.concatenate(defects)
    log(f"test/{kind}: {len(measured.scores):,} images")
    return measured


def _over_image(values: NDArray[Any], path: str, decoding: Decoding | None) -> NDArray[Any]:
    """Return the map of an image file without the border that it was padded with, and with what was cropped."""
    form = own_form(path)
    return values if form is None else map_of_image(values, form[0], decoding)


def _mask(root: Path, kind: str, path: str, size: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """Return the mask of an image in the size of its map; None if there is none."""
    if kind == GOOD:
        return np.zeros(size, bool)
    below = Path(path).relative_to(root / "test" / kind)
    for name in (f"{below.stem}_mask.png", f"{below.stem}.png"):
        place = root / "ground_truth" / kind / below.parent / name
        if place.is_file():
            try:
                with Image.open(place) as image:
                    # Whatever part of a pixel is defective, the pixel is.
                    whole = np.asarray(image.convert("L")) > 0
            except OSError:
                raise ValueError(f"{place}: not a picture") from None
            resized = Image.fromarray(whole.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BOX)
            mask: NDArray[np.bool_] = np.asarray(resized) > 0
            return mask
    return None


def _kinds(found: dict[str, _Kind]) -> dict[str, dict[str, Any]]:
    """Return the AUROC of each kind, and of all kinds together, against test/good."""
    good, kinds = found[GOOD], {kind: each for kind, each in found.items() if kind != GOOD}
    result = {}
    for kind, chosen in [*((kind, [each]) for kind, each in kinds.items()), ("all", list(kinds.values()))]:
        row: dict[str, Any] = {"images": sum(len(each.scores) for each in chosen)}
        row["auroc"] = _auroc(good.scores, [each.scores for each in chosen])
        row["auroc_defects"] = None
        if good.defects is not None:
            row["auroc_defects"] = _auroc(good.defects, [each.defects for each in chosen if each.defects is not None])
        result[kind] = row
    return result


def _auroc(inliers: NDArray[Any], outliers: list[NDArray[Any]]) -> float:
    scores = np.concatenate([inliers, *outliers])
    return float(roc_auc_score(np.arange(len(scores)) >= len(inliers), scores))


def _pixels(found: dict[str, _Kind], log: Log) -> dict[str, Any]:
    """Return pixel AUROC and PRO over all images that have a mask."""
    maps: list[NDArray[Any]] = []
    masks: list[NDArray[np.bool_]] = []
    without = 0
    for each in found.values():
        for values, mask in zip(each.maps, each.masks, strict=True):
            without += mask is None
            if mask is not None:
                # Photos of several sizes are compared in the size of the first.
                size = maps[0].shape if maps else values.shape
                maps.append(resized(values[None].astype(np.float32), size)[0])
                masks.append(resized(mask[None].astype(np.float32), size)[0] > 0)
    if without:
        have, are = ("image has", "is") if without == 1 else ("images have", "are")
        log(f"{without:,} {have} no mask in ground_truth, and {are} left out of the measures of pixels")
    if not any(mask.any() for mask in masks):
        return {"pixel_auroc": None, "pro": None, "without_mask": without}
    measured = asdict(localization(np.stack(maps), np.stack(masks)))
    return {"pixel_auroc": measured["pixel_auroc"], "pro": measured["pro"], "without_mask": without}


def defects_table(content: dict[str, Any]) -> Table:
    """Return what `evaluate_defects` wrote as a table for a terminal."""
    measured = content["pixel_auroc"] is not None
    caption = "AUROC of images against test/good"
    if measured:
        caption += f"; pixels: AUROC {content['pixel_auroc']:.3f}, PRO to FPR 0.3 {content['pro']:.3f}"
    table = Table(title=Text(visible(f"trained on {content['train']}")), caption=caption)
    table.add_column("defect", overflow="fold")
    for title in ("images", f"AUROC {content['score']}", "AUROC defects"):
        table.add_column(title, justify="right")
    for kind, row in content["kinds"].items():
        values = [row["auroc"], row["auroc_defects"]]
        figures = ("" if value is None else f"{value:.3f}" for value in values)
        table.add_row(Text(visible(kind)), f"{row['images']:,}", *figures)  # brackets in names are no markup
    return table
