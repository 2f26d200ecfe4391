"""Models in 8-bit integers: how they are made, how far they move scores, and whether they are worth it here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negvae.device import own_state
from negvae.fast.int8 import multiplies_integers, quantize, refuse
from negvae.fast.int8_decoder import QuantizedNetworks, decoder_is_known, quantize_decoder
from negvae.model import VAE, Posterior
from negvae.scoring.calibration import fpr_threshold
from negvae.scoring.scorer import Scorer
from negvae.scoring.table import SCORES
from negvae.spacing import spread_rows

IMAGES = 1000
"""The largest number of training images by which a model is rounded."""
TRIED = 200
"""The number of training images by which it is rounded for a trial."""
QUICKER, MOVED, CHANGED = 1.3, 0.1, 0.02
"""What int8 is offered for: at least this speed, and at most these changes of scores and decisions."""
_ENOUGH = 100  # held-out inliers, for half of them to say something
_MEASURED, _TIMED, _TURNS = 1000, 128, 3


@own_state()
def quantize_model(model: VAE, training: Tensor, images: int = IMAGES) -> QuantizedNetworks:
    """Return a model's networks in 8-bit integers.

    Args:
        model: trained VAE, in evaluation mode and on the CPU.
        training: training images, uint8, N x C x H x W with N >= 1.
        images: maximum number of them, evenly spaced, to round by.

    Returns:
        The networks; without the decoder if its layers are not known to `negvae.fast.int8_decoder`.

    Raises:
        ValueError: if the encoder, the device or this machine has no int8 arithmetic here.
    """
    encoder = quantize(model.encoder, training)
    if not decoder_is_known(model.decoder):
        return QuantizedNetworks(encoder)
    few = spread_rows(training, images)
    with torch.inference_mode():
        posterior = Posterior(*encoder(few))
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        return QuantizedNetworks(encoder, quantize_decoder(model.decoder, posterior.sample(noise)))


def moved(exact: Scorer, rounded: Scorer, images: Tensor, score: str) -> float:
    """Return how far int8 moves a score: root mean square, in the score's standard deviations over the images.

    Args:
        exact: scorer in float32.
        rounded: scorer in int8.
        images: inliers, N x C x H x W.
        score: name of the score.

    Returns:
        The ratio.
    """
    return _moved(*(scorer(images, [score])[score].astype(np.float64) for scorer in (exact, rounded)))


def _moved(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(after - before).mean()) / max(before.std(), 1e-12))


@dataclass(frozen=True)
class Offer:
    """What int8 would change for a calibrated model on this machine.

    Attributes:
        score: name of the decision score.
        quicker: speed in int8 divided by the present speed, the median of rounds in turn.
        moved: how far int8 moves held-out inliers' scores; see `moved`. Each precision has its own references.
        changed: share of a half of the held-out inliers that is decided otherwise, each precision by its own threshold
            from the other half.
        false_alarms: shares of that half that are called outliers, at present and in int8.
    """

    score: str
    quicker: float
    moved: float
    changed: float
    false_alarms: tuple[float, float]

    @property
    def holds(self) -> bool:
        """Return whether int8 is quicker here and keeps the figures."""
        return self.quicker >= QUICKER and self.moved <= MOVED and self.changed <= CHANGED

    def describe(self) -> str:
        """Describe the offer in one line, without the command."""
        before, after = (f"{rate:.1%}" for rate in self.false_alarms)
        return (
            f"int8 scores {self.score} {self.quicker:.1f} times as fast here and keeps the figures (held-out inliers'"
            f" scores move by {self.moved:.2g} of their standard deviation, {self.changed:.1%} of them are decided"
            f" otherwise; false alarms {after}, at present {before})"
        )


@own_state()
def try_int8(
    scorer: Scorer, training: Tensor, held_out: Tensor, score: str, components: Sequence[str], target_fpr: float
) -> Offer | None:
    """Measure in a few seconds what int8 would change; nothing is changed.

    Args:
        scorer: scorer of the trained model in its present precision.
        training: training images, uint8, N x C x H x W.
        held_out: inliers that the model was not trained on.
        score: name of the decision score.
        components: names of the scores that "combined" is made of.
        target_fpr: false-positive rate of the thresholds.

    Returns:
        What was measured; None if int8 is not for this model, score or machine, or the held-out inliers are few.
    """
    model = scorer.model
    if not is_possible(model, score) or len(held_out) < max(_ENOUGH, 2 / target_fpr):
        return None
    if model.shifted is not None and SCORES[score].needs:
        return None  # the encoder of transformations takes most of the time, and has no integer arithmetic here
    few = spread_rows(training, TRIED)
    quantized = quantize_model(model, few, TRIED)
    if SCORES[score].needs and quantized.decode is None:
        return None
    measured = spread_rows(training, _MEASURED)
    present, rounded = (
        replace(each, references=each.measure(measured, components, [score]))
        for each in (replace(scorer, ensemble=()), Scorer(model, seed=scorer.seed, quantized=quantized))
    )
    inliers = held_out[: 2 * _MEASURED]
    values = [each(inliers, [score])[score].astype(np.float64) for each in (present, rounded)]
    half = len(inliers) // 2
    called = [each[half:] > fpr_threshold(np.sort(each[:half]), target_fpr) for each in values]
    return Offer(
        score,
        _speedup(present, rounded, inliers[:_TIMED], score),
        _moved(*values),
        float((called[0] != called[1]).mean()),
        (float(called[0].mean()), float(called[1].mean())),
    )


def is_possible(model: VAE, score: str) -> bool:
    """Return whether this machine, this model and this score have int8 arithmetic here; the multiplication is tried."""
    if model.takes_features or not multiplies_integers() or "ensemble" in SCORES[score].needs:
        return False
    try:
        refuse(model.encoder)
    except ValueError:
        return False
    return not SCORES[score].needs or decoder_is_known(model.decoder)


def _speedup(present: Scorer, rounded: Scorer, images: Tensor, score: str) -> float:
    """Return the ratio of two scorers' speeds, measured in turn."""
    ratios = []
    for turn in range(_TURNS + 1):
        seconds = []
        for scorer in (present, rounded):
            started = time.perf_counter()
            scorer(images, [score])
            seconds.append(time.perf_counter() - started)
        if turn:  # the first warms up
            ratios.append(seconds[0] / seconds[1])
    return float(np.median(ratios))
