import dataclasses

import numpy as np
import pytest
import torch

from negvae.model import build_vae
from negvae.negatives import (
    AddedNoise,
    Augmented,
    Auxiliary,
    Generated,
    Mixture,
    NegativeBatch,
    UniformNoise,
    auxiliary_names,
    build_source,
    parse,
    refuse_overlap,
    transformations,
)
from negvae.training.loop import train
from tests.conftest import blobs, small_run

GRAY = (1, 28, 28)


def sample(source, positives, seed=0):
    model = build_vae(small_run(), GRAY)
    return source.sample(positives, model, torch.Generator().manual_seed(seed))


def test_jigsaw_only_moves_pixels():
    images = torch.rand(5, 3, 16, 16)
    shuffled = transformations.jigsaw(images, torch.Generator().manual_seed(0))
    torch.testing.assert_close(images.flatten(2).sort(-1).values, shuffled.flatten(2).sort(-1).values)


@pytest.mark.parametrize("count", [2, 3, 7, 50])
def test_augmented_gives_one_negative_for_each_positive(count):
    positives = blobs(count, GRAY).float() / 255
    batch = sample(Augmented(), positives)
    assert batch.images.shape == positives.shape
    assert batch.generated is None
    assert not any(torch.equal(a, b) for a, b in zip(positives, batch.images, strict=True))


def test_auxiliary_draws_from_its_set():
    images = blobs(5, GRAY, seed=1)
    batch = sample(Auxiliary(images), blobs(40, GRAY).float() / 255)
    drawn = {tuple(image.flatten().tolist()) for image in (batch.images * 255).round().byte()}
    assert drawn == {tuple(image.flatten().tolist()) for image in images}


@pytest.mark.parametrize(("options", "widest"), [({}, 1 / 1.5), ({"least": 1.0}, 1.0)])
def test_zoom_enlarges_a_part_of_the_image(options, widest):
    """On a ramp from left to right, what is seen is a part of it, drawn out or mirrored."""
    ramp = torch.linspace(0, 1, 32).expand(200, 1, 32, 32).contiguous()
    zoomed = transformations.zoom(ramp, torch.Generator().manual_seed(0), **options)
    span = zoomed.amax((1, 2, 3)) - zoomed.amin((1, 2, 3))
    assert widest - 0.1 < span.max() <= widest  # as little enlarged as may be
    assert span.min() < 0.3  # about four times
    rising = zoomed[:, 0, 0, -1] > zoomed[:, 0, 0, 0]
    assert 0.3 < rising.float().mean() < 0.7
    assert zoomed.amin((1, 2, 3)).min() < 0.1  # from all over the image
    assert zoomed.amax((1, 2, 3)).max() > 0.9


def test_zoomed_draws_from_its_set():
    images = torch.zeros(3, *GRAY, dtype=torch.uint8)
    images[1], images[2] = 100, 200
    batch = sample(build_source("zoomed:b", lambda name: images), torch.zeros(40, *GRAY))
    drawn = (batch.images * 255).round()
    assert set(drawn.unique().tolist()) == {0, 100, 200}
    assert auxiliary_names("kmnist+zoomed:kmnist+zoomed:a") == ["kmnist", "a"]


def test_a_set_that_is_named_twice_is_loaded_once():
    loaded = []

    def load(name):
        loaded.append(name)
        return torch.zeros(3, *GRAY, dtype=torch.uint8)

    source = build_source("kmnist+zoomed:kmnist+zoomed:a", load)
    assert loaded == ["kmnist", "a"]
    assert source.sources[0].images is source.sources[1].images


def test_noise_sources():
    positives = torch.full((200, *GRAY), 0.5)
    added = sample(AddedNoise(0.1), positives).images
    assert (added - positives).std().item() == pytest.approx(0.1, abs=0.005)
    uniform = sample(UniformNoise(), positives).images * 255
    dimmer = sample(build_source("uniform-noise:3", lambda _: None), positives).images * 255
    assert dimmer.round().unique().tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(uniform, uniform.round(), atol=1e-4, rtol=0)
    assert uniform.mean().item() == pytest.approx(127.5, abs=1)


def test_mixture_gives_shares():
    source = Mixture((UniformNoise(), Generated()), (3, 1))
    batch = sample(source, torch.zeros(8, *GRAY))
    assert batch.images.shape == (8, *GRAY)
    assert batch.generated.shape == (2, *GRAY)
    assert source.adversarial
    assert torch.equal(batch.images[6:], batch.generated)


def test_notation():
    assert parse("none") == []
    assert build_source("none", None) is None
    assert isinstance(build_source("augmented:jigsaw,strokes", None), Augmented)
    assert build_source("added-noise", None).sigma == 0.25
    assert build_source("added-noise:0.5", None).sigma == 0.5
    assert auxiliary_names("0.5*kmnist + auxiliary:a/b.npy") == ["kmnist", "a/b.npy"]
    mixture = build_source("0.7*augmented+0.3*generated", None)
    assert mixture.weights == (0.7, 0.3)


def test_what_exists_as_a_path_is_a_path_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("C++ parts", "0.5*kmnist", "a:b", "generated", "augmented:jigsaw"):
        (tmp_path / name).mkdir()
    for text in ("./C++ parts", "C++ parts", str(tmp_path / "C++ parts"), "0.5*kmnist", "a:b", "augmented:jigsaw"):
        assert parse(text) == [("auxiliary", text, 1.0)]
    assert parse("generated")[0].kind == "generated"
    quoted = [("auxiliary", "./C++ parts", 0.5), ("augmented", "", 1.0)]
    assert parse("0.5*'./C++ parts' + augmented") == quoted
    assert parse('0.5*"./C++ parts"+augmented') == quoted
    assert parse("zoomed:'./C++ parts'+bob's/parts") == [("zoomed", "./C++ parts", 1), ("auxiliary", "bob's/parts", 1)]
    with pytest.raises(ValueError, match="quote"):
        parse("0.5*'./C++ parts+augmented")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("augmented:jigsew", "jigsaw"), ("added-noise:lots", "not a number"), ("added-noise:-1", "above 0"),
        ("x*generated", "weight"), ("0*generated+augmented", "above 0"), ("none+generated", "mixture"),
        ("auxiliary:", "missing"), ("zoomed:", "missing"), ("generated:3", "no argument"),
        ("uniform-noise:x", "takes one"), ("uniform-noise:0", "from 1 to 255"),
        ("uniform-noise:256", "from 1 to"), ("uniform-noise:2.5", "whole number"),
    ],
)  # fmt: skip
def test_bad_notation_says_what_is_wrong(text, word):
    with pytest.raises(ValueError, match=word):
        build_source(text, None)


def test_overlap_is_refused_and_named():
    inliers, others = blobs(20, GRAY), blobs(20, GRAY, seed=1)
    refuse_overlap(inliers, others, "a", "b")
    others[7] = inliers[3]
    with pytest.raises(ValueError, match=r"1 of 20 images are identical \(first: negative 7 is inlier 3\)"):
        refuse_overlap(inliers, others, "a", "b")
    others[9] = inliers[15]
    with pytest.raises(ValueError, match=r"2 of 20 images are identical \(first: negative 7 is inlier 3\)"):
        refuse_overlap(inliers, others, "a", "b")
    rows = torch.arange(8, dtype=torch.float64).reshape(4, 2, 1, 1)
    with pytest.raises(ValueError, match=r"1 of 1 rows are identical \(first: negative 0 is inlier 2\)"):
        refuse_overlap(rows, rows[2:3], "a", "b")
    with pytest.raises(ValueError, match="1x20x20"):
        refuse_overlap(inliers, blobs(3, (1, 20, 20)), "a", "b")


def test_tiles_that_many_photos_share_are_no_overlap_and_whole_photos_are():
    inliers, others = blobs(9, GRAY), blobs(6, GRAY, seed=1)
    inliers[2] = others[1] = 255  # a white margin
    of_parts, of_negatives = [np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 0])], np.array([0, 0, 0, 1, 1, 1])
    parts = [inliers[:6], inliers[6:]]
    refuse_overlap(parts, others, "a", "b", (of_parts, of_negatives))
    with pytest.raises(ValueError, match="1 of 6 images"):
        refuse_overlap(parts, others, "a", "b")
    others[3:] = inliers[6:]
    with pytest.raises(ValueError, match=r"1 of 2 images are identical \(first: negative 1 is inlier 2\)"):
        refuse_overlap(parts, others, "a", "b", (of_parts, of_negatives))


def test_an_even_image_has_no_edges_and_a_step_the_same_in_all_directions():
    transformations._sobel.cache_clear()
    even = torch.full((1, 1, 8, 8), 0.5)
    assert not transformations.sketch(even, None).any()
    step = torch.zeros(1, 1, 8, 8)
    step[..., 4:] = 1
    edges = transformations.sketch(step, None)
    for turned in range(4):
        torch.testing.assert_close(
            transformations.sketch(step.rot90(turned, (2, 3)), None), edges.rot90(turned, (2, 3))
        )


@pytest.mark.parametrize("name", ["shuffled", "box", "spread"])
def test_feature_transformations_leave_the_inliers_dependence(name):
    first = torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([first, first, -first], 1)[:, :, None, None]
    changed = getattr(transformations, name)(rows, torch.Generator().manual_seed(1))
    assert changed.shape == rows.shape
    # Inliers have x1 = x2 = -x3; next to no negative does.
    gap = (changed[:, 0] - changed[:, 1]).abs() + (changed[:, 0] + changed[:, 2]).abs()
    assert (gap > 0.1).float().mean() > 0.9
    if name == "shuffled":
        assert torch.equal(changed.sort(0).values, rows.sort(0).values)  # the marginals are as they were
    if name == "box":
        assert float(changed.abs().max()) > 1.5 * float(rows.abs().max())


def test_sources_for_rows_have_no_bounds():
    rows = 5 * torch.randn(60, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    for source in (AddedNoise(0.5), UniformNoise(), Augmented()):
        negatives = sample(source, rows).images
        assert negatives.shape == rows.shape
        assert float(negatives.min()) < -1 < 1 < float(negatives.max())
    with pytest.raises(ValueError, match="augmented:jigsaw does not apply to rows"):
        sample(Augmented(("jigsaw",)), rows)
    with pytest.raises(ValueError, match="augmented:box does not apply to images"):
        sample(Augmented(("box",)), blobs(4, GRAY).float() / 255)


def test_a_part_of_a_mixture_s_rows_is_that_part_of_the_whole():
    source, positives = Mixture((UniformNoise(), AddedNoise()), (3, 1)), torch.rand(12, *GRAY)
    model = build_vae(small_run(), GRAY)
    whole = source.sample(positives, model, torch.Generator().manual_seed(0)).given
    for rows in (slice(0, None, 2), slice(1, None, 3), slice(9, 12)):
        part = source.sample(positives, model, torch.Generator().manual_seed(0), rows).given
        assert torch.equal(part, whole[rows])


def test_sources_do_not_change():
    for source in (Augmented(), Auxiliary(blobs(2, GRAY)), AddedNoise(), UniformNoise(), Generated()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            source.anything = 1
    with pytest.raises(ValueError, match="finite"):
        AddedNoise(float("inf"))
    three = Mixture((UniformNoise(), AddedNoise(), Augmented()), (1, 1, 2))
    assert sample(three, torch.rand(8, *GRAY)).given.shape == (8, *GRAY)


def test_quotes_count_wherever_a_part_begins():
    assert parse("augmented + 0.5*'./C++ parts'") == [("augmented", "", 1.0), ("auxiliary", "./C++ parts", 0.5)]
    assert parse("augmented+generated+'a+b'") == [("augmented", "", 1), ("generated", "", 1), ("auxiliary", "a+b", 1)]
    assert parse("a\0b") == [("auxiliary", "a\0b", 1.0)]  # the name of no file


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 3.0)])
def test_a_mixture_takes_one_weight_for_each_source(weights):
    with pytest.raises(ValueError, match="one weight for each"):
        Mixture((Generated(), Generated()), weights)


class Given:
    """A source whose negatives a function makes of the positives."""

    adversarial = False

    def __init__(self, function):
        self.function = function

    def sample(self, positives, model, generator, rows=slice(None)):
        return self.function(positives[rows])


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        (lambda images: images, TypeError, "Given gave a Tensor: sample must return a NegativeBatch"),
        (lambda images: NegativeBatch(images[:3]), ValueError, "Given gave 3 images: 16 were asked for"),
        (lambda images: NegativeBatch(None), ValueError, "Given gave 0 images: 16 were asked for"),
        (lambda images: NegativeBatch(images[:, :, :8]), ValueError, r"of shape \(1, 8, 28\): these inliers have"),
        (lambda images: NegativeBatch((images * 255).byte()), TypeError, "a tensor of torch.uint8: images must be"),
        (lambda images: NegativeBatch(images * 255), ValueError, r"gave values from 0 to .*: they must be pixels in"),
        (lambda images: NegativeBatch(images * torch.nan), ValueError, "values from nan to nan: they must be pixels"),
    ],
)
def test_training_refuses_negatives_that_are_not_as_promised(function, kind, message):
    with pytest.raises(kind, match=message):
        train(small_run(epochs=1, batch_size=16), blobs(32, GRAY), Given(function))


def darkened(images, generator):
    images[:, :, ::2] = 0
    return images


class Darkened:
    adversarial = False

    def sample(self, positives, model, generator, rows=slice(None)):
        return NegativeBatch(positives.mul_(0.5)[rows])


@pytest.mark.parametrize(
    ("source", "who"),
    [
        (Augmented((darkened,)), "transformation darkened"),
        (Augmented(("sketch", darkened, "jigsaw", "zoom", "cutmix")), "transformation darkened"),
        (Darkened(), "the source of negatives Darkened"),
        (Mixture((UniformNoise(), Darkened()), (1, 1)), "the source of negatives Darkened"),
    ],
)
def test_inliers_are_not_to_be_changed_in_place(source, who):
    with pytest.raises(ValueError, match=f"{who} changes the inliers that it is given"):
        train(small_run(epochs=1, latent_size=4), blobs(16, GRAY), source)
    with torch.inference_mode():  # where torch does not count changes
        assert sample(Augmented((lambda images, generator: 1 - images,)), torch.rand(4, *GRAY)).size == 4


@pytest.mark.parametrize(
    ("negatives", "words"),
    [
        ("0.02*uniform-noise+0.98*added-noise", "the share of UniformNoise is 0 of the 16 images of a batch"),
        ("0.06*augmented+0.94*added-noise", "the share of Augmented is 1 of the 16 .* must be 2 at least"),
    ],
)
def test_shares_that_are_too_small_for_a_batch_are_refused(negatives, words):
    config = small_run(epochs=1, batch_size=16)
    with pytest.raises(ValueError, match=words):
        train(config, blobs(32, GRAY), build_source(negatives, None))


@pytest.mark.parametrize("text", ["0*augmented+generated", "-1*augmented+generated", "nan*augmented", "inf*augmented"])
def test_weights_are_finite_numbers_above_0(text):
    with pytest.raises(ValueError, match="must be a finite number above 0"):
        parse(text)
    with pytest.raises(ValueError, match=r"this is one source: leave it out, or set negative_weight"):
        parse("0.3*generated")
