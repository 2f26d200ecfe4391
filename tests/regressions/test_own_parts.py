"""Networks, likelihoods, transformations and scores of a user's own that cannot be used: the message names them."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import negvae
from negvae import NegVAEDetector, parts
from negvae.data import DATASETS
from negvae.model import Gaussian, build_vae
from negvae.negatives import Augmented
from negvae.scoring.scorer import Scorer, calibrate
from negvae.scoring.table import SCORES
from tests.conftest import small_run

pytestmark = pytest.mark.filterwarnings("ignore:.*training steps? (is|are) few")


def rows(count, seed=0, columns=3):
    return np.random.default_rng(seed).normal(size=(count, columns))


def linear(inputs, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs))


def decoder():
    return nn.Sequential(nn.Linear(2, 256), nn.Unflatten(1, (1, 16, 16)))


class Two(nn.Module):
    """An encoder that gives means and log-variances apart."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(256, 4)

    def forward(self, x):
        return tuple(self.layer(x.flatten(1)).chunk(2, 1))


def test_networks_that_cannot_be_used_are_named_in_one_line():
    refused = {
        "the encoder gives a tuple, expected one tensor of shape N x 4": lambda s, size: (Two(), decoder()),
        "the encoder has no parameters": lambda s, size: (nn.Sequential(nn.Flatten(), nn.ReLU()), decoder()),
        "must make a pair (encoder, decoder) of torch.nn.Module, not Sequential": lambda s, size: linear(256, 4),
        "of torch.nn.Module, not Sequential, function": lambda s, size: (linear(256, 4), linear),
    }
    for message, network in refused.items():
        with pytest.raises((ValueError, TypeError), match=re.escape(message)) as error:
            build_vae(small_run(network, latent_size=2), (1, 16, 16))
        assert "\n" not in str(error.value)


def test_likelihoods_that_cannot_be_used_are_named_in_one_line():
    def made(**methods):
        return type("Mine", (Gaussian,), methods)(sigma=0.2)

    def network(_shape, size):
        return linear(256, 2 * size), decoder()

    refused = {
        "likelihood Linear has no target, log_prob": nn.Linear(2, 2),
        "likelihood Mine: target gives NoneType for 2 images": made(target=lambda *_: None),
        "likelihood Mine: log_prob gives float for 2 images, expected one number": made(log_prob=lambda *_: 1.0),
        "likelihood Mine: mean gives (2, 256) for 2 images, expected": made(mean=lambda _self, out: out.flatten(1)),
    }
    for message, likelihood in refused.items():
        with pytest.raises((ValueError, TypeError), match=re.escape(message)):
            build_vae(small_run(network, likelihood=likelihood, latent_size=2), (1, 16, 16))


def test_a_transformation_that_gives_other_than_changed_images_is_named():
    positives = torch.rand(6, 1, 16, 16)

    def halved(images, _generator):
        return images[:, :, :8]

    for change, given in ((halved, r"\(3, 1, 8, 16\)"), (lambda images, _: images.numpy(), "ndarray")):
        source = Augmented(("jigsaw", change))
        with pytest.raises(ValueError, match=rf"transformation .* gave {given} for images of \(3, 1, 16, 16\)"):
            source.sample(positives, None, torch.Generator())


def test_names_that_the_notation_divides_are_refused():
    for name in ("a:b", "a+b", "a,b", "0.5*a", "a b", ""):
        with pytest.raises(ValueError, match=re.escape("a name is a text without blanks and without : , + *")):
            negvae.register_score(name, unit="nats", needs=())(len)
        with pytest.raises(ValueError, match=re.escape("a name is a text without blanks and without : , + *")):
            negvae.register_source(name, "nothing")(Augmented)


def test_a_score_that_is_a_number_for_no_inlier_decides_nothing(monkeypatch):
    monkeypatch.setattr(SCORES, "_entries", dict(SCORES._entries))
    negvae.register_score("lost", unit="nats", needs=())(lambda x: x.kl * float("nan"))
    negvae.register_score("far", unit="nats", needs=("reference",))(lambda x: x.kl - x.scale("iwae")[1])
    detector = NegVAEDetector(epochs=1, target_fpr=None).fit(rows(60))
    held_out = torch.from_numpy(rows(12, 1))[:, :, None, None]
    with pytest.raises(ValueError, match="score lost is NaN or infinite for each of 12 held-out inliers"):
        calibrate(Scorer(detector.model_), None, held_out, score="lost", names=[])
    with pytest.raises(ValueError, match="score iwae was not measured on training images: measured are bpd, "):
        detector.ood_score(rows(3), "far")


REGISTERED = {
    "likelihood": (negvae.register_likelihood, parts.LIKELIHOODS, Gaussian),
    "network": (negvae.register_network, parts.NETWORKS, lambda shape, size: None),
    "source of negatives": (negvae.register_source, parts.SOURCES, Augmented),
    "transformation": (negvae.register_transformation, parts.TRANSFORMATIONS, lambda images, generator: images),
    "data set": (negvae.register_dataset, DATASETS, lambda split: None),
}


@pytest.fixture
def _tables_as_they_were(monkeypatch):
    for _, table, _ in REGISTERED.values():
        monkeypatch.setattr(table, "_entries", dict(table._entries))


@pytest.mark.usefixtures("_tables_as_they_were")
@pytest.mark.parametrize("kind", REGISTERED)
def test_decorators_without_a_name_are_refused_where_they_stand(kind):
    register, table, right = REGISTERED[kind]
    with pytest.raises(ValueError, match=rf"{kind} <(function|class).*: a name is a text without blanks"):
        register(right)
    with pytest.raises(ValueError, match="is registered already"):
        register(next(iter(table)))  # before there is anything to register
    before = list(table)
    with pytest.raises(TypeError, match=r"mine (is a int: it must be a|is an? .*that is called with)"):
        register("mine")(3)
    assert list(table) == before


@pytest.mark.usefixtures("_tables_as_they_were")
def test_parts_that_cannot_be_called_as_they_will_be_are_refused_where_they_are_registered(monkeypatch):
    monkeypatch.setattr(SCORES, "_entries", dict(SCORES._entries))
    for message, register, part in (
        ("network mine takes (shape): it is called with (shape, latent_size)",
         negvae.register_network("mine"), lambda shape: None),
        ("transformation mine takes (images): it is called with (images, generator)",
         negvae.register_transformation("mine"), lambda images: images),
        ("score mine takes (x, y): it is called with (x)",
         negvae.register_score("mine", unit="nats"), lambda x, y: x.kl),
        ("data set mine takes (): it is called with (split)", negvae.register_dataset("mine"), lambda: None),
        ("source mine takes (width): it is called with ()", negvae.register_source("mine"), lambda width: None),
        ("source mine takes (): it is called with (number)",
         negvae.register_source("mine", argument="number"), lambda: None),
        ("likelihood mine takes (width): it is made with sigma, learn_sigma and bounded at most",
         negvae.register_likelihood("mine"), lambda width: None),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=re.escape(message)):
            register(part)
    with pytest.raises(TypeError, match="likelihood mine is an object of Gaussian: register the class"):
        negvae.register_likelihood("mine")(Gaussian(0.2))
    with pytest.raises(TypeError, match=re.escape("<lambda> takes (width): it is made with sigma")):
        negvae.RunConfig(data="mnist", likelihood=lambda width: None)


def test_kinds_that_parts_cannot_have_are_refused():
    with pytest.raises(ValueError, match=r"unknown kind of data 'rows'\. Known: images, features"):
        negvae.register_network("mine", takes="rows")
    with pytest.raises(ValueError, match=r"unknown kind of data 'pixels': .*Known: images, features"):
        negvae.register_transformation("mine", takes="pixels")
    with pytest.raises(ValueError, match=r"unknown argument of a source 'int'\. Known: nothing, data set, number"):
        negvae.register_source("mine", argument="int")
    with pytest.raises(ValueError, match="'none': the name stands for no negatives"):
        negvae.register_source("none")


class Own(nn.Module):
    """An encoder of 16 x 16 images into two dimensions, from which the faulty ones are derived."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(256, 256), nn.Linear(256, 4)

    def forward(self, x):
        return self.last(self.first(x.flatten(1)))


class CutInside(Own):
    def forward(self, x):
        return self.last(self.first(x.flatten(1)).detach())


class CutAtTheEnd(Own):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class InAList(Own):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(256, 256)]


class InAnAttribute(Own):
    def __init__(self):
        super().__init__()
        self.factor = torch.ones(256)  # on torch's device "meta", where networks are made: the values are lost


class InPlace(Own):
    def forward(self, x):
        return super().forward(x.mul_(2))


class InDouble(Own):
    def forward(self, x):
        return super().forward(x).double()


class NotInitialized(Own):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(256))

    def initialize(self, generator):
        pass

    def forward(self, x):
        return super().forward(self.factor * x.flatten(1))


class AsARow(Own):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 4, 2, 1)

    def forward(self, x):
        return self.last(self.first(self.conv(x).view(len(x), 256)))


class OfTheBatch(Own):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1, track_running_stats=False)

    def forward(self, x):
        return super().forward(self.norm(x))


class Drawing(Own):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5))


class ForSeveral(Own):
    def forward(self, x):
        return super().forward(x).squeeze()


FAULTY = {
    "the encoder gives an input other numbers alone than in a batch": OfTheBatch,
    "other numbers alone than in a batch, on which its score would then depend: use stored statistics": Drawing,
    "the encoder gives shape (4,), expected N x 4": ForSeveral,
    "the encoder gives 0.first.weight no gradient, so that it cannot be trained: leave out detach()": CutInside,
    "the encoder gives 0.first.weight no gradient": CutAtTheEnd,
    "the encoder keeps layers of InAList where torch does not find it: make it a torch.nn.ModuleList": InAList,
    "the encoder keeps factor of InAnAttribute where torch does not find it: make it a torch.nn.Param": InAnAttribute,
    "the encoder changes its inputs, which are used again": InPlace,
    "the encoder gives torch.float64 on cpu for torch.float32 on cpu": InDouble,
    "NaN or infinite numbers: a method initialize(generator) must set all that its layer has": NotInitialized,
    "the encoder fails on 3 inputs of 1x16x16: view size is not compatible": AsARow,
    "the encoder fails on 3 inputs of 1x16x16: mat1 and mat2 shapes cannot be multiplied": lambda: linear(100, 4),
    "the encoder has no parameters with a gradient": lambda: Own().requires_grad_(False),
    "the encoder's 1.weight has no size yet": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("message", FAULTY)
def test_networks_that_cannot_be_trained_are_refused_before_they_are(message):
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        build_vae(small_run(lambda shape, size: (FAULTY[message](), decoder()), latent_size=2), (1, 16, 16))
    assert "\n" not in str(refused.value)


def test_networks_that_are_frozen_in_part_are_taken():
    def network(shape, size):
        encoder = Own()
        encoder.first.requires_grad_(False)
        return encoder, decoder()

    model = build_vae(small_run(network, latent_size=2), (1, 16, 16))
    assert [each.requires_grad for each in model.encoder.parameters()] == [False, False, True, True]


class Pretrained(nn.Linear):
    """A layer that sets its own weights."""

    def initialize(self, generator):
        nn.init.constant_(self.weight, 0.01)


@pytest.mark.parametrize("layer", [nn.Linear, Pretrained])
def test_frozen_weights_with_values_are_never_drawn_anew(layer):
    made = nn.Sequential(nn.Flatten(), layer(256, 8).requires_grad_(False), nn.Linear(8, 4))
    config = small_run(lambda shape, size: (made, decoder()), latent_size=2)
    if layer is nn.Linear:
        with pytest.raises(ValueError, match=r"the encoder's 1\.weight does not train and has values, .* a Linear, a"):
            build_vae(config, (1, 16, 16))
    else:
        weight = build_vae(config, (1, 16, 16)).encoder[1].weight
        assert (weight.unique().tolist(), weight.requires_grad) == (pytest.approx([0.01]), False)


def test_a_layer_or_weight_that_is_used_twice_is_trained_saved_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(parts.NETWORKS, "_entries", dict(parts.NETWORKS._entries))

    @parts.register_network("twice")
    def twice(shape, size):
        layer, other, tied = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        tied.weight = other.weight
        inner = (nn.Flatten(), nn.Linear(256, 16), layer, nn.ReLU(), layer, other, tied)
        return nn.Sequential(*inner, nn.Linear(16, 4)), decoder()

    model = build_vae(small_run("twice", latent_size=2), (1, 16, 16))
    assert model.encoder[2] is model.encoder[4]
    assert model.encoder[5].weight is model.encoder[6].weight
    images = torch.randint(0, 256, (100, 1, 16, 16), dtype=torch.uint8)
    one, two = (small_run("twice", latent_size=2, epochs=epochs) for epochs in (1, 2))
    whole = negvae.train(two, images)
    negvae.train(one, images, directory=tmp_path / "run")
    resumed = negvae.train(two, images, directory=tmp_path / "run")
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    detector = NegVAEDetector(network="twice", latent_size=2, epochs=1, device="cpu").fit(images)
    detector.save(tmp_path / "saved")
    again = NegVAEDetector.load(tmp_path / "saved")
    np.testing.assert_array_equal(again.ood_score(images), detector.ood_score(images))


def of_rows(encoder=linear):
    def network(shape, size):
        return encoder(shape[0], 2 * size), nn.Sequential(nn.Linear(size, shape[0]), nn.Unflatten(1, shape))

    return network


class InSingle(nn.Sequential):
    def forward(self, x):
        return super().forward(x.float())


def test_networks_for_rows_are_registered_as_such_and_work_in_both_precisions(monkeypatch):
    monkeypatch.setattr(parts.NETWORKS, "_entries", dict(parts.NETWORKS._entries))
    with pytest.raises(ValueError, match=r"network takes images, as one that is not .*: register it for rows"):
        NegVAEDetector(network=of_rows(), epochs=1, device="cpu").fit(rows(100))
    options = {"epochs": 1, "latent_size": 2, "device": "cpu"}
    parts.register_network("both", takes="features")(of_rows())
    detector = NegVAEDetector(network="both", **options).fit(rows(100))
    assert np.isfinite(detector.ood_score(rows(4, 1))).all()
    single = of_rows(lambda inputs, outputs: InSingle(nn.Flatten(), nn.Linear(inputs, outputs)))
    parts.register_network("single", takes="features")(single)
    with pytest.raises(ValueError, match="network single: the encoder fails on 3 inputs of 3x1x1 in float64"):
        NegVAEDetector(network="single", **options).fit(rows(100))


def test_a_decoder_that_cuts_the_gradient_to_the_codes_is_refused():
    class Cut(nn.Sequential):
        def forward(self, z):
            return super().forward(z.detach())

    with pytest.raises(ValueError, match="the decoder gives its input no gradient"):
        build_vae(small_run(lambda shape, size: (Own(), Cut(decoder())), latent_size=2), (1, 16, 16))


def test_objects_in_place_of_functions_that_make_networks_are_refused_in_one_line():
    for network, message in (
        ((Own(), decoder()), "network is (Own("),
        (3, "network is 3: it must be text, or a function that makes encoder and decoder"),
        (Own(), "network Own is a torch.nn.Module: it must be a function that makes two of them"),
        (Own, "network Own is a torch.nn.Module: it must be a function that makes two of them"),
        (lambda shape: None, "takes (shape): it is called with (shape, latent_size)"),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(message)) as refused:
            build_vae(small_run(network, latent_size=2), (1, 16, 16))
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="likelihood is 3: it must be text, or a likelihood"):
        small_run(likelihood=3)


def test_likelihoods_that_cannot_be_trained_or_drawn_from_are_refused_before_they_are():
    class Unregistered(Gaussian):
        def __init__(self):
            super().__init__(0.2)
            self.offset = torch.zeros(1, requires_grad=True)

        def log_prob(self, output, target):
            return super().log_prob(output + self.offset, target)

    def made(**methods):
        return type("Mine", (Gaussian,), methods)(sigma=0.2)

    log_prob = Gaussian.log_prob
    for message, likelihood in (
        ("log_prob gives the decoder's output no gradient", made(log_prob=torch.no_grad()(log_prob))),
        ("log_prob gives the decoder's output no gradient",
         made(log_prob=lambda self, output, target: log_prob(self, output.detach(), target))),
        ("log_prob gives NaN or infinite numbers for 2 images",
         made(log_prob=lambda self, output, target: log_prob(self, output, target) * float("nan"))),
        ("excess gives NaN or infinite numbers",
         made(excess=lambda self, output, target: log_prob(self, output, target) * float("inf"))),
        ("log_prob gives torch.int64 on cpu", made(log_prob=lambda self, *given: log_prob(self, *given).long())),
        ("sample gives NoneType for 2 images", made(sample=lambda self, output, generator=None: None)),
        ("sample fails on 2 images: ", made(sample=lambda self, output: output)),
        ("target fails on 2 images: ", made(target=lambda self, images: images)),
        ("torch does not find offset, which takes a gradient: make it a torch.nn.Parameter", Unregistered()),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(message)) as refused:
            build_vae(small_run("pyramid", likelihood=likelihood, latent_size=2), (1, 16, 16))
        assert "\n" not in str(refused.value)
