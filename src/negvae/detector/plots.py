"""Plots of a fitted detector, in scikit-learn's convention: a Display holds the data, and `plot` draws it on axes.

Each Display keeps what it drew in `ax_` and `figure_`; `from_estimator` computes the data with a fitted detector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import RocCurveDisplay
from sklearn.utils.validation import check_is_fitted

from negvae.data.tiling import blend
from negvae.detector.inputs import repeatable
from negvae.detector.photos import each_photo
from negvae.scoring.calibration import Calibration
from negvae.scoring.heatmaps import LARGEST

Values = NDArray[np.float64]


class HasScores(Protocol):
    """A fitted detector with calibrated decision scores."""

    calibration_: Calibration

    def ood_score(self, X: Any) -> NDArray[Any]:
        """Compute the decision scores of X (N)."""


@dataclass
class ScoresDisplay:
    """Histograms of decision scores, with the threshold.

    Attributes:
        scores: decision scores by the name in the legend.
        threshold: score above which an input is called an outlier.
        name: name of the score.
        ax_: axes of the last plot.
        figure_: figure of the last plot.
    """

    scores: Mapping[str, Values]
    threshold: float
    name: str
    ax_: Any = field(default=None, repr=False)
    figure_: Any = field(default=None, repr=False)

    @classmethod
    def from_estimator(cls, detector: HasScores, data: Mapping[str, Any] | None = None, **options: Any) -> Self:
        """Score data with a fitted detector and plot it beside the held-out inliers; options are those of `plot`.

        Args:
            detector: the fitted detector.
            data: data by the name in the legend, in any form that the detector takes; None shows the held-out inliers
                alone.

        Returns:
            The display.

        Raises:
            TypeError: if the data has no names.
        """
        kept = detector.calibration_
        scores = {"held-out inliers": kept.scores[kept.score]}
        given = {} if data is None else _by_name(data)
        scores |= {name: np.asarray(detector.ood_score(X), np.float64) for name, X in given.items()}
        return cls(scores, kept.cut, kept.score).plot(**options)

    def plot(self, ax: Any = None, *, bins: int = 60) -> Self:
        """Draw the histograms; values beyond the 0.5% and 99.5% quantiles of all of them are counted at the edges.

        Args:
            ax: matplotlib axes; None makes a figure.
            bins: number of bins.

        Returns:
            The display itself.
        """
        self.figure_, self.ax_ = _axes(ax)
        everything = np.concatenate([*self.scores.values(), [self.threshold]])
        low, high = np.quantile(everything, [0.005, 0.995])
        low, high = min(low, self.threshold), max(high, self.threshold)
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
        for name, values in self.scores.items():
            clipped = np.clip(values, edges[0], edges[-1])
            weights = np.full(len(clipped), 1 / max(len(clipped), 1))
            self.ax_.hist(clipped, edges, weights=weights, histtype="stepfilled", alpha=0.4, label=name)
        self.ax_.axvline(self.threshold, color="black", linestyle="--", label="threshold")
        self.ax_.set(xlabel=self.name.replace("_", " "), ylabel="share")
        self.ax_.legend()
        return self


@dataclass
class LatentDisplay:
    """Posterior means in the plane: across, from the positive prior (0) to the negative (1); upward, the largest rest.

    Attributes:
        codes: N x 2 places by the name in the legend.
        radius: radius, on the horizontal axis, of the shell in which most of the positive prior's mass lies.
        ax_: axes of the last plot.
        figure_: figure of the last plot.
    """

    codes: Mapping[str, Values]
    radius: float
    ax_: Any = field(default=None, repr=False)
    figure_: Any = field(default=None, repr=False)

    @classmethod
    def from_estimator(cls, detector: Any, data: Mapping[str, Any], **options: Any) -> Self:
        """Encode data with a fitted `negvae.NegVAEDetector` and plot it; options are those of `plot`.

        Args:
            detector: the fitted detector.
            data: data by the name in the legend, in any form that the detector takes.

        Returns:
            The display.

        Raises:
            TypeError: if the data has no names.
            ValueError: if no data is given.
        """
        if not _by_name(data):
            raise ValueError("there is nothing to plot: give data by name, such as {'inliers': X}")
        codes = {name: np.asarray(detector.transform(X), np.float64) for name, X in data.items()}
        shift, size = detector.model_.negative_prior.shift, detector.model_.latent_size
        return cls(projected(codes, shift), 1 / (shift * np.sqrt(size))).plot(**options)

    def plot(self, ax: Any = None) -> Self:
        """Draw the codes and the centers of the two priors.

        Args:
            ax: matplotlib axes; None makes a figure.

        Returns:
            The display itself.
        """
        self.figure_, self.ax_ = _axes(ax)
        for name, places in self.codes.items():
            self.ax_.plot(*places.T, "o", markersize=3, alpha=0.5, markeredgewidth=0, label=name)
        for center, name in ((0, "positive prior"), (1, "negative prior")):
            self.ax_.axvline(center, color="black", linewidth=1, linestyle="--" if center else "-", label=name)
            self.ax_.axvspan(center - 2 * self.radius, center + 2 * self.radius, color="black", alpha=0.08)
        self.ax_.set(
            xlabel="from the positive prior (0) to the negative prior (1)", ylabel="direction of the largest variance"
        )
        self.ax_.legend()
        return self


def projected(codes: Mapping[str, Values], shift: float) -> dict[str, Values]:
    """Project codes to the line between the priors, and to the direction in which the rest varies most.

    Args:
        codes: N x L posterior means, by name.
        shift: mean of the negative prior in every dimension.

    Returns:
        N x 2 places, by name: 0 is the center of the positive prior, 1 that of the negative one.

    >>> projected({"a": np.full((1, 4), 8.0)}, 8.0)["a"][0, 0]
    np.float64(1.0)
    """
    across = {name: values.mean(1) / shift for name, values in codes.items()}
    rest = {name: values - values.mean(1, keepdims=True) for name, values in codes.items()}
    everything = np.concatenate(list(rest.values()))
    direction = np.linalg.svd(everything - everything.mean(0), full_matrices=False)[2][0]
    return {name: np.stack([across[name], rest[name] @ direction], 1) for name in codes}


@dataclass
class HeatmapsDisplay:
    """Images above the maps of where they are out-of-distribution, all maps in one color scale.

    Attributes:
        images: images as the detector sees them, each uint8, H x W for gray ones, H x W x 3 for color.
        maps: map of each image, H x W: -log10 of the p-value of each pixel among those of held-out inliers.
        p_values: p-value of each image.
        outliers: whether each image is called an outlier.
        axes_: axes of the last plot, 2 x N.
        figure_: figure of the last plot.
    """

    images: Sequence[NDArray[np.uint8]]
    maps: Sequence[NDArray[Any]]
    p_values: Values
    outliers: NDArray[np.bool_]
    axes_: Any = field(default=None, repr=False)
    figure_: Any = field(default=None, repr=False)

    @classmethod
    def from_estimator(cls, detector: Any, X: Any, *, count: int = 8, **options: Any) -> Self:
        """Plot the images with the largest decision scores, the largest first; other options are those of `plot`.

        Args:
            detector: the fitted `negvae.NegVAEDetector`, of images.
            X: images in any form that the detector takes.
            count: number of images that are shown at most.

        Returns:
            The display.

        Raises:
            ValueError: if the detector takes rows of features, or `count` is below 1.
        """
        if detector.model_.takes_features:
            raise ValueError("this detector takes rows of features: `heatmap` gives the columns, and there is no image")
        if count < 1:
            raise ValueError(f"count is {count}: it must be at least 1")
        X = repeatable(X)
        chosen = np.argsort(-detector.ood_score(X), kind="stable")[:count]
        seen, maps = _as_seen(detector, X), detector.heatmap(X)
        outliers = detector.predict(X)[chosen] < 0
        shown, values = [seen[row] for row in chosen], [np.asarray(maps[row]) for row in chosen]
        return cls(shown, values, detector.p_values(X)[chosen], outliers).plot(**options)

    def plot(self, ax: Any = None) -> Self:
        """Draw the images in one row, and their maps below.

        Args:
            ax: matplotlib axes, 2 x N for N images; None makes a figure.

        Returns:
            The display itself.

        Raises:
            ValueError: if there are not as many axes as images and maps.
        """
        count = len(self.images)
        if ax is None:
            import matplotlib.pyplot as plt

            size = (1.6 * count + 0.8, 3.6)
            self.figure_, self.axes_ = plt.subplots(2, count, squeeze=False, layout="constrained", figsize=size)
        else:
            self.axes_ = np.asarray(ax, object)
            if self.axes_.shape != (2, count):
                raise ValueError(f"ax has shape {self.axes_.shape}: it must be 2 x {count}, for images and their maps")
            self.figure_ = self.axes_[0, 0].figure
        for place in range(count):
            above, below = self.axes_[:, place]
            above.imshow(self.images[place], cmap="gray", vmin=0, vmax=255)
            decision = "outlier" if self.outliers[place] else "inlier"
            above.set_title(f"{decision}, p = {self.p_values[place]:.2g}", size=9)
            drawn = below.imshow(self.maps[place], cmap="inferno", vmin=0, vmax=LARGEST)
            for each in (above, below):
                each.set(xticks=[], yticks=[])
        self.figure_.colorbar(drawn, ax=self.axes_[1].tolist(), label="-log10 p-value")
        return self


def _as_seen(detector: Any, X: Any) -> list[NDArray[np.uint8]]:
    """Return images as a detector sees them, tiles put together; of other than 1 or 3 channels, their mean."""
    decoding = detector.config_.images
    if decoding is None or not decoding.tiled:
        pixels = [image.numpy() for image in detector._inputs(X)[0]]
    else:
        pixels = [
            np.stack([blend(tiles[:, channel].astype(np.float64), plan) for channel in range(tiles.shape[1])])
            for tiles, plan in each_photo(X, "test", decoding)
        ]
    shown = [image if len(image) in (1, 3) else image.mean(0, keepdims=True) for image in pixels]
    return [np.rint(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).astype(np.uint8) for image in shown]


class ScorePlots:
    """The plots that every detector with calibrated scores has."""

    def plot_scores(self: Any, data: Mapping[str, Any] | None = None, **options: Any) -> ScoresDisplay:
        """Plot histograms of decision scores beside the held-out inliers', with the threshold.

        Options are those of `negvae.detector.plots.ScoresDisplay.plot`.

        Args:
            data: data by the name in the legend, in any form that the detector takes; None shows the held-out inliers
                alone.

        Returns:
            The display.

        Raises:
            sklearn.exceptions.NotFittedError: if the detector is not fitted.
            TypeError: if the data has no names.
        """
        check_is_fitted(self, "calibration_")
        return ScoresDisplay.from_estimator(self, data, **options)

    def plot_roc(self: Any, inliers: Any, outliers: Any, **options: Any) -> RocCurveDisplay:
        """Plot the ROC curve of the decision score, with outliers as positives.

        Options are those of `sklearn.metrics.RocCurveDisplay.from_predictions`.

        Args:
            inliers: inliers that the model was not trained on, in any form that the detector takes.
            outliers: out-of-distribution data.

        Returns:
            scikit-learn's display.

        Raises:
            ValueError: if the data cannot be used.
        """
        scores = [np.asarray(self.ood_score(X), np.float64) for X in (inliers, outliers)]
        labels = np.repeat([0, 1], [len(each) for each in scores])
        return RocCurveDisplay.from_predictions(
            labels, np.concatenate(scores), **{"name": self.calibration_.score, **options}
        )


def _by_name(data: Any) -> Mapping[str, Any]:
    """Return data by the name in the legend, and refuse data without names."""
    if not isinstance(data, Mapping):
        raise TypeError(f"the data is a {type(data).__name__}: give it by the name in the legend, such as {{'new': X}}")
    return data


def _axes(ax: Any) -> tuple[Any, Any]:
    """Return figure and axes; pyplot is imported here, since it opens a display's backend."""
    if ax is not None:
        return ax.figure, ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")
