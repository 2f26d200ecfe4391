"""One object that gives every score, and its calibration on held-out inliers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negvae.device import own_state, resolve_precision
from negvae.fast.int8_decoder import QuantizedNetworks
from negvae.model import VAE
from negvae.scoring.calibration import Calibration
from negvae.scoring.compute import compute_scores, over_blocks, refuse_in_int8
from negvae.scoring.groups import split
from negvae.scoring.neighbors import SAME_ROWS, fit_neighbors, most_references, share_of_references
from negvae.scoring.passes import SharedDraws
from negvae.scoring.references import References, scale
from negvae.scoring.table import SCORES, Score, ScoreFunction, names_of, score_of
from negvae.scoring.tiles import UNCALIBRATED, Owners, choose_rule, combine
from negvae.scoring.transformations import judge
from negvae.spacing import spread_rows

REFERENCE_IMAGES, REFERENCE_TILES = 5_000, 1_000
LARGEST = float(np.finfo(np.float32).max)
"""What is not a number, or too large for float32, counts as this score: the most conspicuous of all."""


@dataclass(frozen=True)
class Scorer:
    """A trained model, with everything that its scores need.

    A score is a function of the image alone: on one machine and version of torch it has the same bits in any batch,
    order and number of threads (`negvae.scoring.blocks`). On another processor the last digits differ.

    Attributes:
        model: trained VAE, in evaluation mode.
        references: statistics of training images, for the scores that are measured against them
            (`Calibration.reference`).
        ensemble: further models trained in the same way, for "waic".
        precision: precision of the networks: "float32", "bfloat16" or "auto"; a model of features is always scored in
            its own float64.
        seed: seed of the posterior samples, which all images share.
        quantized: the model's networks in int8, used in place of its own; without a decoder among them, only scores of
            the encoder alone are available.
    """

    model: VAE
    references: References = field(default_factory=References)
    ensemble: tuple[VAE, ...] = ()
    precision: str = "float32"
    seed: int = 0
    quantized: QuantizedNetworks | None = None

    @own_state()
    def __call__(self, images: Tensor, scores: Sequence[str | Score | ScoreFunction]) -> dict[str, NDArray[np.float32]]:
        """Score stored images; what several scores need is computed once.

        Args:
            images: uint8 images, N x C x H x W, or rows of features, N x D x 1 x 1.
            scores: scores of `negvae.scoring.SCORES`, by name or as the functions that were registered.

        Returns:
            N float32 values for each score, by its name; a value too large for float32 becomes its largest number.

        Raises:
            ValueError: if a score is unknown or needs something that is missing, or the model does not take the images.
        """
        self.check(scores)
        values = compute_scores(
            self.model, images, scores, draws=SharedDraws(self.seed), references=self.references,
            ensemble=self.ensemble, precision=self.computes_in, quantized=self.quantized,
        )  # fmt: skip
        return {name: _finite(value.numpy()) for name, value in values.items()}

    def measure(self, images: Tensor, components: Sequence[str], fitted: Sequence[str] = ()) -> References:
        """Measure the reference statistics of training images.

        Args:
            images: training images or rows of features, as they are stored.
            components: names of the scores that "combined" is to be made of.
            fitted: names of further scores to fit to the images; scores that cannot be fitted are skipped.

        Returns:
            The scales of "bpd" and of the components, and the fits.
        """
        scaled = list(dict.fromkeys(["bpd", *components]))
        fits = {name: fit for name in dict.fromkeys([*scaled, *fitted]) if (fit := SCORES[name].load_fit())}
        functions: dict[str, ScoreFunction] = {name: SCORES[name].read for name in scaled if name not in fits}
        functions |= {name: fit.statistics for name, fit in fits.items()}
        found = over_blocks(
            self.model, images, functions, draws=SharedDraws(self.seed), precision=self.computes_in,
            quantized=self.quantized,
        )  # fmt: skip
        learned = {name: fit.fit(found[name].numpy()) for name, fit in fits.items()}
        for name in fits.keys() & set(scaled):
            found[name] = fits[name].distance(found[name], torch.from_numpy(learned[name]))
        return References({name: scale(found[name].numpy()) for name in scaled}, learned)

    def check(self, scores: Sequence[str | Score | ScoreFunction]) -> None:
        """Refuse scores that are unknown or need something that is missing.

        Args:
            scores: scores to check, by name or as the functions that were registered.

        Raises:
            ValueError: if a score is refused; the message says which, and what is missing.
        """
        for score in map(score_of, scores):
            if self.quantized is not None:
                refuse_in_int8(score, self.quantized)
            refuse_unsuited(
                score, features=self.model.takes_features, transformations=self.model.shifted is not None,
                heatmaps=self.references.heatmaps is not None,
            )  # fmt: skip
            if "reference" in score.needs and not self.references.has(score.name, score.fit is not None):
                command = "negvae calibrate" if score.calibrated else f"negvae calibrate --score {score.name}"
                raise ValueError(f"score {score.name} is measured against training images: run `{command}` first")
            if "ensemble" in score.needs and not self.ensemble:
                raise ValueError(
                    f"score {score.name} takes an ensemble: name further models trained alike with other seeds"
                )

    @property
    def computes_in(self) -> str:
        """Return the precision to compute in; for a model of features, `precision` has no effect."""
        return "float32" if self.model.takes_features else self.precision


def refuse_unsuited(score: Score, *, features: bool, transformations: bool, heatmaps: bool) -> None:
    """Refuse a score that a model cannot have, whatever it is calibrated on.

    Args:
        score: the score.
        features: whether the model takes rows of features, and not images.
        transformations: whether it is trained with transformations that have priors.
        heatmaps: whether it has heat maps.

    Raises:
        ValueError: if the score needs what the model lacks; the message says what.
    """
    if "features" in score.needs and not features:
        raise ValueError(f"score {score.name} is for rows of features: this model takes images")
    if "pixels" in score.needs and features:
        raise ValueError(f"score {score.name} is for images: rows of features have no pixels")
    if score.name == "defects" and not heatmaps:
        raise ValueError(
            "score defects needs heat maps: train with `negvae train --heatmaps`, or in Python with"
            " NegVAEDetector(heatmaps=True)"
        )
    if "transformations" in score.needs and not transformations:
        raise ValueError(
            f"score {score.name} takes a model that was trained with transformations: train it with"
            " --transformations turns"
        )


@own_state()
def calibrate(
    scorer: Scorer,
    training: Tensor | None,
    held_out: Tensor,
    *,
    references: References | None = None,
    score: str | Score | ScoreFunction | None = None,
    names: Sequence[str] | None = None,
    components: Sequence[str] = ("dose", "prior_ratio"),
    contamination: float = 0.0,
    target_fpr: float | None = None,
    confidence: float | None = None,
    groups: Sequence[str] | None = None,
    training_groups: Sequence[str] | None = None,
    owners: Owners | None = None,
    rule: str | None = None,
    join: bool = True,
    log: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """Score held-out inliers, and set the threshold from their scores.

    Args:
        scorer: scorer of the trained model; its `references` are not used.
        training: images that the model was trained on; up to 5,000 of them, evenly taken, give the statistics
            that "combined", "dose" and "typicality" are measured against. None if they are not kept.
        held_out: inliers that the model was not trained on, at least one; p-values and thresholds rest on them.
        references: statistics of the training images, if the images are not kept.
        score: decision score, by name or as the function that was registered; None for `default_score`.
        names: names of further scores to calibrate; None for those that the table marks; in int8 without a decoder
            those of the encoder alone.
        components: names of the scores that "combined" is made of; a model without negatives has no use for
            "prior_ratio".
        contamination: share of outliers among training and held-out images together; if it is above 0, or
            there is no `target_fpr`, the threshold leaves this share of them above it, and at 0 none.
        target_fpr: false-positive rate of the threshold, from the held-out inliers alone, for clean data.
        confidence: confidence with which that rate is to hold; None for a rate that holds on average over held-out
            sets.
        groups: group of each held-out inlier, if p-values and thresholds are to be those of its group.
        training_groups: group of each training image or row; None if it is not known. Without a `target_fpr`, a group's
            threshold is then set by its training and held-out inliers together; if it is not known, that of a
            contamination by its held-out inliers, and otherwise it lies above all data.
        owners: images that the training and held-out tiles belong to, if images are tiled: the calibration is then that
            of whole images. None if each input is an image.
        rule: rule of `negvae.scoring.tiles` that makes one score of those of an image's tiles; None chooses it on the
            training tiles ("mean" if they are not kept).
        join: whether held-out rows of features may become reference rows of the score "neighbors" too; with a
            confidence they never do.
        log: called with a line that says whether transformations are part of "combined", if the model has some.

    Returns:
        The calibration, with the reference statistics in it.

    Raises:
        ValueError: if there are no held-out inliers, too few for the rate, or none with a decision score that is a
            number.
    """
    if not len(held_out):
        raise ValueError("no inliers are held out for calibration: ask for a fraction above 0, or give more data")
    target_fpr = None if contamination else target_fpr
    model = scorer.model
    decisive = score_of(default_score(model) if score is None else score).name
    names = [decisive, *(_usual_names(model) if names is None else names)]
    apart = dict[str, NDArray[np.float32]]()
    references = References() if references is None else references
    if scorer.quantized is not None and scorer.quantized.decode is None:
        names = [name for name in names if not SCORES[name].needs]
    elif training is not None:
        most = REFERENCE_IMAGES if owners is None else REFERENCE_TILES
        references = _references(scorer, training, most, components, names, log)
        if model.takes_features:
            join = join and confidence is None
            references, apart = _with_neighbors(model, references, training, held_out, contamination, join=join)
    references = replace(references, heatmaps=scorer.references.heatmaps)
    with_maps = references.heatmaps is not None and scorer.quantized is None
    measured = replace(scorer, references=references)
    names = list(dict.fromkeys([*names, "defects"] if with_maps else names))
    raw = {**measured(held_out, names), **{name: apart[name] for name in names if name in apart}}
    if owners is not None:
        rule = rule or _rule(measured, training, owners, decisive)
        raw = {name: combine(values, owners.held_out, rule) for name, values in raw.items()}
    found = {name: values.astype(np.float64) for name, values in raw.items()}
    scores = {name: np.sort(values) for name, values in found.items()}
    deciding: NDArray[Any] = _checked(scores[decisive], decisive)
    if target_fpr is None:  # the threshold leaves a share of all data above it
        of_held_out = (measured(held_out, [decisive]) if contamination and owners is None else found)[decisive]
        deciding = np.concatenate([of_held_out, *_of_training(measured, training, owners, rule, decisive)])
    rounding = None if scorer.quantized is None else {n: v.numpy() for n, v in scorer.quantized.rounding.items()}
    precision = "int8" if rounding else resolve_precision(scorer.computes_in, scorer.model.device)
    calibration = Calibration(
        scores, decisive, 0.0, target_fpr, contamination, references, precision, rounding,
        confidence=None if target_fpr is None else confidence, tiles=rule or "",
        joined=references.joined if training is not None else are_references(model, held_out, references),
    )  # fmt: skip
    calibration = replace(calibration, threshold=calibration.threshold_for(deciding))
    if groups is None:
        return calibration
    return _by_group(calibration, found, deciding, groups, None if training is None else training_groups)


def _by_group(
    calibration: Calibration,
    held_out: Mapping[str, NDArray[np.float64]],
    deciding: NDArray[Any],
    groups: Sequence[str],
    training_groups: Sequence[str] | None,
) -> Calibration:
    """Return the calibration with the held-out scores and the threshold of each group.

    Without a rate, `deciding` has the scores of all data, the held-out first (N), and they set the thresholds where the
    groups of all are known.
    """
    calibration = calibration.with_groups({name: split(values, groups) for name, values in held_out.items()})
    if calibration.target_fpr is not None:
        return calibration
    if training_groups is not None:
        every = split(deciding, [*groups, *training_groups])
        found = {name: calibration.threshold_for(every[name]) for name in calibration.thresholds}
        return replace(calibration, thresholds=found)
    if calibration.contamination:
        return calibration
    return replace(calibration, thresholds=dict.fromkeys(calibration.thresholds, calibration.threshold))


def _usual_names(model: VAE) -> tuple[str, ...]:
    """Return the names of the scores that the table marks as calibrated, of those that a model has."""
    missing = {"pixels" if model.takes_features else "features"}
    if model.shifted is None:
        missing.add("transformations")
    return names_of(lambda entry: entry.calibrated and missing.isdisjoint(entry.needs))


def _references(
    scorer: Scorer, training: Tensor, most: int, components: Sequence[str], names: Sequence[str],
    log: Callable[[str], None],
) -> References:  # fmt: skip
    """Return statistics of up to so many training images, evenly taken, with the encoder of transformations judged."""
    apart = names_of(lambda score: "transformations" in score.needs)
    components, names = ([name for name in some if name not in apart] for some in (components, names))
    references = scorer.measure(spread_rows(training, most), components, names)
    return references if scorer.model.shifted is None else _with_transformations(scorer, references, training, log)


def _rule(scorer: Scorer, training: Tensor | None, owners: Owners, score: str) -> str:
    """Return the rule that makes one score of those of an image's tiles, chosen on training tiles if they are kept."""
    if training is None:
        return UNCALIBRATED
    return choose_rule(lambda tiles: scorer(tiles, [score])[score], training, owners.training)


def _of_training(
    scorer: Scorer, training: Tensor | None, owners: Owners | None, rule: str | None, score: str
) -> list[NDArray[Any]]:
    """Return the scores of the training images, as a list of one array; empty if the images are not kept."""
    # They are part of the data that a contamination is a share of; they matter to no p-value.
    if training is None:
        return []
    scores = scorer(training, [score])[score]
    return [scores if owners is None else combine(scores, owners.training, rule or UNCALIBRATED)]


def default_score(model: VAE) -> str:
    """Return the decision score that is used by default: "neighbors" for rows of features, "combined" for images."""
    return "neighbors" if model.takes_features else "combined"


def _with_neighbors(
    model: VAE, references: References, training: Tensor, held_out: Tensor, contamination: float, *, join: bool
) -> tuple[References, dict[str, NDArray[np.float32]]]:
    """Add the reference rows, and return the held-out rows' scores against the others of them."""
    rows = [model.prepare(part).double().flatten(1).cpu().numpy() for part in (training, held_out)]
    fitted, scores = fit_neighbors(rows[0], rows[1], contamination, join=join)
    joined = join and len(training) + len(held_out) <= most_references(rows[0].shape[1])
    return replace(references, neighbors=fitted, joined=joined), {"neighbors": _finite(scores)}


def are_references(model: VAE, rows: Tensor, references: References) -> bool:
    """Return whether inliers are held-out rows that are reference rows too, so that their scores depend on one another.

    Args:
        model: model of rows of features, or of images.
        rows: inliers that the model was not trained on, as they are stored.
        references: statistics of the training data.

    Returns:
        True if many of them are; False for images.
    """
    if references.neighbors is None or not references.joined:
        return False
    prepared = model.prepare(rows).double().flatten(1).cpu().numpy()
    return share_of_references(prepared, references.neighbors) > SAME_ROWS


def _with_transformations(
    scorer: Scorer, references: References, training: Tensor, log: Callable[[str], None]
) -> References:
    """Add the fits of the scores of transformations, and the scales of those that are to be part of "combined"."""
    judgement = judge(scorer.model, training, scorer.computes_in, scorer.quantized)
    log(judgement.describe())
    fitted, scales = {**references.fitted, **judgement.fitted}, {**references.scales, **judgement.components}
    return replace(references, fitted=fitted, scales=scales, summed=judgement.summed)


def _checked(held_out: NDArray[np.float64], score: str) -> NDArray[np.float64]:
    """Return the scores of held-out inliers; refuse them if none is finite, as nothing would ever be an outlier."""
    if held_out.size and (held_out >= LARGEST).all():
        raise ValueError(f"score {score} is NaN or infinite for each of {len(held_out)} held-out inliers: take another")
    return held_out


def _finite(values: NDArray[Any]) -> NDArray[np.float32]:
    wide = np.nan_to_num(np.asarray(values, np.float64), nan=LARGEST, posinf=LARGEST, neginf=-LARGEST)
    return np.clip(wide, -LARGEST, LARGEST).astype(np.float32)
