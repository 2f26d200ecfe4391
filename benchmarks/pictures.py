"""The pictures of the README and of docs/idea.md, drawn from models that are trained for them: `make pictures`.

    python -m benchmarks.pictures measure [overview] [idea]  # train and keep what is drawn, in runs/pictures
    python -m benchmarks.pictures draw [overview] [idea]     # draw it, light and dark, into docs/pictures

"overview" trains the default detector with heat maps, and the same detector without negatives, on 10,000 images
of Fashion-MNIST, which takes minutes. "idea" trains two models with two latent dimensions on scikit-learn's digits, and
one with a prior for each quarter turn, which takes a minute.
What was measured is kept in benchmarks/results/pictures.json.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from benchmarks.defects import with_defect
from negvae import NegVAEDetector
from negvae.data import load
from negvae.files import write_text
from negvae.runs.provenance import provenance
from negvae.scoring.metrics import auroc

ROOT = Path(__file__).parents[1]
KEPT, PICTURES, FIGURES = ROOT / "runs" / "pictures", ROOT / "docs" / "pictures", "benchmarks/results/pictures.json"
TRAIN, TEST, RATE = 10_000, 2_000, 0.05
"""Images trained on, test images of a set, and the rate of false alarms of the verdicts in the picture."""
SHIFT = 6.0
"""Mean of the negative prior in each of the two dimensions of the idea's picture."""
LIGHT = {"ink": "#1b1d20", "soft": "#5a6068", "paper": "#ffffff", "rule": "#dde0e4", "blue": "#0072b2",
         "red": "#d55e00", "green": "#009e73", "pink": "#cc79a7"}  # fmt: skip
DARK = {"ink": "#e6e8ea", "soft": "#a3a9b1", "paper": "#0d1117", "rule": "#30363d", "blue": "#56b4e9",
        "red": "#ff8c42", "green": "#3fc79a", "pink": "#e59fc6"}  # fmt: skip
"""Okabe and Ito's colors, and lighter ones of the same hues for dark pages."""

Arrays = dict[str, NDArray[Any]]


def evenly(images: NDArray[Any], count: int) -> NDArray[Any]:
    """Return so many images at even distances."""
    return images[np.linspace(0, len(images) - 1, count).astype(int)]


def measure_overview() -> tuple[Arrays, dict[str, Any]]:
    """Train the detector with and without negatives, and score images and maps."""
    clothes, digits = (load(name, "test").images for name in ("fashion-mnist", "mnist"))
    training = evenly(load("fashion-mnist", "train").images, TRAIN)
    without_turns: dict[str, Any] = dict(transformations="none", device="cpu", verbose=True)
    detector = NegVAEDetector(target_fpr=0.01, heatmaps=True, **without_turns).fit(training)
    plain = NegVAEDetector("none", preset="unsupervised", **without_turns).fit(training)
    draw = np.random.default_rng(0)
    shown = [*evenly(clothes, 7)[1:5], *evenly(digits, 5)[1:4]]
    for image, kind in zip(evenly(clothes, 11)[3:6], ("doubled", "stain", "missing"), strict=True):
        changed = with_defect(image.reshape(1, 28, 28) / 255.0, kind, 0.1, draw)[0]
        shown.append(np.rint(255 * changed).astype(np.uint8).reshape(image.shape))
    images = np.stack(shown)
    kept: Arrays = {
        "images": images, "maps": detector.heatmap(images), "p": detector.p_values(images),
    }  # fmt: skip
    sets = {"clothes": evenly(clothes, TEST), "digits": evenly(digits, TEST)}
    for model, name in ((plain, "none"), (detector, "negatives")):
        for score in ("bpd", "kl", "combined"):
            for what, data in sets.items():
                kept[f"{name}_{score}_{what}"] = model.ood_score(data, score)
    facts = {
        f"auroc_{name}_{score}": auroc(kept[f"{name}_{score}_clothes"], kept[f"{name}_{score}_digits"])[0]
        for name in ("none", "negatives") for score in ("bpd", "kl", "combined")
    }  # fmt: skip
    facts["false_alarms_at_0.01"] = float((detector.predict(sets["clothes"]) < 0).mean())
    facts["found_at_0.01"] = float((detector.predict(sets["digits"]) < 0).mean())
    return kept, {**facts, "train": TRAIN, "test": TEST, **provenance(detector.config_)}


def small_images() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return scikit-learn's digits with their labels, and pieces of its two photos, 16x16."""
    found = load_digits()
    digits = [Image.fromarray((image * (255 / 16)).astype(np.uint8)).resize((16, 16)) for image in found.images]
    photos = [Image.fromarray(photo).convert("L").resize((160, 112)) for photo in load_sample_images().images]
    pieces = [np.asarray(photo).reshape(7, 16, 10, 16).swapaxes(1, 2) for photo in photos]
    return np.stack([np.asarray(digit) for digit in digits]), found.target, np.concatenate(pieces).reshape(-1, 16, 16)


def measure_idea() -> tuple[Arrays, dict[str, Any]]:
    """Train two models of two latent dimensions and one with a prior for each quarter turn, and encode images."""
    digits, labels, pieces = small_images()
    training, fresh = digits[:1200], digits[1200:]
    kept: Arrays = {}
    options: dict[str, Any] = dict(
        preset="unsupervised", network="pyramid", transformations="none", device="cpu", epochs=60, verbose=True
    )
    for name, negatives in (("none", "none"), ("negatives", None)):
        detector = NegVAEDetector(negatives, latent_size=2, negative_shift=SHIFT, **options).fit(training)
        kept[f"{name}_inliers"], kept[f"{name}_others"] = (detector.transform(images) for images in (fresh, pieces))
    clear = np.isin(labels, (2, 3, 4, 5, 7))  # a 0, 1 or 8 upside down is one again, and a 6 is a 9
    detector = NegVAEDetector(**{**options, "transformations": "turns"}).fit(training[clear[:1200]])
    for name, images in (("inliers", fresh[clear[1200:]]), ("others", pieces)):
        kept[f"turns_{name}"] = codes_of_turns(detector, evenly(images, 140))
    kept["turns_means"] = simplex_plane(np.asarray(detector.model_.shifted.priors.means))
    return kept, {"train": len(training), **provenance(detector.config_)}


def codes_of_turns(detector: NegVAEDetector, images: NDArray[Any]) -> NDArray[Any]:
    """Return the places of the turned copies of images in the plane of the picture, T x N x 2."""
    model = detector.model_
    with torch.inference_mode():
        prepared = model.prepare(torch.from_numpy(images[:, None].copy()))
        means = model.shifted.posteriors(prepared)[0].double().numpy()
    return simplex_plane(means).reshape(model.shifted.priors.count, -1, 2)


def simplex_plane(codes: NDArray[Any]) -> NDArray[Any]:
    """Project codes (N x L) on the plane in which the four means of the priors lie at the corners of a square.

    The means are the corners of a tetrahedron, d / sqrt(2) (e_t - e_0). Seen along the line through the middles of two
    edges that do not meet, a tetrahedron is a square, and N(mu, I) is N(its corner, I).
    """
    axes = np.zeros((2, codes.shape[1]))
    axes[0, :4] = np.array([-1, 1, 1, -1]) / 2
    axes[1, :4] = np.array([-1, -1, 1, 1]) / 2
    return codes @ axes.T


def draw_overview(kept: Mapping[str, Any], facts: Mapping[str, Any], look: Mapping[str, str]) -> Figure:
    """Draw images with verdicts and heat maps, and the histograms with and without negatives."""
    figure = Figure((10, 5.6), dpi=110, facecolor=look["paper"])
    count = len(kept["images"])
    groups = (("new clothes", 0, 4), ("digits, never shown in training", 4, 7), ("clothes with a defect put in", 7, 10))
    for number in range(count):
        column = _column(number)
        for row, values in enumerate((kept["images"][number], kept["maps"][number])):
            axes = figure.add_axes((column, 0.753 - 0.163 * row, 0.087, 0.155))
            colors, top = (("gray", 255), ("inferno", 4))[row]
            axes.imshow(values.reshape(28, 28), cmap=colors, vmin=0, vmax=top, interpolation="nearest")
            axes.set_axis_off()
        p = float(kept["p"][number])
        verdict, color = ("outlier", look["red"]) if p <= RATE else ("normal", look["blue"])
        figure.text(column + 0.0435, 0.55, verdict, color=color, ha="center", fontsize=10.5, weight="bold")
        figure.text(column + 0.0435, 0.515, f"p = {p:.2g}", color=look["soft"], ha="center", fontsize=9)
    for title, first, last in groups:
        left, width = _column(first), _column(last - 1) + 0.087 - _column(first)
        figure.text(left + width / 2, 0.95, title, color=look["ink"], ha="center", fontsize=11)
        figure.add_artist(Rectangle((left, 0.932), width, 0.003, color=look["rule"]))
    for height, text in ((0.83, "image"), (0.667, "where")):
        figure.text(0.018, height, text, color=look["soft"], rotation=90, va="center", ha="center", fontsize=9)
    edges = np.geomspace(5, 400, 70)
    titles = {
        "none": "Without negatives, digits fall among clothes", "negatives": "With negatives, they do not",
    }  # fmt: skip
    for left, (name, title) in zip((0.035, 0.53), titles.items(), strict=True):
        axes = _plain(figure.add_axes((left, 0.105, 0.45, 0.285)), look)
        for what, color in (("clothes", look["blue"]), ("digits", look["red"])):
            values = np.clip(kept[f"{name}_kl_{what}"], edges[0], edges[-1])
            axes.hist(values, edges, color=color, alpha=0.65, label=what)
        axes.set_xscale("log")
        axes.set_xticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("KL divergence of a code to the prior of clothes, nats", color=look["soft"], fontsize=9)
        axes.set_title(f"{title}: AUROC {facts[f'auroc_{name}_kl']:.3f}", color=look["ink"], fontsize=11, loc="left")
        axes.set_yticks([])
        axes.legend(frameon=False, labelcolor=look["ink"], fontsize=9, loc="upper right")
    return figure


def _column(number: int) -> float:
    """Return the left edge of a column of the overview; groups have a gap between them."""
    return 0.035 + 0.0935 * number + 0.012 * ((number >= 4) + (number >= 7))


def draw_idea(kept: Mapping[str, Any], facts: Mapping[str, Any], look: Mapping[str, str]) -> Figure:
    """Draw codes and priors: one prior, two priors, and one for each quarter turn."""
    figure = Figure((10, 3.9), dpi=110, facecolor=look["paper"])
    titles = ("One prior: a plain VAE", "Two priors: the paper", "A prior for each quarter turn")
    panels = [_plain(figure.add_axes((0.01 + 0.333 * number, 0.12, 0.313, 0.78)), look) for number in range(3)]
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, color=look["ink"], fontsize=12)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
    for axes, name in zip(panels, ("none", "negatives"), strict=False):
        _prior(axes, (0, 0), look["blue"], look)
        if name == "negatives":
            _prior(axes, (SHIFT, SHIFT), look["red"], look)
        for what, color in (("inliers", look["blue"]), ("others", look["red"])):
            axes.plot(*kept[f"{name}_{what}"].T, "o", color=color, ms=3, alpha=0.6, mew=0, label=what)
        axes.set(xlim=(-4.2, 10.2), ylim=(-4.2, 10.2))
    colors = (look["blue"], look["green"], look["pink"], look["red"])
    for turn, (mean, color) in enumerate(zip(kept["turns_means"], colors, strict=True)):
        _prior(panels[2], mean, color, look)
        panels[2].plot(*kept["turns_others"][turn].T, "x", color=look["soft"], ms=3, alpha=0.45, mew=0.7)
        panels[2].plot(*kept["turns_inliers"][turn].T, "o", color=color, ms=2.6, alpha=0.7, mew=0)
    middle = kept["turns_means"].mean(0)
    panels[2].set(xlim=(middle[0] - 2.4, middle[0] + 2.4), ylim=(middle[1] - 2.4, middle[1] + 2.4))
    notes = (
        "blue: digits, red: pieces of photos", "no photo was used in training",
        "dots: digits turned four ways, crosses: photos",
    )  # fmt: skip
    for number, note in enumerate(notes):
        figure.text(0.1665 + 0.333 * number, 0.045, note, color=look["soft"], ha="center", fontsize=9.5)
    return figure


def _prior(axes: Axes, mean: Any, color: str, look: Mapping[str, str]) -> None:
    """Draw the circles at one and two standard deviations of N(mean, I)."""
    for radius, alpha in ((2, 0.10), (1, 0.16)):
        axes.add_patch(Circle(tuple(mean), radius, color=color, alpha=alpha, lw=0))
        axes.add_patch(Circle(tuple(mean), radius, fill=False, color=color, lw=0.9, alpha=0.8))


def _plain(axes: Axes, look: Mapping[str, str]) -> Axes:
    """Give axes the look of the page."""
    axes.set_facecolor(look["paper"])
    for side in axes.spines.values():
        side.set_color(look["rule"])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=look["soft"], labelsize=9, which="both")
    return axes


PARTS: dict[str, tuple[Callable[[], tuple[Arrays, dict[str, Any]]], Callable[..., Figure]]] = {
    "overview": (measure_overview, draw_overview),
    "idea": (measure_idea, draw_idea),
}


def measure(name: str) -> None:
    """Train what a picture needs, and keep arrays and figures."""
    kept, facts = PARTS[name][0]()
    KEPT.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(KEPT / f"{name}.npz", **kept)
    path = ROOT / FIGURES
    every = json.loads(path.read_text()) if path.exists() else {}
    write_text(path, json.dumps({**every, name: facts}, indent=1) + "\n")


def draw(name: str) -> None:
    """Draw a picture in its light and its dark colors."""
    facts = json.loads((ROOT / FIGURES).read_text())[name]
    with np.load(KEPT / f"{name}.npz") as kept:
        arrays = dict(kept)
    PICTURES.mkdir(parents=True, exist_ok=True)
    for look, colors in (("light", LIGHT), ("dark", DARK)):
        figure = PARTS[name][1](arrays, facts, colors)
        figure.savefig(PICTURES / f"{name}-{look}.png", facecolor=colors["paper"], metadata={"Software": None})


def main() -> None:
    """Do what the command line asks for."""
    what, *names = sys.argv[1:] or [""]
    if what not in ("measure", "draw") or not set(names) <= set(PARTS):
        sys.exit(__doc__)
    warnings.filterwarnings("ignore", message=".*held-out inliers")
    for name in names or PARTS:
        (measure if what == "measure" else draw)(name)


if __name__ == "__main__":
    main()
