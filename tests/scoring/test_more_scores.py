"""Every score against its definition, and the scorer that shares their passes."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import MultivariateNormal

from negvae.config import preset
from negvae.model import build_vae
from negvae.scoring import References, Scorer, SharedDraws, calibrate, compute_scores
from negvae.scoring.combination import batch_typicality, batch_typicality_threshold
from negvae.scoring.complexity import compressed_bits_per_dim
from negvae.scoring.compute import over_blocks
from negvae.scoring.passes import shared_draws
from negvae.scoring.references import scale
from negvae.scoring.regret import likelihood_regret, regret
from negvae.scoring.table import names_of
from tests.conftest import SHAPES, blobs, small_run

IMAGES = blobs(23, SHAPES["gray"])


@pytest.fixture(scope="module")
def model():
    return build_vae(small_run("gray", initialization="he"), SHAPES["gray"]).eval()


def linear_model():
    """A VAE whose likelihood is known: x = z_1 a_1 + z_2 a_2 + noise, with the encoder set to the true posterior."""
    config = preset("features", "rows", latent_size=2, sigma=0.7, learn_sigma=False)
    model = build_vae(config, (3, 1, 1)).double().eval()
    loadings = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, -1.1]], dtype=torch.float64)
    precision = torch.eye(2).double() + loadings.T @ loadings / 0.49
    # A diagonal posterior is exact only where this is diagonal.
    vectors = torch.linalg.eigh(precision).eigenvectors
    loadings = loadings @ vectors
    variance = 1 / (1 + (loadings.square().sum(0)) / 0.49)
    encoder = torch.nn.Linear(3, 4).double()
    decoder = torch.nn.Linear(2, 3, bias=False).double()
    with torch.no_grad():
        encoder.weight.zero_()
        encoder.weight[:2] = (loadings * variance).T / 0.49
        encoder.bias.copy_(torch.cat([torch.zeros(2), variance.log()]))
        decoder.weight.copy_(loadings)
    model.encoder = torch.nn.Sequential(torch.nn.Flatten(), encoder)
    model.decoder = torch.nn.Sequential(decoder, torch.nn.Unflatten(1, (3, 1, 1)))
    exact = MultivariateNormal(torch.zeros(3).double(), loadings @ loadings.T + 0.49 * torch.eye(3).double())
    return model, exact


def test_iwae_is_the_likelihood_where_the_posterior_is_exact():
    model, exact = linear_model()
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()
    expected = -exact.log_prob(rows) / (3 * math.log(2))
    # With q(z|x) = p(z|x) every importance weight is p(x), whatever the draw.
    for samples in (1, 5):
        found = compute_scores(model, rows[:, :, None, None], ["iwae"], samples=samples)
        torch.testing.assert_close(found["iwae"], expected)


def test_regret_is_nothing_at_the_optimum_and_found_away_from_it():
    model = linear_model()[0]
    rows = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).double()[:, :, None, None]

    def fitted(steps):
        gain = over_blocks(model, rows, {"nats": lambda x: regret(x, steps, 16)}, draws=SharedDraws())["nats"]
        return gain / (3 * math.log(2))

    at_best = fitted(30)
    units = {"bits": likelihood_regret, "nats": lambda x: regret(x, 30, 4)}
    both = over_blocks(model, rows, units, draws=SharedDraws())
    torch.testing.assert_close(both["bits"], both["nats"] / (3 * math.log(2)))
    with torch.no_grad():
        model.encoder[1].bias[:2] += 1.0
    away = fitted(80)
    assert (at_best >= 0).all()
    assert at_best.max() < 0.2
    # The encoder's mistake costs KL(shifted posterior || true posterior) = sum of 1 / (2 variance).
    lost = 0.5 * float((-model.encoder[1].bias.detach()[2:]).exp().sum()) / (3 * math.log(2))
    torch.testing.assert_close(away, torch.full_like(away, lost), rtol=0.15, atol=0.1)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_compressed_size_is_the_png_and_texture_costs_more():
    noise = np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16), np.uint8)
    flat = np.full((1, 3, 16, 16), 7, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise[0].transpose(1, 2, 0)).save(buffer, "PNG", optimize=True)
    assert compressed_bits_per_dim(noise)[0] == 8 * len(buffer.getvalue()) / 768
    assert compressed_bits_per_dim(flat)[0] < 1 < 8 < compressed_bits_per_dim(noise)[0]
    assert compressed_bits_per_dim(np.zeros((2, 5, 8, 8), np.uint8)).shape == (2,)


def test_typicality_of_a_batch():
    randomness = np.random.default_rng(0)
    training, held_out = randomness.normal(3, 1, 5000), randomness.normal(3, 1, 2000)
    references = References({"bpd": scale(training)})
    assert batch_typicality([5.0], references) == pytest.approx(5 - training.mean())
    for size in (1, 25):  # quantiles of |N(0, 1)| / sqrt(size)
        limit = batch_typicality_threshold(held_out, randomness.normal(3, 1, size), references, 0.05)
        assert limit == pytest.approx(1.96 / np.sqrt(size), rel=0.25)
    foreign = randomness.normal(3.5, 1, 100)
    assert batch_typicality(foreign, references) > batch_typicality_threshold(held_out, foreign, references, 0.05)
    with pytest.raises(ValueError, match="empty batch"):
        batch_typicality([], references)
    with pytest.raises(ValueError, match="at least 1 image"):
        batch_typicality_threshold(held_out, [], references)
    for rate in (0, 1):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            batch_typicality_threshold(held_out, held_out[:10], references, rate)


@pytest.mark.parametrize(("held_out", "size"), [(20, 1), (60, 60), (100, 10)])
def test_the_rate_of_typicality_holds_where_few_are_held_out_and_tails_are_heavy(held_out, size):
    randomness, false = np.random.default_rng(1), 0
    references = References({"bpd": scale(randomness.lognormal(0, 1, 5000))})
    for _ in range(400):
        kept, batch = randomness.lognormal(0, 1, held_out), randomness.lognormal(0, 1, size)
        limit = batch_typicality_threshold(kept, batch, references, 0.1, repeats=199, generator=randomness)
        false += batch_typicality(batch, references) > limit
    assert false / 400 < 0.1 + 3 * np.sqrt(0.1 * 0.9 / 400)
    assert batch_typicality_threshold([1.0], [2.0], references, 0.001, repeats=99) == np.inf
    exact, above = (batch_typicality_threshold(kept, [2.0], references, rate, repeats=99) for rate in (0.29, 0.2901))
    assert exact == above  # 0.29 * 100 is below 29 in floating point


def test_calibration_is_of_the_scores_that_the_table_says(model):
    calibration = calibrate(Scorer(model), IMAGES, blobs(30, SHAPES["gray"], 1), target_fpr=0.1)
    assert calibration.size == 30
    assert calibration.threshold == calibration.scores["combined"][-3]
    others = {"features", "transformations"}
    assert set(calibration.scores) == set(names_of(lambda score: score.calibrated and others.isdisjoint(score.needs)))


def test_draws_are_shared_also_where_pixels_are_dequantized():
    model = build_vae(small_run("gray", initialization="he", likelihood="quantized-gaussian"), SHAPES["gray"]).eval()
    scores = compute_scores(model, IMAGES, ["bpd"], draws=lambda model, _: shared_draws(model, 3))["bpd"]
    reverse = compute_scores(model, IMAGES.flip(0), ["bpd"], draws=lambda model, _: shared_draws(model, 3))["bpd"]
    torch.testing.assert_close(scores, reverse.flip(0))
    own = compute_scores(model, IMAGES, ["bpd"], samples=40, precision="float32")["bpd"]
    many = compute_scores(model, IMAGES, ["bpd"], draws=lambda model, _: shared_draws(model, 40))["bpd"]
    torch.testing.assert_close(own, many, rtol=2e-2, atol=0)


def test_scores_that_cannot_be_had_say_why(model):
    with pytest.raises(ValueError, match="negvae calibrate"):
        Scorer(model)(IMAGES, ["combined"])
    with pytest.raises(ValueError, match="ensemble"):
        Scorer(model)(IMAGES, ["waic"])
    with pytest.raises(ValueError, match="did you mean typicality"):
        Scorer(model)(IMAGES, ["typicalty"])
    with pytest.raises(ValueError, match="no pixels"):
        Scorer(linear_model()[0])(torch.zeros(2, 3, 1, 1), ["input_complexity"])
    with pytest.raises(ValueError, match="no inliers are held out"):
        calibrate(Scorer(model), IMAGES, IMAGES[:0])


def test_infinite_scores_are_the_largest_number(model):
    broken = build_vae(small_run("gray", initialization="he"), SHAPES["gray"]).eval()
    with torch.no_grad():
        broken.encoder[-1].bias[10:] = 1e5  # exp(log-variance) overflows
    scores = Scorer(broken, precision="float32")(IMAGES, ["kl", "bpd"])
    assert all((values == np.finfo(np.float32).max).all() for values in scores.values())
