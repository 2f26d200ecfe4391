"""How a detector is fitted: the data is read and divided, the model trained, the held-out inliers scored."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from torch import Tensor

from negvae.config import DEFAULT_PRESET, PRESETS, RunConfig, preset
from negvae.data import ImageSet, is_path
from negvae.data.formats import DataError
from negvae.data.rows import describe_drowned
from negvae.decoding import Decoding
from negvae.detector.cleaning import cross_fit
from negvae.detector.columns import column_names
from negvae.detector.groups import labels_of_held_out, warn_of_small_groups, with_groups
from negvae.detector.inputs import seed_of, warn_caller
from negvae.detector.parameters import RUN_PARAMETERS, check_parameters
from negvae.detector.photos import Photos, decoding_of, inliers_of, photos_of, read_any, readable
from negvae.detector.reading import Reading
from negvae.device import resolve_device
from negvae.messages import counted, silent
from negvae.negatives import Auxiliary, NegativeSource, build_source, check_source, refuse_overlap, unchanged_images
from negvae.parts import described
from negvae.registry import choose
from negvae.runs.artifact import Artifact
from negvae.runs.calibrate import calibrated
from negvae.runs.division import divide, held_out_rows, rows_to_hold_out
from negvae.runs.fingerprints import Fingerprints
from negvae.runs.folders import exact
from negvae.runs.heatmaps import fit_heatmaps
from negvae.runs.provenance import provenance
from negvae.runs.recorded import MEMORY, SPLIT, WHOLE, Recorded, data_sha256, file_hashes
from negvae.runs.resolve import LEFT_OPEN, fields_left_open, fill_in
from negvae.runs.seen import caution, refuse_seen
from negvae.runs.sets import describe
from negvae.scoring.calibration import Calibration, least_held_out
from negvae.scoring.certificates import certified_rank
from negvae.scoring.groups import check_inlier_labels
from negvae.scoring.heatmaps import Heatmaps
from negvae.scoring.scorer import refuse_unsuited
from negvae.scoring.table import Score, ScoreFunction, score_of
from negvae.scoring.tiles import Owners
from negvae.training.helpers import threads_of_operators
from negvae.training.loop import TrainingResult, train
from negvae.training.reporting import ProgressUpdate
from negvae.training.symmetry import come_mirrored


class Fitting(Reading):
    """The fit of `negvae.NegVAEDetector`, which describes the parameters and fitted attributes."""

    negatives: str | NegativeSource | None
    decision_score: str | Score | ScoreFunction | None
    contamination: float
    target_fpr: float | None
    confidence: float | None
    calibration_fraction: float | None
    trim: float
    preset: str | None
    transformations: str | None
    heatmaps: bool
    random_state: Any
    device: str
    workers: int | None
    verbose: bool
    calibration_: Calibration
    offset_: float
    seed_: int
    left_out_: NDArray[np.bool_]
    _artifact: Artifact
    _history: list[dict[str, Any]]
    _recorded: Recorded
    _inliers: tuple[Tensor, Tensor] | None

    def _fit_or_stay(self, *data: Any, **options: Any) -> Self:
        """Fit; if this fails, a fitted detector stays what it was, and takes the columns that it took."""
        before = dict(vars(self))
        try:
            return self._fit(*data, **options)
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _fit(
        self,
        X: Any,
        negatives: Any,
        calibration: Any,
        groups: Any,
        *,
        new: bool = True,
        decoding: Decoding | None = None,
    ) -> Self:
        """Fit; see `fit`.

        `new` says that inliers to hold out must be new, and not copies of some of X; `decoding` how photos are decoded,
        None to choose.
        """
        check_parameters(self, trims_held_out=bool(self.trim) and calibration is None)
        for name in ("feature_names_in_", "_columns"):  # of an earlier fit to a table
            self.__dict__.pop(name, None)
        photos = photos_of(X, "train")
        if photos is not None and decoding is None:
            decoding = decoding_of(photos)
        if photos is not None and decoding is not None:
            return self._fit_photos(X, photos, decoding, negatives, calibration, groups, new=new)
        labels: list[str] | None = None
        if calibration is None:
            X, labels = with_groups(X, groups, "train")
        try:
            name, stored = self._read(X, "train", fitting=True)
        except DataError:
            if photos is None or not photos.folder:
                raise
            # All headers are in order, and some pixels are not: those images are left out.
            decoding = exact(photos.files or [], photos.name)
            return self._fit_photos(X, photos, decoding, negatives, calibration, groups, new=new)
        if calibration is not None:
            calibration, labels = with_groups(calibration, groups, columns=self._names_in_files())
        return self._fit_stored(X, name, stored, negatives, calibration, labels, new=new)

    def _fit_stored(
        self,
        X: Any,
        name: str,
        stored: Tensor,
        negatives: Any,
        calibration: Any,
        labels: list[str] | None,
        *,
        new: bool,
    ) -> Self:
        """Fit on rows, or on images that are taken as they are; see `fit`."""
        seed = seed_of(self.random_state)
        negatives = self.negatives if negatives is None else negatives
        text: str | None = "auxiliary:given to fit"
        if isinstance(negatives, str | None):
            text, negatives = negatives, None
        elif _is_source(negatives):
            text = f"given:{described(negatives)}"
        if calibration is None:
            check_inlier_labels(labels, len(stored))
        labels_of_training: list[str] | None = None
        given = stored
        self._refuse_score(stored.is_floating_point(), self.transformations)
        flat = stored.flatten(1) if stored.is_floating_point() else stored
        self.left_out_ = self._least_usual(flat.numpy(), seed) if self.trim else np.zeros(len(stored), bool)
        kept = torch.from_numpy(np.flatnonzero(~self.left_out_))
        stored = stored[kept]
        config = self._config(
            name, tuple(stored.shape), seed, text, photos=partial(come_mirrored, stored), whole=calibration is not None
        )
        if calibration is None:
            rows = held_out_rows(len(stored), config.calibration, config.seed)
            training, held_out = divide(stored, rows)
            if labels is not None:
                labels_of_training = np.delete(np.asarray(labels)[kept.numpy()], rows.numpy()).tolist()
                labels = labels_of_held_out(labels, kept[rows].tolist())
            rows = kept[rows]
        else:
            rows = torch.empty(0, dtype=torch.long, device="cpu")
            training, held_out = stored, self._read(calibration, "test", fitting=False, shape=stored.shape[1:])[1]
            if not len(held_out):
                raise ValueError("calibration is empty: give inliers that are not in X, or leave it out")
            if new:
                refuse_seen(held_out, Fingerprints.of(training, held_out[:0]), "calibration")
            check_inlier_labels(labels, len(held_out))
        rate = self._rate(len(held_out), whole=calibration is not None)
        source = self._source(stored, config.negatives, negatives)
        source_of_data = _source_of(X)
        recorded = Recorded(
            data_sha256(given.numpy()), source_of_data, tuple(rows.tolist()),
            file_hashes(name) if source_of_data != MEMORY else {},
        )  # fmt: skip
        description = describe(X) if isinstance(X, ImageSet) else f"{counted(len(stored), 'row')} of {name}"
        trimmed = self.trim if calibration is None else 0.0
        return self._fit_to(
            config, training, held_out, source, rate, description, recorded, trimmed, groups=labels,
            training_groups=labels_of_training, join=new or calibration is None,
        )  # fmt: skip

    def _fit_photos(
        self,
        X: Any,
        photos: Photos,
        decoding: Decoding,
        negatives: Any,
        calibration: Any,
        groups: Any,
        *,
        new: bool,
    ) -> Self:
        """Fit on photos that are decoded as a description says; see `fit`."""
        _, labels = with_groups(X, groups, "train") if calibration is None else with_groups(calibration, groups)
        labels_of_training: list[str] | None = None
        if calibration is None:
            check_inlier_labels(labels, len(photos.sources))
        self.left_out_ = np.zeros(len(photos.sources), bool)
        seed = seed_of(self.random_state)
        self._refuse_score(False, self.transformations)
        if self.trim:
            whole = readable(photos, decoding)
            self.left_out_[whole] = self._least_usual(photos.part(whole).array, seed, decoding)
            if labels is not None and calibration is None:
                labels = [label for label, out in zip(labels, self.left_out_, strict=True) if not out]
            photos = photos.part(~self.left_out_)
        part = 0.2 if self.calibration_fraction is None else self.calibration_fraction
        share = 0.0 if calibration is not None else part
        found = inliers_of(photos, RunConfig(data=photos.name, images=decoding, calibration=share, seed=seed))
        training, held_out = found.training, found.held_out
        owners = Owners(found.training_owners, found.held_out_owners)
        if calibration is not None:
            held_out, others = read_any(calibration, "test", decoding)
            owners = Owners(found.training_owners, others)
            if new:
                refuse_seen(held_out, Fingerprints.of(training, held_out[:0]), "calibration")
            check_inlier_labels(labels, len(np.unique(others)))
        elif labels is not None:
            labels_of_training = [labels[place] for place in found.training_places]
            labels = labels_of_held_out(labels, found.held_out_places.tolist())
        given = self.negatives if negatives is None else negatives
        negative_photos = partial(self._photos_of_negatives, decoding, [training, held_out], owners)
        if not isinstance(given, str | None):
            if not _is_source(given):
                given = Auxiliary(negative_photos(given, "given to fit"))  # which checks them
            elif not decoding.tiled:
                _refuse_inliers_among(given, [training, held_out])
        text = given if isinstance(given, str | None) else f"given:{described(given)}"
        size = (round(len(training) / (1 - share)), *training.shape[1:])
        mirrored = not decoding.tiled and partial(come_mirrored, training)
        config = self._config(photos.name, size, seed, text, decoding, photos=mirrored, whole=calibration is not None)
        rate = self._rate(len(np.unique(owners.held_out)), whole=calibration is not None)
        source = build_source(config.negatives, negative_photos) if isinstance(given, str | None) else given
        rows = held_out_rows(len(photos.sources), share, seed)
        origin = WHOLE if photos.folder and not self.trim else MEMORY
        files = file_hashes(photos.name) if photos.folder else {}
        recorded = Recorded(found.sha256 or None, origin, tuple(rows.tolist()), files)
        return self._fit_to(
            config, training, held_out, source, rate, found.description, recorded,
            self.trim if calibration is None else 0.0, owners=owners if decoding.tiled else None, groups=labels,
            training_groups=labels_of_training,
        )  # fmt: skip

    def _photos_of_negatives(
        self, decoding: Decoding, inliers: Sequence[Tensor], owners: Owners, data: Any, name: str | None = None
    ) -> Tensor:
        """Return photos or their tiles as they are stored, on the training device, checked against the inliers."""
        stored, images = read_any(data, "train", decoding)
        tiles = ([owners.training, owners.held_out], images) if decoding.tiled else None
        refuse_overlap(inliers, stored, "given to fit", str(data) if name is None else name, tiles)
        return stored.to(resolve_device(self.device))

    def _fit_to(
        self,
        config: RunConfig,
        training: Tensor,
        held_out: Tensor,
        source: NegativeSource | None,
        rate: tuple[float | None, float | None],
        description: str,
        recorded: Recorded,
        trimmed: float,
        **calibration: Any,
    ) -> Self:
        """Train, calibrate and set the fitted attributes; further arguments are those of `calibrate`."""
        features = training.is_floating_point()
        self._refuse_score(features, config.transformations)
        if features and (
            text := describe_drowned(training.flatten(1).numpy(), getattr(self, "feature_names_in_", None))
        ):
            warn_caller(text)
        result = self._train(config, training, source)
        self._inliers = None if features else (training, held_out)
        maps = self._trained_maps(config, training, held_out) if self.heatmaps and not features else None
        measured = calibrated(
            config, result, training, held_out, maps, score=self.decision_score, contamination=self.contamination,
            target_fpr=rate[0], confidence=rate[1], log=self._log(), **calibration,
        )  # fmt: skip
        measured = dataclasses.replace(measured, trimmed=trimmed)
        warn_of_small_groups(measured)
        artifact = Artifact(
            Path(), config, result.model, {**provenance(config), "data": {"inliers": description}},
            result.progress.epoch, result.progress.finished, measured, maps,
        )  # fmt: skip
        trained = Fingerprints.of(training, held_out)
        if text := caution(trained):
            warn_caller(text)
        self._take(artifact, result.history, dataclasses.replace(recorded, trained=trained))
        return self

    def _train(self, config: RunConfig, training: Tensor, source: NegativeSource | None) -> TrainingResult:
        def show(update: ProgressUpdate) -> None:
            if update.row is not None:
                print(update.describe(), file=sys.stderr, flush=True)

        # Steps on rows are so short that threads wait for one another.
        with threads_of_operators(1 if training.is_floating_point() else torch.get_num_threads()):
            result = train(config, training, source, on_progress=show if self.verbose else None, workers=self.workers)
        if result.stopped_by != "finished":
            raise KeyboardInterrupt(f"training was stopped by {result.stopped_by}")
        return result

    def _trained_maps(self, config: RunConfig, training: Tensor, held_out: Tensor) -> Heatmaps:
        return fit_heatmaps(
            training, held_out, seed=config.seed, precision=config.precision, device=config.device, log=self._log()
        )

    def _take(self, artifact: Artifact, history: list[dict[str, Any]], recorded: Recorded) -> None:
        """Set the fitted attributes from an artifact."""
        self.calibration_ = artifact.calibrated()
        self.model_ = artifact.model
        self.config_ = artifact.config
        self.offset_ = -self.calibration_.cut
        self.n_features_in_ = artifact.model.dimensions
        self.seed_ = artifact.config.seed
        self._artifact, self._history, self._recorded = artifact, history, recorded

    def _refuse_score(self, features: bool, transformations: str | None) -> None:
        """Refuse a decision score that the model will not have, before anything is trained; None is not decided yet."""
        if self.decision_score is not None:
            score = score_of(self.decision_score)
            refuse_unsuited(score, features=features, transformations=transformations != "none", heatmaps=self.heatmaps)

    def _least_usual(self, data: NDArray[Any], seed: int, decoding: Decoding | None = None) -> NDArray[np.bool_]:
        """Return a mask of the rows, images or photos of mixed data that are left out (N)."""
        log = self._log()
        transformations = self.transformations or "none"
        score = None if self.decision_score is None else score_of(self.decision_score)
        if score and (score.name == "defects" or ("transformations" in score.needs and transformations == "none")):
            score = None  # the folds have neither heat maps nor, for the time that it takes, priors of transformations
        # Outliers that lie together are neighbors of one another: so their share is given.
        plain = {
            "heatmaps": False, "trim": 0.0, "contamination": float(self.trim), "target_fpr": None,
            "confidence": None, "transformations": transformations, "decision_score": score and self.decision_score,
        }  # fmt: skip
        found = cross_fit(lambda: clone(self).set_params(**plain), data, seed=seed, decoding=decoding, log=log)
        return found.least_usual(self.trim)

    def _config(
        self,
        name: str,
        size: tuple[int, ...],
        seed: int,
        negatives: str | None,
        images: Decoding | None = None,
        *,
        photos: Callable[[], bool] | bool = False,
        whole: bool = False,
    ) -> RunConfig:
        """Return the complete config that the parameters describe for inputs of this size (N, C, H, W).

        `whole` says that the model is trained on all of them, since other inliers are held out.
        """
        count, columns, features = size[0], size[1], size[2:] == (1, 1)
        usual = "features" if features else DEFAULT_PRESET
        kind = usual if self.preset is None else choose("preset", self.preset, PRESETS)
        if negatives is None:
            negatives = PRESETS[kind].get("negatives", "augmented")
        values = {key: value for key in RUN_PARAMETERS if (value := getattr(self, key)) is not None}
        calibration = 0.0 if whole else self.calibration_fraction
        if calibration is None:
            calibration = rows_to_hold_out(count) / count if features else PRESETS[kind].get("calibration", 0.2)
        plain = preset(
            kind,
            name,
            negatives=negatives,
            calibration=float(calibration),
            seed=seed,
            device=self.device,
            images=images,
            **values,
        )
        training = count if whole else count - max(round(calibration * count), 1)
        undecided = fields_left_open(kind, [field for field in LEFT_OPEN if getattr(self, field, 0) is not None])
        return fill_in(plain, training, undecided, self._log(), columns=columns, photos=photos, warn=warn_caller)

    def _rate(self, held_out: int, *, whole: bool) -> tuple[float | None, float | None]:
        """Return the target FPR and its confidence; None if the held-out inliers are too few for a rate on average.

        `whole` says whether they were given as such, rather than being a fraction of X.
        """
        if self.contamination or self.target_fpr is None:
            return None, None
        if self.confidence is not None:
            certified_rank(held_out, self.target_fpr, self.confidence)  # refuses before anything is trained
            return self.target_fpr, self.confidence
        if held_out < least_held_out(self.target_fpr):
            advice = "give more of them" if whole else "give more data, or raise calibration_fraction"
            warn_caller(
                f"target_fpr {self.target_fpr:g} needs {least_held_out(self.target_fpr)} held-out inliers, there are"
                f" {held_out}: the threshold lies above the scores of all of them; {advice}"
            )
            return None, None
        return self.target_fpr, None

    def _source(self, inliers: Tensor, text: str, given: Any) -> NegativeSource | None:
        """Return the source of negatives that is given or that `text` names; data is checked against the inliers."""
        if _is_source(given):
            _refuse_inliers_among(given, [inliers])
            return cast(NegativeSource, given)

        def read(data: Any) -> Tensor:
            stored, name = self._read(data, "train", fitting=False, shape=inliers.shape[1:])[::-1]
            refuse_overlap(inliers, stored, "given to fit", name)
            return stored.to(resolve_device(self.device))

        return build_source(text, read) if given is None else Auxiliary(read(given))

    def _log(self) -> Callable[[str], None]:
        return (lambda text: print(text, file=sys.stderr)) if self.verbose else silent


def _source_of(data: Any) -> str:
    """Return the origin of data as a value of `Recorded.source`."""
    if isinstance(data, ImageSet):
        return WHOLE if data.split == "all" else SPLIT
    if isinstance(data, str | Path):
        return WHOLE if is_path(str(data)) else SPLIT
    return MEMORY


def _refuse_inliers_among(source: NegativeSource, inliers: Sequence[Tensor]) -> None:
    """Refuse a source that gives images, or rows, that are inliers."""
    for images in unchanged_images(source):
        refuse_overlap(inliers, images.cpu(), "given to fit", f"of {type(source).__name__}")


def _is_source(value: Any) -> bool:
    """Return whether this is a `NegativeSource`; a data frame has a method `sample`, and its columns as attributes.

    Raises:
        TypeError: if it is a class or a function, which is no data either.
    """
    if callable(value):
        check_source(value)
    return column_names(value) is None and hasattr(value, "sample") and hasattr(value, "adversarial")
