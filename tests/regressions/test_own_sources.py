"""Objects that are no source of negatives, and sources of a user's own that cannot be used: the message says why."""

import re

import numpy as np
import pytest
import torch

import negvae
from negvae import NegVAEDetector, parts
from negvae.negatives import AddedNoise, Augmented, Auxiliary, Mixture, NegativeBatch, build_source, check_negatives
from negvae.negatives.sources import EVERY
from tests.conftest import blobs, small_run

IMAGES = blobs(40, (1, 16, 16))


class Faded:
    adversarial = False

    def sample(self, positives, model, generator, rows=EVERY):
        return NegativeBatch((0.3 * positives)[rows])


class WithoutRows(Faded):
    def sample(self, positives, model, generator):
        return NegativeBatch(0.3 * positives)


class WithoutKind:
    sample = Faded.sample


NONE = {
    "is the class Faded: it must be an object, as Faded(...) makes one": Faded,
    "is the class Augmented: it must be an object, as Augmented(...) makes one": Augmented,
    "is the text 'augmented': it must be an object, as negvae.negatives.build_source makes one": "augmented",
    "Tensor has no adversarial, sample: see negvae.negatives.NegativeSource; Auxiliary makes one of images": IMAGES,
    "<lambda> has no adversarial, sample": lambda positives: positives,
    "WithoutKind has no adversarial: see": WithoutKind(),
    "WithoutRows: sample takes (positives, model, generator): it is called with (positives, model, generator, rows)":
        WithoutRows(),
}  # fmt: skip


@pytest.mark.parametrize("message", NONE)
def test_what_is_no_source_is_refused_before_anything_is_trained(message):
    source = NONE[message]
    with pytest.raises(TypeError, match=re.escape(message)) as refused:
        negvae.train(small_run("pyramid"), IMAGES, source)
    assert "\n" not in str(refused.value)
    with pytest.raises(TypeError, match=re.escape(message)):
        Mixture((AddedNoise(0.2), source), (1.0, 1.0))
    if callable(source):
        with pytest.raises(TypeError, match=re.escape(message)):
            NegVAEDetector(negatives=source).fit(IMAGES)


def test_a_registered_source_that_makes_none_is_refused(monkeypatch):
    monkeypatch.setattr(parts.SOURCES, "_entries", dict(parts.SOURCES._entries))
    negvae.register_source("nothing-made")(lambda: None)
    with pytest.raises(TypeError, match="NoneType has no adversarial, sample"):
        build_source("nothing-made", lambda name: IMAGES)


def test_transformations_that_are_no_tuple_of_functions_are_refused():
    def rolled(images, generator):
        return images.roll(1, 0)

    with pytest.raises(
        TypeError, match=r"takes a tuple of transformations, and got .*rolled alone: write \(.*rolled,\)"
    ):
        Augmented(rolled)
    with pytest.raises(TypeError, match=r"got jigsaw alone: write \('jigsaw',\)"):
        Augmented("jigsaw")
    with pytest.raises(TypeError, match="is a int: it must be a function"):
        Augmented((3,))
    with pytest.raises(TypeError, match=r"takes \(images\): it is called with \(images, generator\)"):
        Augmented((lambda images: images,))
    with pytest.raises(TypeError, match="the negatives are a ndarray: they must be a tensor"):
        Auxiliary(np.zeros((3, 1, 16, 16), np.uint8))


def test_generated_images_without_gradient_and_images_elsewhere_are_refused():
    class Generating(Faded):
        adversarial = True

    positives = torch.rand(4, 1, 16, 16)
    with pytest.raises(ValueError, match=r"Generating gave generated images without gradient: .*leave out detach"):
        check_negatives(Generating(), NegativeBatch(None, positives), positives)
    check_negatives(Faded(), NegativeBatch(None, positives), positives)  # the decoder is not trained against these
    with pytest.raises(ValueError, match="Faded gave images on meta: these inliers are on cpu"):
        check_negatives(Faded(), NegativeBatch(positives.to("meta")), positives)


def test_negatives_of_another_size_are_not_called_x_and_those_of_other_channels_are_converted():
    color = blobs(40, (3, 16, 16))
    detector = NegVAEDetector(epochs=1, network="pyramid", transformations="none", target_fpr=0.2, device="cpu")
    for negatives in (color[:, :, :8, :8], color[0, 0]):
        with pytest.raises(
            ValueError, match=r"^the negatives or held-out inliers have (images of 3x8x8|2 dimensions), "
        ):
            detector.fit(color, negatives=negatives)
    assert detector.fit(color, negatives=255 - IMAGES).model_.shape == (3, 16, 16)
