"""Regressions: generated negatives that the decoder is not trained against, and negatives in float64."""

import pytest
import torch

from negvae import build_vae, train
from negvae.negatives import EVERY, Generated, Mixture, NegativeBatch
from tests.conftest import blobs, small_run


class OwnImages:
    """The model's own images, against which the decoder is not trained."""

    adversarial = False

    def __init__(self, detached):
        self.detached = detached

    def sample(self, positives, model, generator, rows=EVERY):
        codes = model.prior.sample(len(positives), generator, positives.device)[rows]
        images = model.generate(codes)
        return NegativeBatch(None, images.detach() if self.detached else images)


class Doubled:
    """Images that NumPy's arithmetic made: float64."""

    adversarial = False

    def sample(self, positives, model, generator, rows=EVERY):
        return NegativeBatch(positives[rows].double() * 0.5)


@pytest.mark.parametrize("workers", [None, 2])
@pytest.mark.parametrize("update", ["alternating", "simultaneous"])
@pytest.mark.parametrize("detached", [False, True])
def test_the_decoder_is_not_trained_against_negatives_that_are_not_adversarial(detached, update, workers):
    result = train(small_run(epochs=1, update=update), blobs(60, (1, 28, 28)), OwnImages(detached), workers=workers)
    assert [row["generator_kl"] for row in result.history] == [0.0]
    assert result.history[0]["negative_kl"] > 0


@pytest.mark.parametrize("detached", [False, True])
def test_nor_against_those_of_such_a_part_of_a_mixture(detached):
    model = build_vae(small_run(), (1, 28, 28))
    mixture = Mixture((OwnImages(detached), Generated()), (1.0, 3.0))
    negatives = mixture.sample(torch.rand(8, 1, 28, 28), model, torch.Generator())
    assert (len(negatives.given), len(negatives.generated)) == (2, 6)
    assert not negatives.given.requires_grad
    assert negatives.generated.requires_grad


def test_negatives_in_float64_are_taken():
    result = train(small_run(epochs=1), blobs(60, (1, 28, 28)), Doubled(), workers=None)
    assert result.history[0]["negative_kl"] > 0
