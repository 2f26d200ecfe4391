"""One object that gives every score, and its calibration on held-out inliers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from negvae.device import own_state, resolve_precision
from negvae.fast.int8 import QuantizedEncoder
from negvae.model import VAE
from negvae.registry import choose
from negvae.scoring import combination, dose
from negvae.scoring.calibration import Calibration, Scores, contamination_threshold, fpr_threshold
from negvae.scoring.combination import STATISTICS
from negvae.scoring.scores import ENCODER_SCORES, PASS_SCORES, compute_scores, refuse_decoder, shared_draws

ALL_SCORES = {
    **PASS_SCORES,
    "typicality": "|bpd - mean bpd of training images| (Nalisnick et al. 2019)",
    "dose": "how unusual the model's statistics are, all together (Morningstar et al. 2021)",
    "auto": "the most conspicuous of several scores, on the training images' scale",
    "input_complexity": "bpd less the bits per dimension of a lossless PNG (Serra et al. 2020)",
    "likelihood_regret": "gain of the ELBO by fitting the posterior to the image, bits per dim. (Xiao et al. 2020)",
    "waic": "mean of -ELBO over an ensemble plus its variance, nats (Choi et al. 2018)",
}
REFERRED = ("auto", "typicality", "dose")
"""Measured against training images."""
CALIBRATED = ("auto", "bpd", "kl", "prior_ratio", "reconstruction", "latent_norm", "typicality", "dose")
"""Calibrated by default: all come from one pass."""

REFERENCE_IMAGES = 5_000
IWAE_SAMPLES = 16
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Scorer:
    """A trained model with all that its scores need.

    A score is a function of the image alone: on one machine and version of torch it has the same bits in any batch,
    order and number of threads (`negvae.scoring.blocks`). On another processor the last digits differ.

    Attributes:
        model: in evaluation mode.
        references: statistics of training images by score, for "auto", "dose" and "typicality"
            (`Calibration.reference`).
        ensemble: further models trained alike, for "waic".
        precision: "float32", "bfloat16" or "auto"; a model of features is always scored in its own float64.
        seed: of the posterior samples, which all images share.
        quantized: the model's encoder in int8, used in place of its own; there are scores of the encoder alone then.
    """

    model: VAE
    references: Mapping[str, Scores] = field(default_factory=dict)
    ensemble: tuple[VAE, ...] = ()
    precision: str = "float32"
    seed: int = 0
    quantized: QuantizedEncoder | None = None

    @own_state()
    def __call__(self, images: Tensor, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Scores of stored images; what several of them need is computed once.

        Args:
            images: uint8, N x C x H x W, or rows of features, N x D x 1 x 1.
            names: keys of `ALL_SCORES`.

        Returns:
            N float32 values for each name; what is too large for them is their largest number.

        Raises:
            ValueError: an unknown name, a score that cannot be had from what is here, or images the model is
                not made for.
        """
        self.check(names)
        wanted = [name for name in PASS_SCORES if name in names]
        parts = combination.auto_components(self.references) if "auto" in names else []
        wanted += [name for name in parts if name != "dose"]
        if "dose" in [*names, *parts]:
            wanted.append(STATISTICS)
        if "typicality" in names or "input_complexity" in names:
            wanted.append("bpd")
        wanted = [name for name in dict.fromkeys(wanted) if name != "iwae"]
        self.model.check(images)
        values: dict[str, NDArray[Any]] = {}
        if wanted:
            values |= self._pass(images, wanted, 1)
        if "iwae" in names:
            values |= self._pass(images, ["iwae"], IWAE_SAMPLES)
        if STATISTICS in values:
            values["dose"] = dose.dose(values[STATISTICS], self.references[STATISTICS])
        if "auto" in names:
            values["auto"] = combination.auto(values, self.references)
        if "typicality" in names:
            values["typicality"] = combination.typicality(values["bpd"], self.references)
        if "input_complexity" in names:
            from negvae.scoring.complexity import compressed_bits_per_dim

            values["input_complexity"] = values["bpd"] - compressed_bits_per_dim(images.cpu().numpy())
        if "likelihood_regret" in names:
            from negvae.scoring.regret import likelihood_regret

            values["likelihood_regret"] = likelihood_regret(
                self.model, images, seed=self.seed, precision=self.computes_in
            ).numpy()
        if "waic" in names:
            from negvae.scoring.ensemble import waic

            models = (self.model, *self.ensemble)
            values["waic"] = waic(models, images, seed=self.seed, precision=self.computes_in).numpy()
        return {name: _finite(values[name]) for name in names}

    def measure(self, images: Tensor, components: Sequence[str]) -> dict[str, Scores]:
        """The `references` that training images give.

        Args:
            images: of the training set, as they are stored.
            components: the scores that "auto" is to be made of.
        """
        names = dict.fromkeys(["bpd", *(name for name in components if name != "dose"), STATISTICS])
        sample = self._pass(images, list(names), 1)
        fitted = dose.fit(sample[STATISTICS])
        sample["dose"] = dose.dose(sample[STATISTICS], fitted)
        references = {name: combination.reference(sample[name]) for name in dict.fromkeys(["bpd", *components])}
        return {**references, STATISTICS: fitted}

    def check(self, names: Sequence[str]) -> None:
        """Refuse names of scores that are unknown or cannot be had from what is here.

        Raises:
            ValueError: the message says which and what is missing.
        """
        for name in names:
            choose("score", name, ALL_SCORES)
            if self.quantized is not None:
                refuse_decoder(name)
            if name in REFERRED and (not self.references or (name == "dose" and STATISTICS not in self.references)):
                raise ValueError(f"score {name} is measured against training images: run `negvae calibrate` first")
            if name == "waic" and not self.ensemble:
                raise ValueError("score waic takes an ensemble: name further models trained alike with other seeds")
            if name == "input_complexity":
                from negvae.scoring.complexity import refuse_features

                refuse_features(self.model)

    @property
    def computes_in(self) -> str:
        """The precision that counts: a model of features has its own."""
        return "float32" if self.model.takes_features else self.precision

    def _pass(self, images: Tensor, names: Sequence[str], samples: int) -> dict[str, NDArray[Any]]:
        draws = shared_draws(self.model, samples, self.seed)
        scores = compute_scores(
            self.model, images, names, draws=draws, precision=self.computes_in, quantized=self.quantized
        )
        return {name: values.numpy() for name, values in scores.items()}


@own_state()
def calibrate(
    scorer: Scorer,
    training: Tensor | None,
    held_out: Tensor,
    *,
    references: Mapping[str, Scores] | None = None,
    score: str = "auto",
    names: Sequence[str] = CALIBRATED,
    components: Sequence[str] = ("dose", "prior_ratio"),
    contamination: float = 0.0,
    target_fpr: float | None = None,
) -> Calibration:
    """Learn from inliers what their scores are, and set the threshold.

    Args:
        scorer: of the trained model; its `references` are not used.
        training: images that the model was trained on; up to 5,000 of them, evenly taken, give the statistics
            for "auto" and "typicality". None where they are not kept.
        held_out: inliers that it was not trained on, one at least; p-values and thresholds rest on them.
        references: those statistics, where the images are not kept.
        score: the decision score.
        names: further scores to calibrate; in int8 those of the encoder alone.
        components: the scores that "auto" is made of; a model without negatives has no use for "prior_ratio".
        contamination: share of outliers among training and held-out images together; where it is above 0, or
            there is no `target_fpr`, the threshold leaves this share of them above it, and at 0 none.
        target_fpr: false-positive rate of the threshold, from the held-out inliers alone, for clean data.

    Raises:
        ValueError: no held-out inliers, or too few for the rate.
    """
    if contamination:
        target_fpr = None
    if not len(held_out):
        raise ValueError("no inliers are held out for calibration: ask for a fraction above 0, or give more data")
    references = dict(references or {})
    if scorer.quantized is None:
        if training is not None:
            step = max(len(training) // REFERENCE_IMAGES, 1)
            references = scorer.measure(training[::step][:REFERENCE_IMAGES], components)
    else:
        names = [name for name in names if name in ENCODER_SCORES]
    measured = replace(scorer, references=references)
    names = list(dict.fromkeys([score, *names]))
    scores = {name: np.sort(values.astype(np.float64)) for name, values in measured(held_out, names).items()}
    if target_fpr is not None:
        threshold = fpr_threshold(scores[score], target_fpr)
    else:
        # Training images are part of the data that the share is about; their scores matter to no p-value.
        everything: list[NDArray[Any]] = [scores[score]]
        if training is not None:
            everything.append(measured(training, [score])[score])
        threshold = contamination_threshold(np.concatenate(everything), contamination)
    rounding = None
    if scorer.quantized is not None:
        rounding = {name: values.numpy() for name, values in scorer.quantized.rounding.items()}
    precision = "int8" if rounding else resolve_precision(scorer.computes_in, scorer.model.device)
    return Calibration(scores, score, threshold, target_fpr, contamination, references, precision, rounding)


def _finite(values: NDArray[Any]) -> NDArray[np.float32]:
    wide = np.nan_to_num(np.asarray(values, np.float64), nan=_LARGEST, posinf=_LARGEST, neginf=-_LARGEST)
    return np.clip(wide, -_LARGEST, _LARGEST).astype(np.float32)
