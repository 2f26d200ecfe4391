"""One walk over every table of parts: what each entry promises, and nothing about how it keeps it."""

import inspect

import pytest
import torch
from torch import nn

from negvae import parts
from negvae.config import preset
from negvae.data import CATALOG, DATASETS, load
from negvae.model import Bernoulli, Gaussian, QuantizedGaussian, build_vae
from negvae.negatives import build_source
from negvae.parts import LIKELIHOODS, NETWORKS, SOURCES, TRANSFORMATIONS
from negvae.registry import Table
from negvae.training.objectives import Losses, train_step
from negvae.training.weights import Weights
from tests.conftest import SHAPES, blobs, small_run

ROWS = (7, 1, 1)
TABLES = [each for each in vars(parts).values() if isinstance(each, Table)]
WITHIN = [
    (network, likelihood, learned)
    for network in NETWORKS
    for likelihood in LIKELIHOODS
    if NETWORKS[network].takes in LIKELIHOODS[likelihood].takes
    for learned in ([False, True] if "learn_sigma" in LIKELIHOODS[likelihood].needs else [False])
]
ARGUMENTS = {"nothing": "", "data set": ":others", "number": ":1", "names": "", "text": ":text"}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def shape_of(network):
    return ROWS if NETWORKS[network].takes == "features" else SHAPES[network]


def stored_for(network, count, seed=0):
    shape = shape_of(network)
    if NETWORKS[network].takes == "features":
        return torch.randn(count, *shape, generator=generator(seed), dtype=torch.float64)
    return blobs(count, shape, seed)


def run_of(network, **fields):
    if NETWORKS[network].takes == "features":
        return preset("features", "rows", **{"network": network, "latent_size": 3, "learn_sigma": False, **fields})
    return small_run(network, **{"latent_size": 5, **fields})


def step(model, config, stored, source):
    """One step of both networks that moves nothing; the losses, and the gradients of each network's parameters."""
    seen = {}

    class Kept(Weights):
        def step(self):
            seen[id(self)] = [p.grad for p in self.parameters]
            super().step()

    still = lambda p: torch.optim.SGD(p, lr=0.0)  # noqa: E731
    encoder = Kept(model.encoder, [], torch.float32, still)
    decoder = Kept(model.decoder, list(model.likelihood.parameters()), torch.float32, still)
    draw = generator()
    images = model.prepare(stored)
    negatives = None if source is None else source.sample(images, model, draw)
    target = model.likelihood.target(images, draw)
    noise = torch.randn(len(images), model.latent_size, generator=draw)
    losses = train_step(model, encoder, decoder, images, target, negatives, noise, update=config.update)
    return losses, [*seen[id(encoder)], *seen[id(decoder)]]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_each_entry_has_a_meaning_and_a_target(table):
    for entry in table.entries():
        assert entry.meaning
        assert callable(entry.load())
        assert table.name_of(entry.load()) == entry.name


@pytest.mark.parametrize(("network", "likelihood", "learned"), WITHIN)
def test_networks_and_likelihoods(network, likelihood, learned, tmp_path):
    """Shapes, weights of the seed alone, every gradient, saving and loading, and float64."""
    config = run_of(network, likelihood=likelihood, learn_sigma=learned)
    before = torch.random.get_rng_state()
    model, again = build_vae(config, shape_of(network)), build_vae(config, shape_of(network))
    assert torch.equal(before, torch.random.get_rng_state())  # no global seed is read
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert type(config).from_yaml(config.to_yaml()) == config

    losses, gradients = step(model.train(), config, stored_for(network, 6), None)
    assert all(part.dim() == 0 and torch.isfinite(part) for part in losses)
    assert len(gradients) == len(list(model.parameters()))
    assert all(g is not None and torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradients)

    torch.save(model.state_dict(), tmp_path / "weights")
    again.load_state_dict(torch.load(tmp_path / "weights", weights_only=True))
    stored, size = stored_for(network, 3), (3, *shape_of(network))
    results = {}
    for kind, other in ((torch.float32, model), (torch.float32, again), (torch.float64, again)):
        other.to(kind).eval()
        with torch.no_grad():
            images = other.prepare(stored)
            posterior = other.encode(images)
            output = other.decode(posterior.mean)
            likely = other.likelihood.log_prob(output, other.likelihood.target(images, generator()))
            lost = other.likelihood.excess(output, images)
            mean, draw = other.generate(posterior.mean), other.likelihood.sample(output, generator())
        assert posterior.mean.shape == posterior.log_var.shape == (3, config.latent_size)
        assert likely.shape == lost.shape == (3,)
        assert output.shape == mean.shape == draw.shape == size
        assert {posterior.mean.dtype, output.dtype, likely.dtype, mean.dtype} == {kind}
        assert (lost >= -1e-4).all()
        results.setdefault(kind, []).append((posterior.mean, likely))
    (ours, theirs), (double,) = results.values()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for a, b in zip(ours, double, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "features"),
    [(name, features) for name in SOURCES for features in (False, True) if (name, features) != ("zoomed", True)],
)
def test_sources(name, features):
    """Negatives depend on the generator alone, and so does each worker's share; the generated have a gradient."""
    network = "mlp" if features else "pyramid"
    stored, others = stored_for(network, 8), stored_for(network, 9, seed=5)
    model = build_vae(run_of(network), shape_of(network)).train()
    source = build_source(name + ARGUMENTS[SOURCES[name].argument], lambda text: others)
    positives = model.prepare(stored)
    kept = positives.clone()
    batch, same, other = (source.sample(positives, model, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(positives, kept)
    assert batch.images.shape == positives.shape
    assert batch.images.dtype == positives.dtype
    assert torch.equal(batch.images, same.images)
    assert not torch.equal(batch.images, other.images)
    assert not any(torch.equal(a, b) for a, b in zip(positives, batch.images, strict=True))
    assert features or 0 <= batch.images.min() <= batch.images.max() <= 1 + 1e-6
    assert not batch.images.requires_grad
    assert source.adversarial == (batch.generated is not None) == (name == "generated")
    if batch.generated is not None:
        assert batch.generated.requires_grad
        assert torch.equal(batch.generated, batch.images)
    shares = [source.sample(positives, model, generator(1), slice(rank, None, 3)).images for rank in range(3)]
    for rank, share in enumerate(shares):
        torch.testing.assert_close(share, batch.images[rank::3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("update", parts.UPDATES)
@pytest.mark.parametrize("name", SOURCES)
def test_every_source_trains_what_it_should(name, update):
    config = run_of("color", update=update)
    model = build_vae(config, SHAPES["color"]).train()
    source = build_source(name + ARGUMENTS[SOURCES[name].argument], lambda text: blobs(9, SHAPES["color"], 5))
    losses, gradients = step(model, config, blobs(6, SHAPES["color"]), source)
    assert all(part.dim() == 0 and torch.isfinite(part) for part in losses)
    assert losses.negative_kl > 0
    assert (losses.generator_kl > 0) == source.adversarial
    assert all(g is not None and torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradients)
    assert isinstance(losses, Losses)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (entry.name, shape)
        for entry in TRANSFORMATIONS.entries()
        for shape in ([ROWS] if entry.takes == "features" else [(1, 28, 28), (3, 17, 22)])
    ],
)
def test_transformations(name, shape):
    """The same shape, kind and range; the inliers are left alone, and every image is changed by the generator alone."""
    images = torch.randn(6, *shape, generator=generator()) if shape == ROWS else blobs(6, shape).float() / 255
    kept, change = images.clone(), TRANSFORMATIONS[name].load()
    result = change(images, generator(1))
    assert torch.equal(images, kept)
    assert (result.shape, result.dtype) == (images.shape, images.dtype)
    assert shape == ROWS or 0 <= result.min() <= result.max() <= 1 + 1e-6
    assert torch.equal(result, change(images, generator(1)))
    assert all(not torch.equal(a, b) for a, b in zip(images, result, strict=True))


def test_data_sets():
    """Each has the title of its catalog entry; what can be made here is what `load` gives."""
    assert list(DATASETS) == list(CATALOG)
    for entry in DATASETS.entries():
        assert entry.meaning == CATALOG[entry.name].title
    made = DATASETS["uniform-noise"].load()("test")
    assert torch.equal(made, torch.from_numpy(load("uniform-noise", "test").images))


def test_defaults_of_the_source_augmented():
    assert [name for name in TRANSFORMATIONS if TRANSFORMATIONS[name].default] == [
        "jigsaw", "cutmix", "sketch", "sketched-jigsaw", "strokes", "shuffled", "box", "spread",
    ]  # fmt: skip


def test_needs_of_the_likelihoods_are_those_of_their_constructors():
    for entry in LIKELIHOODS.entries():
        taken = inspect.signature(entry.load()).parameters
        assert entry.needs == tuple(name for name in parts.SETTINGS if name in taken)


def pair(outputs, size):
    """A network whose encoder gives so many numbers, and its decoder images of another size."""

    def networks(shape, latent_size):
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, outputs))
        return encoder, nn.Sequential(nn.Linear(latent_size, size * size), nn.Unflatten(1, (1, size, size)))

    return networks


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"network": pair(7, 28)}, ValueError, "the encoder gives N x 7, expected N x 10"),
        ({"network": pair(10, 14)}, ValueError, "the decoder gives N x 1x14x14, expected N x 1x28x28"),
        ({"network": lambda shape, size: nn.Flatten()}, TypeError, r"must make a pair \(encoder, decoder\)"),
        ({"likelihood": nn.ReLU}, TypeError, "likelihood ReLU has no target, log_prob, excess, mean, sample: see"),
        ({"likelihood": 3}, ValueError, "likelihood is 3"),
        ({"likelihood": Gaussian(0.5), "sigma": 0.1}, ValueError, "sigma is 0.1, .* set sigma in the object"),
        ({"likelihood": Gaussian(0.5), "learn_sigma": True}, ValueError, "learn_sigma is True, .* in the object"),
        ({"likelihood": Gaussian(0.5), "network": "mlp"}, ValueError, "in .0, 1.*: make it with bounded=False"),
        ({"likelihood": Bernoulli(), "network": "mlp"}, ValueError, "takes features, which likelihood Bernoulli does"),
        ({"likelihood": QuantizedGaussian(bounded=False), "network": "mlp"}, ValueError, "QuantizedGaussian does not"),
        (
            {"network": []},
            ValueError,
            r"network is \[\]: it must be text, or a function that makes encoder and decoder",
        ),
    ],
)
def test_objects_of_another_kind_are_refused(fields, error, words):
    with pytest.raises(error, match=words):
        build_vae(preset("general", "blobs", **{"latent_size": 5, **fields}), (1, 28, 28))
    assert build_vae(preset("general", "blobs", latent_size=5, network=pair(10, 28)), (1, 28, 28)).training


def test_a_likelihood_made_for_rows_is_taken_as_it_is():
    made = Gaussian(0.5, learn_sigma=True, bounded=False)
    likelihood = build_vae(small_run("mlp", likelihood=made), ROWS).likelihood
    assert not likelihood.bounded
    assert likelihood.sigma.item() == pytest.approx(0.5)


def test_a_likelihood_object_goes_with_the_preset_of_rows():
    config = preset("features", "rows", likelihood=Gaussian(sigma=0.5, bounded=False))
    assert not config.learn_sigma
    with pytest.raises(ValueError, match="learn_sigma is True, and likelihood Gaussian is an object"):
        preset("features", "rows", likelihood=Gaussian(bounded=False), learn_sigma=True)
