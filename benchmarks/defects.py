"""Find defects that are put into real images by code: where they are, and which images have one.

    NEGVAE_DATA=... python -m benchmarks.defects [--sets automobiles,sandals,...] [--page docs/heatmaps.md]

Five kinds of defect (scratches, stains, missing parts, doubled parts, color casts), each in three sizes, are put into
test images. None of them is a kind that training puts in (`negvae.negatives.defects`: pasted content of other inliers,
noise textures). What is compared: heat maps, the squared error of a VAE's reconstruction, the squared error of a PCA's
reconstruction (64 components), and the distance to the nearest raw patch of inliers (5x5 pixels, 10,000 patches,
as PatchCore does with features). Each map is smoothed by a Gaussian of one pixel, but for heat maps; an image's score
is the mean of its highest 1% of pixels. The goal of heat maps is `GOAL`, by pixel and by image; what is below it is
printed. Results are kept in results/defects.json after each method, and what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn.functional import interpolate, pad, unfold

from negvae.config import preset
from negvae.data import load
from negvae.files import write_text
from negvae.runs.provenance import provenance
from negvae.scoring.heatmaps import over_blocks
from negvae.scoring.localization import localization
from negvae.training.loop import train
from negvae.training.patches import train_patches

RESULTS = Path(__file__).parent.parent / "results" / "defects.json"
SETS = ("automobiles", "sandals", "house numbers", "kuzushiji", "tiny-imagenet")
KINDS = ("scratch", "stain", "missing", "doubled", "cast")
SIZES = {"small": 0.012, "medium": 0.04, "large": 0.12}
"""Share of the image that a defect is about to cover."""
CLEAN, EACH = 200, 30
"""Clean test images, and images of each kind and size."""
GOAL = 0.95
"""AUROC that heat maps are to reach, by pixel and by image."""
METHODS = ("heat map", "VAE error", "PCA error", "nearest patch")
Maps = NDArray[np.float64]


def images_of(name: str) -> tuple[Tensor, Tensor]:
    """Return training and test images of a set, uint8, N x C x H x W."""
    source, label, train_split = {
        "automobiles": ("cifar10", 1, "train"), "sandals": ("fashion-mnist", 5, "train"),
        "house numbers": ("svhn", None, "test"), "kuzushiji": ("kmnist", None, "test"),
        "tiny-imagenet": ("imagenet32", None, "train"),
    }[name]  # fmt: skip
    found = load(source, train_split)
    if label is None:  # one split is at hand: every tenth image is a test image
        test = np.arange(len(found.images)) % 10 == 0
        parts = found.images[~test], found.images[test]
    else:
        other = load(source, "test")
        assert found.labels is not None
        assert other.labels is not None
        parts = found.images[found.labels == label], other.images[other.labels == label]
    return torch.from_numpy(np.ascontiguousarray(parts[0])), torch.from_numpy(np.ascontiguousarray(parts[1]))


# --- defects, made with NumPy, image by image -----


def with_defect(image: Maps, kind: str, area: float, draw: np.random.Generator) -> tuple[Maps, NDArray[np.bool_]]:
    """Put a defect into an image (C x H x W, 0 to 1) until it shows; return the image and the mask of its pixels."""
    for _ in range(20):
        made = np.clip({"scratch": scratch, "stain": stain, "missing": missing, "doubled": doubled, "cast": cast}[kind](
            image, area, draw
        ), 0, 1)  # fmt: skip
        made = np.rint(made * 255) / 255
        mask = np.abs(made - image).max(0) > 0.04
        if mask.mean() > area / 4:
            break
    return made, mask


def scratch(image: Maps, area: float, draw: np.random.Generator) -> Maps:
    """A thin curve, brighter or darker than the image."""
    height, width = image.shape[1:]
    thickness = max(1.0, 0.03 * min(height, width)) * draw.uniform(0.8, 1.3)
    length = area * height * width / thickness
    steps = np.arange(0, length, 0.25)
    angle = draw.uniform(0, 2 * np.pi) + draw.normal(0, 1.5 / max(length, 8)) * steps
    y = draw.uniform(0.2, 0.8) * height + np.cumsum(0.25 * np.sin(angle))
    x = draw.uniform(0.2, 0.8) * width + np.cumsum(0.25 * np.cos(angle))
    rows, columns = np.mgrid[:height, :width] + 0.5
    distance = np.min((rows[..., None] - y) ** 2 + (columns[..., None] - x) ** 2, -1) ** 0.5
    ink = np.clip(thickness / 2 + 0.5 - distance, 0, 1) * draw.uniform(0.7, 1)
    color = draw.choice([draw.uniform(0, 0.15), draw.uniform(0.85, 1)])
    return image + ink * (color - image)


def blob(image: Maps, area: float, draw: np.random.Generator) -> NDArray[np.bool_]:
    """An uneven round shape."""
    height, width = image.shape[1:]
    rows, columns = np.mgrid[:height, :width] + 0.5
    y, x = rows - draw.uniform(0.2, 0.8) * height, columns - draw.uniform(0.2, 0.8) * width
    angle, radius = np.arctan2(y, x), math.sqrt(area * height * width / np.pi)
    edge = 1 + sum(draw.normal(0, 0.25 / k) * np.cos(k * angle + draw.uniform(0, 2 * np.pi)) for k in (2, 3, 4))
    shape: NDArray[np.bool_] = np.hypot(y, x) < radius * edge
    return shape


def stain(image: Maps, area: float, draw: np.random.Generator) -> Maps:
    """A translucent spot of one color with soft edges."""
    soft = ndimage.gaussian_filter(blob(image, area, draw).astype(float), 0.03 * min(image.shape[1:]))
    return image + soft * draw.uniform(0.5, 0.9) * (draw.uniform(0, 1, (len(image), 1, 1)) - image)


def missing(image: Maps, area: float, draw: np.random.Generator) -> Maps:
    """A part that is replaced by the color of the image's border."""
    border = np.concatenate([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1)
    return np.where(blob(image, area, draw), np.median(border, 1)[:, None, None], image)


def doubled(image: Maps, area: float, draw: np.random.Generator) -> Maps:
    """A part that appears a second time beside itself."""
    height, width = image.shape[1:]
    shape, angle = blob(image, area, draw), draw.uniform(0, 2 * np.pi)
    far = draw.uniform(0.15, 0.4) * min(height, width) + math.sqrt(area * height * width / np.pi)
    shift = (round(far * math.sin(angle)), round(far * math.cos(angle)))
    return np.where(shape, np.stack([ndimage.shift(plane, shift, order=0, mode="reflect") for plane in image]), image)


def cast(image: Maps, area: float, draw: np.random.Generator) -> Maps:
    """A part whose color, or brightness if there is one channel, is shifted."""
    shift = draw.choice([-1, 1], len(image)) * draw.uniform(0.05, 0.3, len(image))
    if len(image) > 1:
        shift[draw.integers(len(image))] = 0
    soft = ndimage.gaussian_filter(blob(image, area, draw).astype(float), 0.02 * min(image.shape[1:]))
    return image + soft * shift[:, None, None]


def trials(test: Tensor) -> tuple[Tensor, NDArray[np.bool_], list[str]]:
    """Return clean and defective test images, their masks, and what each is."""
    draw = np.random.default_rng(2026)
    chosen = test[torch.from_numpy(draw.permutation(len(test)))]
    images, masks, what = [chosen[:CLEAN].numpy()], [np.zeros((CLEAN, *test.shape[2:]), bool)], ["clean"] * CLEAN
    rest = chosen[CLEAN:].numpy() / 255.0
    for kind in KINDS:
        for size, area in SIZES.items():
            for _ in range(EACH):
                made, mask = with_defect(rest[draw.integers(len(rest))], kind, area, draw)
                images.append(np.rint(made * 255).astype(np.uint8)[None])
                masks.append(mask[None])
                what.append(f"{kind}/{size}")
    return torch.from_numpy(np.concatenate(images)), np.concatenate(masks), what


# --- methods: from training and test images to maps -----


def heat_maps(training: Tensor, test: Tensor) -> Maps:
    network = train_patches(training, device="cpu")
    channels, height, width = training.shape[1:]
    return np.concatenate(over_blocks(network, (channels, height, width), test, lambda odds: odds))


def vae_error(training: Tensor, test: Tensor) -> Maps:
    epochs = max(round(20_000 / len(training)), 2)
    config = preset("general", "trial", negatives="none", calibration=0.0, epochs=epochs, device="cpu")
    model = train(config, training).model
    with torch.inference_mode():
        parts = [
            (model.generate(model.encode(model.prepare(part)).mean) - model.prepare(part)).square().mean(1)
            for part in test.split(100)
        ]
    return smooth(torch.cat(parts).double().numpy())


def pca_error(training: Tensor, test: Tensor) -> Maps:
    rows = training[:5000].flatten(1).numpy() / 255.0
    fitted = PCA(64, random_state=0).fit(rows)
    flat = test.flatten(1).numpy() / 255.0
    error = (fitted.inverse_transform(fitted.transform(flat)) - flat) ** 2
    return smooth(error.reshape(test.shape).mean(1))


def nearest_patch(training: Tensor, test: Tensor) -> Maps:
    draw = torch.Generator().manual_seed(0)
    bank = _patches(training[torch.randperm(len(training), generator=draw)[:500]]).flatten(0, 1)
    bank = bank[torch.randperm(len(bank), generator=draw)[:10_000]]
    maps = []
    for part in test.split(20):
        found = _patches(part)
        distance = torch.cdist(found.flatten(0, 1), bank).amin(1).reshape(found.shape[:2])
        side = [math.ceil(length / 2) for length in test.shape[2:]]
        grid = distance.reshape(-1, 1, *side)
        maps.append(interpolate(grid, size=test.shape[2:], mode="bilinear", align_corners=False)[:, 0])
    return smooth(torch.cat(maps).double().numpy())


def _patches(images: Tensor) -> Tensor:
    """Return the 5x5 patches at every second pixel, N x P x 25C."""
    return unfold(pad(images.float() / 255, (2, 2, 2, 2), mode="reflect"), 5, stride=2).transpose(1, 2)


def smooth(maps: Maps) -> Maps:
    smoothed: Maps = ndimage.gaussian_filter(maps, (0, 1, 1))
    return smoothed


RUN: dict[str, Callable[[Tensor, Tensor], Maps]] = dict(
    zip(METHODS, (heat_maps, vae_error, pca_error, nearest_patch), strict=True)
)


def measure(maps: Maps, masks: NDArray[np.bool_], what: list[str]) -> dict[str, list[float]]:
    """Return pixel AUROC, PRO and image AUROC over all, by kind and by size, each against the clean images."""
    count = math.ceil(0.01 * maps[0].size)
    scores = np.sort(maps.reshape(len(maps), -1), 1)[:, -count:].mean(1)
    labels, result = np.array(what), {}
    for part in ("all", *KINDS, *SIZES):
        chosen = np.array([part == "all" or label == "clean" or part in label.split("/") for label in labels])
        found = localization(maps[chosen], masks[chosen], scores[chosen], labels[chosen] != "clean")
        result[part] = [found.pixel_auroc, found.pro, float(found.image_auroc or 0)]
    return result


def table(results: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """The page's table: each set and method, over all defects, then pixel AUROC by kind of defect; then the means."""
    lines = [
        "| images | method | pixel AUROC | PRO | image AUROC | " + " | ".join(KINDS) + " |",
        "|---|---|--:|--:|--:|" + "--:|" * len(KINDS),
    ]
    for name, by_method in results.items():
        for method, found in by_method.items():
            cells = [f"{value:.3f}" for value in found["all"]] + [f"{found[kind][0]:.3f}" for kind in KINDS]
            lines.append(f"| {name} | {method} | {' | '.join(cells)} |")
    for method in METHODS:
        rows = [
            found["all"] + [found[kind][0] for kind in KINDS] for by in results.values() if (found := by.get(method))
        ]
        if rows:
            lines.append(f"| mean | {method} | {' | '.join(f'{value:.3f}' for value in np.mean(rows, axis=0))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS), help="sets to measure, separated by commas")
    parser.add_argument("--page", type=Path, help="page whose table between the marks is replaced")
    options = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"results": {}}
    for name in options.sets.split(","):
        own = kept["results"].setdefault(name, {})
        todo = [method for method in METHODS if method not in own]
        if not todo:
            continue
        training, test = images_of(name)
        images, masks, what = trials(test)
        for method in todo:
            started = time.process_time()
            maps = RUN[method](training, images)
            own[method] = measure(maps, masks, what)
            own[method]["cpu_seconds"] = [time.process_time() - started]
            print(name, method, [round(value, 3) for value in own[method]["all"]], flush=True)
            kept["provenance"] = provenance(preset("general", "trial"))
            RESULTS.parent.mkdir(exist_ok=True)
            write_text(RESULTS, json.dumps(kept, indent=1))
    print(table(kept["results"]))
    for index, by in ((0, "pixel"), (2, "image")):
        missed = [name for name, found in kept["results"].items() if found["heat map"]["all"][index] < GOAL]
        print(f"below {GOAL} by {by}: {', '.join(missed) or 'none'}")
    if options.page:
        begin, end = (
            "<!-- defects: begin (python -m benchmarks.defects --page docs/heatmaps.md) -->",
            "<!-- defects: end -->",
        )
        head, _, rest = options.page.read_text().partition(begin)
        write_text(options.page, f"{head}{begin}\n{table(kept['results'])}\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main()
