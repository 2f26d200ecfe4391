"""Evaluate a run on a folder in the layout of MVTec AD: which images have a defect, and where.

train/good/*          inliers to train on
test/good/*           inliers to test on
test/KIND/*           images with a kind of defect
ground_truth/KIND/NAME_mask.png    the pixels of the defect in test/KIND/NAME.*, not 0
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table
from sklearn.metrics import roc_auc_score

from negvae.data.formats.folder import IMAGE_ENDINGS, walk
from negvae.data.load import is_defect_layout
from negvae.data.streams import stream
from negvae.files import write_text
from negvae.runs.artifact import Artifact, load_artifact
from negvae.runs.embed import spec_of
from negvae.runs.provenance import provenance
from negvae.runs.resolve import Log, silent
from negvae.scoring.localization import localization

FILE = "evaluation.json"
GOOD = "good"


def evaluate_defects(
    directory: Path, root: Path | None = None, *, precision: str | None = None, device: str = "auto", log: Log = silent
) -> dict[str, Any]:
    """Measure how well a run finds the images and the pixels with a defect, and write evaluation.json.

    Args:
        directory: folder of the run.
        root: folder in the layout of MVTec AD; None for the folder that the run was trained on.
        precision: precision of the scores; None for that of the calibration.
        device: device to compute on: "auto", "cpu", "cuda" or "cuda:N".
        log: called with each line that the user should see.

    Returns:
        What was written: {"train", "score", "kinds", "pixel_auroc", "pro", "without_mask", "provenance"}. "kinds" has
        for each kind of defect, and for "all" of them, the number of images and the AUROC against test/good of the
        decision score and of "defects", the score of the heat maps. Pixels are those of the size that the model takes.
        Without heat maps, "defects" and the measures of pixels are None.

    Raises:
        FileNotFoundError: if the run does not exist.
        ValueError: if the folder has another layout, or holds no defects or no inliers that can be scored.
    """
    artifact = load_artifact(directory, device)
    place = Path(artifact.config.data).expanduser() if root is None else root
    if not is_defect_layout(place):
        raise ValueError(f"{place}: expected the folders train/good, test/good and test/KIND, as in MVTec AD")
    scorer = artifact.scorer(precision)
    decides = artifact.calibration.score if artifact.calibration else "kl"
    names = sorted(path.name for path in (place / "test").iterdir() if path.is_dir())
    found: dict[str, _Kind] = {}
    for kind in names:
        images, paths = _images(place / "test" / kind, artifact, log)
        if len(images):
            scores = scorer(images, [decides])[decides]
            maps = None if artifact.heatmaps is None else artifact.heatmaps
            pixels, defects = (None, None) if maps is None else (maps(images), maps.image_scores(images))
            masks = [_mask(place, kind, path, artifact.model.shape[1:]) for path in paths]
            found[kind] = _Kind(scores, defects, pixels, masks)
            log(f"test/{kind}: {len(images):,} images")
    if GOOD not in found or len(found) < 2:
        raise ValueError(f"{place}: test/good and one test/KIND at least must hold images that can be scored")
    content = {
        "train": artifact.config.data,
        "score": decides,
        "kinds": _kinds(found),
        **_pixels(found, log),
        "provenance": {**provenance(artifact.config), "trained": artifact.provenance},
    }
    write_text(directory / FILE, json.dumps(content, indent=1))
    return content


class _Kind:
    """What was computed for the images of one folder below test/."""

    def __init__(
        self,
        scores: NDArray[Any],
        defects: NDArray[Any] | None,
        maps: NDArray[Any] | None,
        masks: list[NDArray[np.bool_] | None],
    ) -> None:
        self.scores, self.defects, self.maps, self.masks = scores, defects, maps, masks


def _images(folder: Path, artifact: Artifact, log: Log) -> tuple[torch.Tensor, list[str]]:
    """Return the images of a folder as the model takes them, and their files."""
    images, paths = [], []
    if not any(True for _ in walk(str(folder), IMAGE_ENDINGS)):
        return torch.empty(0), []
    for batch in stream([str(folder)], spec_of(artifact, None, True)):
        for path, error in zip(batch.paths, batch.errors, strict=True):
            if error:
                log(f"{path}: {error}")
        good = np.flatnonzero([not error for error in batch.errors])
        images.append(batch.images[good])
        paths += [batch.paths[row] for row in good]
    return torch.from_numpy(np.concatenate(images)), paths


def _mask(root: Path, kind: str, path: str, size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Return the mask of an image in the size that the model takes; None if there is none."""
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
    maps, masks, without = [], [], 0
    for each in found.values():
        if each.maps is not None:
            for values, mask in zip(each.maps, each.masks, strict=True):
                without += mask is None
                if mask is not None:
                    maps.append(values)
                    masks.append(mask)
    if without:
        log(f"{without:,} images have no mask in ground_truth, and are left out of the measures of pixels")
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
    table = Table(title=f"trained on {content['train']}", caption=caption)
    table.add_column("defect", overflow="fold")
    for title in ("images", f"AUROC {content['score']}", "AUROC defects"):
        table.add_column(title, justify="right")
    for kind, row in content["kinds"].items():
        values = [row["auroc"], row["auroc_defects"]]
        table.add_row(kind, f"{row['images']:,}", *("" if value is None else f"{value:.3f}" for value in values))
    return table
