"""The detector: the library behind scikit-learn's interface for outlier detectors (fit, score, predict)."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, OutlierMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from negvae.data.formats import DataError
from negvae.data.tiling import blend
from negvae.decoding import Decoding
from negvae.detector.decisions import Decisions
from negvae.detector.fitting import Fitting
from negvae.detector.groups import warn_of_small_groups, with_groups
from negvae.detector.inputs import refuse_two_splits, repeatable
from negvae.detector.parameters import parameters_of, plain_parameters, translated
from negvae.detector.photos import each_photo, without_broken
from negvae.detector.plots import HeatmapsDisplay, LatentDisplay
from negvae.detector.shifted import ShiftedPValues
from negvae.device import autocast, own_state, resolve_device
from negvae.files import refuse_used, temporary_folder
from negvae.model import Likelihood
from negvae.model.likelihoods import BuildLikelihood
from negvae.model.networks import BuildNetworks
from negvae.negatives import NegativeSource
from negvae.runs.artifact import (
    CONFIG,
    load_artifact,
    read_config,
    read_section,
    save_artifact,
    write_config,
    write_section,
)
from negvae.runs.recorded import read_recorded, write_recorded
from negvae.runs.seen import refuse_seen
from negvae.scoring.blocks import mapped
from negvae.scoring.calibration import TARGET_FPR
from negvae.scoring.columns import column_surprise
from negvae.scoring.combination import batch_typicality, batch_typicality_threshold
from negvae.scoring.drift import Movement, columns_of, movements
from negvae.scoring.groups import UNKNOWN, check_inlier_labels, split
from negvae.scoring.heatmaps import Heatmaps
from negvae.scoring.scorer import are_references
from negvae.scoring.table import Score, ScoreFunction, score_of
from negvae.scoring.tiles import combine
from negvae.training.checkpoint import Progress
from negvae.training.history import read_metrics, write_metrics
from negvae.training.loop import TrainingResult

_OF_SCIKIT_LEARN = ("_sklearn_output_config", "_metadata_request")


@dataclass(frozen=True)
class Drift:
    """The result of testing whether a batch as a whole is typical of the inliers.

    Attributes:
        typicality: |mean bpd of the batch - mean bpd of the training data|; see `NegVAEDetector.drift` for tiles.
        threshold: typicality that a batch of inliers of this size exceeds at the requested rate.
        alarm: whether the typicality of the batch exceeds the threshold.
        moved: comparisons with the held-out inliers, the most significant first: one for each calibrated score and,
            for rows of features, one for each column.
        furthest: indices of the rows of the batch that score highest, up to ten, the highest first.
    """

    typicality: float
    threshold: float
    alarm: bool
    moved: tuple[Movement, ...] = ()
    furthest: tuple[int, ...] = ()


class NegVAEDetector(
    Fitting, Decisions, ClassNamePrefixFeaturesOutMixin, TransformerMixin, OutlierMixin, BaseEstimator  # type: ignore[misc]
):  # fmt: skip
    """Outlier detector: a variational autoencoder with negative sampling and a calibrated threshold.

    The detector learns from inliers alone. Part of them is held out from training; the p-values and, with
    `target_fpr`, the threshold are computed from this part.

    All methods take data X in the same forms: images as an array or tensor (uint8, or floats in [0, 1]; N x H x W,
    N x H x W x C or N x C x H x W, C 1 or 3), a path or data-set name (`negvae.data.load`; `fit` reads its train
    split, other methods its test split), a folder or list of photos of any size (those of several sizes are cut into
    tiles, see docs/folders.md), an `ImageSet`, or a torch Dataset or DataLoader, of whose items the first part is used;
    or rows of features, N x D numbers of any range (an array, a data frame, or the path of a CSV, Parquet, .npy or .npz
    file), which are standardized and passed to an MLP.

    Args:
        negatives: source of negative samples: a `NegativeSource`, or text in the notation of `negvae.negatives`. None
            uses those of the preset, and `augmented` where the preset names none: transformed images, or rows with
            their features shuffled, spread or drawn from a box, which need no data. "none" trains a plain VAE.
        decision_score: score that decides: the name of one of `negvae.scoring.SCORES`, or a registered function
            (`negvae.register_score`). None uses "neighbors" for rows and "combined", which is made of several scores,
            for images.
        contamination: share of outliers in the data given to `fit`. A value above 0 sets the threshold so that this
            share of the data lies above it; 0, the usual case, means clean data, and `target_fpr` sets the threshold.
        target_fpr: rate of false alarms on fresh inliers that the held-out inliers guarantee. None, or too few
            held-out inliers, puts the threshold above all of the data.
        confidence: probability, such as 0.95, with which this detector's own rate of false alarms is at most
            `target_fpr`: a certificate (see `negvae.scoring.certificates`), for which `fit` refuses too few held-out
            inliers. With None, the rate holds on average over held-out sets.
        calibration_fraction: share of the data given to `fit` that is held out; the smallest p-value is
            1 / (held out + 1). None holds out a fifth, and up to half of more than 500 rows of features, since their
            score loses nothing by it.
        trim: share of X, up to 0.5, that is left out before the fit (`left_out_`) because X may hold outliers: the
            rows that are least usual by the p-values of detectors fitted to the other thirds of X
            (`negvae.detector.cleaning`). It takes the time of three more fits; the guarantees of the p-values do not
            cover inliers that are left out.
        preset: name of a starting point in `negvae.config.PRESETS`. None is "features" for rows and
            "unsupervised" for images, whatever the negatives.
        network: name of the networks, or a function that builds them (see `negvae.RunConfig`); None uses the
            preset's.
        initialization: name of how the networks' weights are drawn (see `negvae.RunConfig`); None uses the preset's.
        likelihood: name of the likelihood p(x|z), or the object itself; None uses the preset's.
        sigma: standard deviation of a Gaussian likelihood; None uses the preset's.
        learn_sigma: whether sigma is trained with the decoder; None uses the preset's value.
        latent_size: number of latent dimensions; None uses the preset's.
        negative_shift: c in the negative prior N(c 1, I); None uses the preset's.
        negative_weight: factor of KL(q(z|negative) || negative prior) in the loss; None uses the preset's.
        transformations: names of transformations of inliers with a prior each, or "none" (see `negvae.RunConfig`); None
            uses the preset's; those of "unsupervised" are quarter turns for 300 to 10,000 training images, and for
            more that are not cut into tiles if their mirror images look like them, as those of photos do.
        update: how decoder and encoder are updated with generated negatives, "alternating" or "simultaneous" (see
            `negvae.RunConfig`); None uses the preset's.
        optimizer: name of the optimizer (see `negvae.RunConfig`); None uses the preset's.
        learning_rate: step size of the optimizer; None uses the preset's.
        schedule: how the learning rate changes in the course of training, "constant" or "cosine" (see
            `negvae.RunConfig`); None uses the preset's.
        batch_size: number of inliers in one training step; None uses the preset's, or a smaller one for small data.
        epochs: number of passes over the training data; None uses the preset's, or more for small data, so that there
            are enough steps.
        precision: floating-point precision of training (see `negvae.RunConfig`); None uses the preset's.
        heatmaps: whether `fit` trains the maps of `heatmap` for images, and `save` keeps them. If not, the first call
            of `heatmap` trains them on the data given to `fit`, which the detector refers to until it is saved or
            pickled.
        random_state: seed or `numpy.random.RandomState`; None gives a different result each time.
        device: device to train and score on: "auto", "cpu", "cuda" or "cuda:N".
        workers: number of threads that share each training batch on a CPU; None chooses it by a short measurement where
            the fit is long (see `negvae.training.loop.train_seeds`). The same number gives the same bits.
        verbose: whether to print a line on standard error after every epoch of training.

    Attributes:
        model_: the trained `negvae.VAE`.
        calibration_: the `negvae.scoring.Calibration`: held-out scores, the threshold and how it was set.
        config_: the `RunConfig` that the model was trained with.
        offset_: minus the threshold; `decision_function` is `score_samples` minus this.
        n_features_in_: number of values in one row or image.
        feature_names_in_: names of the columns, if X has them.
        seed_: seed that was obtained from `random_state`.
        left_out_: mask of the rows of X that `fit` left out because of `trim` (N); a pickle keeps it, `save` does not.

    >>> rows = np.random.default_rng(0).normal(size=(200, 3))
    >>> NegVAEDetector(device="cpu").fit(rows).predict([[0, 0, 0], [50, -50, 50]])
    array([ 1, -1])
    """

    def __init__(
        self,
        negatives: str | NegativeSource | None = None,
        *,
        decision_score: str | Score | ScoreFunction | None = None,
        contamination: float = 0.0,
        target_fpr: float | None = TARGET_FPR,
        confidence: float | None = None,
        calibration_fraction: float | None = None,
        trim: float = 0.0,
        preset: str | None = None,
        network: str | BuildNetworks | None = None,
        initialization: str | None = None,
        likelihood: str | BuildLikelihood | Likelihood | None = None,
        sigma: float | None = None,
        learn_sigma: bool | None = None,
        latent_size: int | None = None,
        negative_shift: float | None = None,
        negative_weight: float | None = None,
        transformations: str | None = None,
        update: str | None = None,
        optimizer: str | None = None,
        learning_rate: float | None = None,
        schedule: str | None = None,
        batch_size: int | None = None,
        epochs: int | None = None,
        precision: str | None = None,
        heatmaps: bool = False,
        random_state: Any = 0,
        device: str = "auto",
        workers: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.negatives = negatives
        self.decision_score = decision_score
        self.contamination = contamination
        self.target_fpr = target_fpr
        self.confidence = confidence
        self.calibration_fraction = calibration_fraction
        self.trim = trim
        self.preset = preset
        self.network = network
        self.initialization = initialization
        self.likelihood = likelihood
        self.sigma = sigma
        self.learn_sigma = learn_sigma
        self.latent_size = latent_size
        self.negative_shift = negative_shift
        self.negative_weight = negative_weight
        self.transformations = transformations
        self.update = update
        self.optimizer, self.learning_rate, self.schedule = optimizer, learning_rate, schedule
        self.batch_size = batch_size
        self.epochs = epochs
        self.precision = precision
        self.heatmaps = heatmaps
        self.random_state = random_state
        self.device = device
        self.workers = workers
        self.verbose = verbose

    # --- fitting -----

    @own_state()
    def fit(self, X: Any, y: Any = None, negatives: Any = None, *, calibration: Any = None, groups: Any = None) -> Self:
        """Train on inliers, hold some out, and set the threshold.

        Args:
            X: inliers, in any form that `NegVAEDetector` describes.
            y: ignored; present for compatibility with scikit-learn.
            negatives: data to use as negatives, in any form that X may have, or any value of the parameter
                `negatives`, which it overrides; None uses that parameter.
            calibration: inliers to hold out, in any form that X may have; the model is then trained on all of X. None
                holds out `calibration_fraction` of X.
            groups: N texts, the group (such as a product) of each row of X, or of `calibration` if that is given:
                each group gets its own threshold and p-values. Or what names them: a column of a data frame or of a
                CSV or Parquet file, which is then no feature; or "folders", for the path of a folder with a subfolder
                for each group. None means no groups.

        Returns:
            The fitted detector itself.

        Raises:
            ValueError: if the data or a parameter cannot be used.
            KeyboardInterrupt: if training was interrupted.
        """
        return self._fit_or_stay(X, negatives, calibration, groups)

    def fit_predict(
        self, X: Any, y: Any = None, *, negatives: Any = None, calibration: Any = None, groups: Any = None
    ) -> NDArray[np.int64]:
        """Fit, and decide which of the same rows or images are outliers.

        Args:
            X: inliers, or mixed data, as for `fit`.
            y: ignored; present for compatibility with scikit-learn.
            negatives: as for `fit`.
            calibration: as for `fit`.
            groups: as for `fit`.

        Returns:
            N labels, +1 for inliers and -1 for outliers, each by the threshold of its group if `groups` names those of
            X, and not those of `calibration`; by the highest threshold if no inlier of its group is held out.

        Raises:
            ValueError: as for `fit`, or if X has a part for training and one for testing.
        """
        refuse_two_splits(X)
        X = repeatable(X)
        self.fit(X, negatives=negatives, calibration=calibration, groups=groups)
        X, labels = with_groups(X, groups if calibration is None else None, columns=self._names_in_files())
        if labels is not None:  # of a small group no inlier may be held out
            labels = [name if name in self.calibration_.thresholds else UNKNOWN for name in labels]
        return self.predict(X, labels)

    def fit_transform(self, X: Any, y: Any = None, **options: Any) -> Any:
        """Fit, and compute the latent codes of the same rows or images; further arguments are those of `fit`.

        Args:
            X: inliers, as for `fit`.
            y: ignored; present for compatibility with scikit-learn.

        Returns:
            N x L numbers, in the form that `set_output` has chosen.

        Raises:
            ValueError: as for `fit`, or if X has a part for training and one for testing.
        """
        refuse_two_splits(X)
        X = repeatable(X)
        self.fit(X, y, **options)
        groups = options.get("groups") if options.get("calibration") is None else None
        return self.transform(with_groups(X, groups, columns=self._names_in_files())[0])

    def fit_fold(self, X: Any, fold: Any = None, *, decoding: Decoding | None = None) -> Self:
        """Train on a part of some inliers and hold out another, as for cross-validation.

        Inliers of the one part that equal some of the other are warned of, where `fit` refuses those of its
        `calibration`: a set may hold copies, and whoever divides it at random cannot help it. Rows of features in
        `fold` do not become reference rows, so that they are scored as new rows are; without `fold`, those that are
        held out do, as in `fit`.

        Args:
            X: inliers to train on, in any form that X of `fit` may have.
            fold: inliers to hold out, in any form as well; None holds out some of X.
            decoding: how photos are decoded, so that the models of all parts take the same; None chooses by X.

        Returns:
            The fitted detector itself.

        Raises:
            ValueError: if the data or a parameter cannot be used.
            KeyboardInterrupt: if training was interrupted.
        """
        return self._fit_or_stay(X, None, fold, None, new=False, decoding=decoding)

    # --- scores and decisions -----

    @own_state()
    def ood_score(self, X: Any, score: str | Score | ScoreFunction | None = None) -> NDArray[np.float32]:
        """Compute one of the library's scores for each row or image.

        Args:
            X: data in any form that `NegVAEDetector` describes.
            score: name of one of `negvae.scoring.SCORES`, or a registered function; None uses the score that decides.

        Returns:
            N scores; larger = more out-of-distribution.

        Raises:
            FileNotFoundError: if X is a path at which there is nothing.
            ValueError: if the data or the score cannot be used.
        """
        check_is_fitted(self, "model_")
        name = score_of(self.calibration_.score if score is None else score).name
        scorer = self._artifact.scorer()
        scorer.check([name])
        return self._scores(X, [name])[0][name]

    def _scores(self, X: Any, names: Sequence[str]) -> tuple[dict[str, NDArray[np.float32]], Tensor]:
        """Return scores of each row or image (N each, by name), and the model's inputs that they were computed from."""
        stored, owners = self._inputs(X)
        scores = self._artifact.scorer()(stored, names)
        if owners is not None and self.calibration_.tiles:
            scores = {name: combine(values, owners, self.calibration_.tiles) for name, values in scores.items()}
        return scores, stored

    def drift(self, X: Any, target_fpr: float = 0.01) -> Drift:
        """Test whether a batch is typical as a whole, and which of its scores and columns have moved.

        Typicality (Nalisnick et al. 2019) uses the mean of `bpd`, and a permutation test decides (see
        `negvae.scoring.combination.batch_typicality_threshold`); the movements compare each calibrated score and,
        for rows of features, each column separately (see `negvae.scoring.drift`). The score "neighbors" is left out
        where held-out rows are reference rows too, since their scores then depend on one another. Where the scores of
        an image's tiles become one, as their largest may, images differ from tiles: there the mean `bpd` of batch and
        held-out inliers together stands in for that of the training data.

        Args:
            X: the batch, of one image or row or more, in any form that `NegVAEDetector` describes.
            target_fpr: rate of false alarms among batches of inliers of this size; it applies to the typicality and,
                separately, to all movements together.

        Returns:
            The typicality with its threshold, the movements, and the rows that score highest.

        Raises:
            ValueError: if the data cannot be used, or the rate is out of range.
        """
        check_is_fitted(self, "model_")
        calibration = self.calibration_
        scores, stored = self._scores(X, list(dict.fromkeys([*calibration.scores, "bpd"])))
        bpd = scores["bpd"]
        center = float(np.mean([*calibration.scores["bpd"], *bpd])) if calibration.tiles else None
        value = batch_typicality(bpd, calibration.reference, center)
        limit = batch_typicality_threshold(
            calibration.scores["bpd"], bpd, calibration.reference, target_fpr, center=center
        )
        held_out = dict(calibration.scores)
        if calibration.joined:
            held_out.pop("neighbors", None)
        batch = {name: scores[name] for name in held_out}
        if calibration.columns is not None:
            names = self._column_names()
            held_out |= dict(zip(names, calibration.columns.T, strict=True))
            batch |= dict(zip(names, stored.flatten(1).numpy().T, strict=True))
        order = np.argsort(-scores[calibration.score], kind="stable")[:10]
        moved = movements(held_out, batch, target_fpr)
        return Drift(value, limit, value > limit, moved, tuple(order.tolist()))

    # --- where -----

    @own_state()
    def heatmap(self, X: Any) -> NDArray[Any]:
        """Compute where each image is out-of-distribution, or which columns of each row are.

        For images, the posterior of each patch is asked which of the two priors it belongs to (`docs/heatmaps.md`).
        The maps are trained by `fit(heatmaps=True)`, or by the first call of this method.

        Args:
            X: data in any form that `NegVAEDetector` describes.

        Returns:
            -log10 of the p-value of each pixel among the pixels of held-out inliers, N x H x W, so that 3 means one in
            a thousand for every image; for rows of features, of each column among the columns of inliers, N x D.
            Photos of several sizes give N objects, each a map of the size to which the photo is decoded.

        Raises:
            ValueError: if the detector was loaded without maps: it has no inliers to train them on.
        """
        check_is_fitted(self, "model_")
        if self.model_.takes_features:
            fitted = self.calibration_.reference.neighbors
            if fitted is None:
                raise ValueError("this detector has no reference rows to compare columns with: fit it anew")
            prepared = self.model_.prepare(self._read(X, "test", fitting=False)[1]).double().flatten(1).cpu()
            return column_surprise(prepared.numpy(), fitted).astype(np.float32)
        maps, decoding = self._maps(), self.config_.images
        if decoding is None or not decoding.tiled:
            return maps(self._inputs(X)[0])
        found = [blend(maps(torch.from_numpy(tiles)), plan) for tiles, plan in each_photo(X, "test", decoding)]
        whole = np.empty(len(found), object)
        for place, values in enumerate(found):
            whole[place] = values.astype(np.float32)
        return np.stack(found).astype(np.float32) if len({values.shape for values in found}) == 1 else whole

    def _maps(self) -> Heatmaps:
        """Return the maps, training them if the inliers are at hand."""
        if self._artifact.heatmaps is None:
            if self._inliers is None:
                raise ValueError(
                    "this detector was loaded without heat maps, and has no inliers to train them on: set heatmaps=True"
                    " before fit, or train with `negvae train --heatmaps`"
                )
            maps = self._trained_maps(self.config_, *self._inliers)
            reference = dataclasses.replace(self.calibration_.reference, heatmaps=maps)
            calibration = dataclasses.replace(self.calibration_, reference=reference)
            self._take(
                dataclasses.replace(self._artifact, calibration=calibration, heatmaps=maps),
                self._history,
                self._recorded,
            )
        return self._artifact.maps()

    # --- guarantees -----

    def recalibrate(
        self, X: Any, *, groups: Any = None, target_fpr: float | None = None, confidence: float | None = None
    ) -> Self:
        """Compute p-values, threshold and the calibration of heat maps from new inliers, without training.

        The model and the reference of its scores do not change. The new inliers replace the held-out ones, and every
        guarantee then applies to data from the source of the new inliers.

        Args:
            X: inliers that the model was not trained on, in any form that X of `fit` may have; the broken files of a
                folder are left out, with a warning.
            groups: group of each inlier (see `fit`); None means no groups.
            target_fpr: new rate of false alarms; None keeps the current rule.
            confidence: probability with which the rate is to hold; None keeps the current one, or drops it if
                `target_fpr` is given.

        Returns:
            The recalibrated detector itself.

        Raises:
            ValueError: if there are too few inliers for the rate, if many of them were trained on, or if the threshold
                was set by contamination and no rate is given.
        """
        check_is_fitted(self, "model_")
        before = self.calibration_
        if before.contamination and target_fpr is None:
            raise ValueError("the threshold was set by a contamination of the training data: give a target_fpr")
        X, labels = with_groups(X, groups, columns=self._names_in_files())
        try:
            found, stored = self._scores(X, list(before.scores))
        except (DataError, FileNotFoundError):
            if (rest := without_broken(X, self.config_.images, self.model_.shape)) is None:
                raise
            found, stored = self._scores(rest[0], list(before.scores))
            labels = None if labels is None else [labels[row] for row in np.flatnonzero(rest[1])]
        refuse_seen(stored, self._recorded.trained, "X")
        scores = {name: values.astype(np.float64) for name, values in found.items()}
        check_inlier_labels(labels, len(scores[before.score]))
        if target_fpr is None and before.target_fpr is None:  # held out were too few for the rate that was wanted
            target_fpr = self._rate(len(scores[before.score]), whole=True)[0] if confidence is None else self.target_fpr
        fresh = dataclasses.replace(
            before, scores={name: np.sort(values) for name, values in scores.items()}, groups={}, thresholds={},
            small=(), joined=are_references(self.model_, stored, before.reference), trimmed=0.0,
            columns=None if before.columns is None else columns_of(stored.flatten(1)),
        ).decide_by(target_fpr=target_fpr, confidence=confidence)  # fmt: skip
        if fresh.confidence is not None:
            fresh.certifiable()
        fresh = fresh.with_thresholds()
        if labels is not None:
            fresh = fresh.with_groups({name: split(values, labels) for name, values in scores.items()})
        warn_of_small_groups(fresh)
        self._take(self._artifact.recalibrated(fresh, stored), self._history, self._recorded)
        if self._inliers is not None:
            self._inliers = self._inliers[0], stored  # for heat maps that are not trained yet
        return self

    def shifted(self, new_inliers: Any, inliers: Any) -> ShiftedPValues:
        """Prepare weighted conformal p-values for a new place, from a few of its inliers (Tibshirani et al. 2019).

        If many inliers of the new place are available, `recalibrate` is simpler and guarantees more. A warning is
        issued if the weights are not reliable.

        Args:
            new_inliers: inliers of the new place, 10 at least.
            inliers: inliers from the source of the training data that the model was not trained on, as many as
                possible; these are weighted.

        Returns:
            An object that gives p-values and reports how reliable the weights are.

        Raises:
            ValueError: if there are fewer than 10 inliers of either kind, or if many of `inliers` were trained on.
        """
        check_is_fitted(self, "model_")
        inliers = repeatable(inliers)
        refuse_seen(self._inputs(inliers)[0], self._recorded.trained, "inliers")
        return ShiftedPValues.of(self, new_inliers, inliers)

    # --- the model -----

    @own_state()
    def transform(self, X: Any) -> NDArray[np.float64]:
        """Compute the latent code of every row or image, the mean of q(z|x); of tiles, their mean (N x L)."""
        check_is_fitted(self, "model_")
        stored, owners = self._inputs(X)
        codes: NDArray[np.float64] = mapped(self.model_, stored, lambda x: self.model_.encode(x).mean).double().numpy()
        if owners is None:
            return codes
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        means: NDArray[np.float64] = np.add.reduceat(codes, starts) / np.diff([*starts, len(codes)])[:, None]
        return means

    @own_state()
    def reconstruct(self, X: Any) -> NDArray[Any]:
        """Compute E[x|z] at the mean of q(z|x): uint8 images N x C x H x W, or rows of features N x D.

        Of a detector of tiled photos, these are the tiles of all images, one image after the other.
        """
        check_is_fitted(self, "model_")
        stored = self._inputs(X)[0]
        return self._shown(mapped(self.model_, stored, lambda x: self.model_.generate(self.model_.encode(x).mean)))

    @own_state()
    def sample(self, n_samples: int = 1, random_state: Any = 0) -> NDArray[Any]:
        """Generate the mean images (or rows of features) of codes drawn from the prior.

        Args:
            n_samples: number of images or rows, 1 or more.
            random_state: seed or `numpy.random.RandomState` of the codes.

        Returns:
            uint8 images n x C x H x W, or rows of features n x D.

        Raises:
            ValueError: if `n_samples` is no whole number of at least 1.
        """
        check_is_fitted(self, "model_")
        if isinstance(n_samples, bool) or not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"n_samples is {n_samples!r}: it must be a whole number of at least 1")
        codes = check_random_state(random_state).standard_normal((n_samples, self.model_.latent_size))
        weights = next(self.model_.parameters())
        with torch.inference_mode(), autocast("float32", self.model_.device):
            parts = [self.model_.generate(part.to(weights)) for part in torch.from_numpy(codes).split(500)]
        return self._shown(torch.cat(parts))

    def _shown(self, prepared: Tensor) -> NDArray[Any]:
        restored = self.model_.inputs.restore(prepared.double().to(self.model_.device)).cpu().numpy()
        return restored.reshape(len(restored), -1) if self.model_.takes_features else restored

    def plot_latent(self, data: Mapping[str, Any], **options: Any) -> LatentDisplay:
        """Plot posterior means between the positive and the negative prior; options are those of `LatentDisplay.plot`.

        Args:
            data: data by the name in the legend, in any form that `NegVAEDetector` describes.

        Returns:
            The display.

        Raises:
            TypeError: if the data has no names.
            ValueError: if no data is given, or some cannot be used.
        """
        return LatentDisplay.from_estimator(self, data, **options)

    def plot_heatmaps(self, X: Any, **options: Any) -> HeatmapsDisplay:
        """Plot the images with the largest decision scores above their maps of where they are out-of-distribution.

        Options are those of `HeatmapsDisplay.from_estimator` and `HeatmapsDisplay.plot`.

        Args:
            X: images in any form that `NegVAEDetector` describes.

        Returns:
            The display.

        Raises:
            ValueError: if the detector takes rows of features, or the images cannot be used.
        """
        check_is_fitted(self, "model_")
        return HeatmapsDisplay.from_estimator(self, X, **options)

    @property
    def _n_features_out(self) -> int:
        return self.model_.latent_size

    # --- keeping -----

    def save(self, directory: Path | str) -> None:
        """Write the detector to a folder, which `load` and `negvae score` read.

        Scores and decisions are kept whole. Of the parameters, which another `fit` of the loaded detector would use,
        `negatives` and `random_state` are not if they are objects: they become the defaults. A pickle keeps them.

        Args:
            directory: folder to write, new or empty.

        Raises:
            ValueError: if the directory is a file or is not empty.
        """
        check_is_fitted(self, "model_")
        directory = Path(directory)
        refuse_used(directory)
        made = not directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        try:
            with temporary_folder(directory, "saving") as place:
                self._write(place)
                for path in sorted(place.iterdir(), key=lambda path: path.name == CONFIG):  # without it nothing loads
                    path.replace(directory / path.name)
        finally:
            if made and not any(directory.iterdir()):  # an error has left nothing to save
                directory.rmdir()

    def _write(self, directory: Path) -> None:
        artifact = self._artifact
        write_config(directory, artifact.config, artifact.model.shape, artifact.provenance)
        write_recorded(directory, self._recorded)
        progress = Progress(epoch=artifact.epochs, finished=artifact.finished)
        progress.seconds = sum(row["seconds"] for row in self._history[-1:])
        write_metrics(directory, self._history)
        result = TrainingResult(artifact.model, progress, "finished", self._history)
        save_artifact(directory, artifact.config, result, artifact.provenance, artifact.calibration, artifact.heatmaps)
        parameters = plain_parameters(self._named_parameters(), artifact.config)
        names = getattr(self, "feature_names_in_", None)
        section = {"parameters": parameters, "feature_names": None if names is None else names.tolist()}
        if names is None and (numbered := getattr(self, "_columns", None)) is not None:
            section["columns"] = list(map(str, numbered))
        write_section(directory, "detector", section)

    def _named_parameters(self) -> dict[str, Any]:
        """Return the parameters, with a score that was given as an object replaced by its name."""
        given = self.get_params(deep=False).items()
        parameters = {name: value.item() if isinstance(value, np.generic) else value for name, value in given}
        score = self.decision_score
        return {**parameters, "decision_score": None if score is None else score_of(score).name}

    @classmethod
    def load(cls, directory: Path | str, device: str = "auto") -> Self:
        """Load a detector from a folder that `save`, or `negvae train` with a calibration, has written.

        Args:
            directory: folder of the detector.
            device: device to score on: "auto", "cpu", "cuda" or "cuda:N"; any but "auto" is that of copies as well, and
                of another `fit`.

        Returns:
            The fitted detector.

        Raises:
            FileNotFoundError: if there is no such folder or a file is missing from it.
            ValueError: if a file is damaged, or if the folder has no calibration.
        """
        directory = Path(directory)
        section = read_section(directory, "detector")
        detector = cls()
        parameters = section.get("parameters") or parameters_of(read_config(directory)[0])
        detector.set_params(**translated(parameters))
        if device != "auto":
            detector.device = device
        detector._restore(directory, device)
        return detector

    def _restore(self, directory: Path, device: str) -> None:
        artifact = load_artifact(directory, device)
        self._take(artifact, read_metrics(directory), read_recorded(directory, artifact.provenance))
        self._inliers = None
        section = read_section(directory, "detector")
        self._columns = section.get("columns")
        if (names := section.get("feature_names")) is not None:
            self.feature_names_in_ = np.asarray(names, dtype=object)

    def __getstate__(self) -> dict[str, Any]:
        """Return the parameters and the artifact's files as bytes, so that a pickle holds no objects of torch."""
        state: dict[str, Any] = {"parameters": self._named_parameters(), "files": None}
        parameters = self.get_params(deep=False)
        # What a user has set: attributes, and by `set_output` and `set_fit_request` those of scikit-learn.
        state["more"] = {
            name: copy.copy(value) for name, value in vars(self).items()
            if name in _OF_SCIKIT_LEARN or not (name in parameters or name.startswith("_") or name.endswith("_"))
        }  # fmt: skip
        if hasattr(self, "left_out_"):
            state["left_out"] = self.left_out_
        if hasattr(self, "model_"):
            with tempfile.TemporaryDirectory() as place:
                self._write(Path(place))
                state["files"] = {path.name: path.read_bytes() for path in Path(place).iterdir()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state that `__getstate__` returned."""
        self.__init__(**translated(state["parameters"]))  # type: ignore[misc]
        self.__dict__.update(state.get("more", {}))
        if "output" in state:  # of earlier versions
            self.set_output(**state["output"])
        if "left_out" in state:
            self.left_out_ = state["left_out"]
        if state["files"] is not None:
            with tempfile.TemporaryDirectory() as place:
                for name, content in state["files"].items():
                    (Path(place) / Path(name).name).write_bytes(content)
                self._restore(Path(place), self._device_here())

    def _device_here(self) -> str:
        """Return the detector's device, or "auto" if the machine that reads a pickle of it has no such device."""
        try:
            resolve_device(self.device)
        except ValueError:
            return "auto"
        return self.device

    def __sklearn_tags__(self) -> Any:
        """Return the tags that describe the estimator to scikit-learn."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags
