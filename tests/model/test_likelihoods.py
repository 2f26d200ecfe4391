import math

import pytest
import torch
from torch.distributions import Normal

from negvae.config import RunConfig
from negvae.model import Bernoulli, Gaussian, QuantizedGaussian, build_vae
from negvae.model.likelihoods import check_likelihood, wide

OUTPUT = torch.linspace(-3, 3, 24).reshape(2, 1, 3, 4)


def test_bernoulli_equals_torch_distributions_on_binary_pixels():
    target = (torch.rand(OUTPUT.shape, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    expected = torch.distributions.Bernoulli(logits=OUTPUT).log_prob(target).sum((1, 2, 3))
    torch.testing.assert_close(Bernoulli().log_prob(OUTPUT, target), expected)


def test_bernoulli_on_gray_pixels_is_the_cross_entropy():
    target = torch.full_like(OUTPUT, 0.3)
    p = OUTPUT.sigmoid()
    expected = (0.3 * p.log() + 0.7 * (1 - p).log()).sum((1, 2, 3))
    torch.testing.assert_close(Bernoulli().log_prob(OUTPUT, target), expected)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.5])
@pytest.mark.parametrize("kind", [Gaussian, QuantizedGaussian])
def test_gaussian_equals_torch_distributions(kind, sigma):
    target = torch.rand(OUTPUT.shape, generator=torch.Generator().manual_seed(0))
    expected = Normal(OUTPUT.sigmoid(), sigma).log_prob(target).sum((1, 2, 3))
    torch.testing.assert_close(kind(sigma).log_prob(OUTPUT, target), expected)


def test_a_perfect_unit_gaussian_has_the_papers_floor_in_nats_per_dimension():
    mean = OUTPUT.sigmoid()
    nats = -Gaussian(1.0).log_prob(OUTPUT, mean) / mean[0].numel()
    torch.testing.assert_close(nats, torch.full((2,), 0.5 * math.log(2 * math.pi)))


def test_sigma_is_a_parameter_only_where_it_is_learned():
    assert not list(Gaussian(0.5).parameters())
    learned = Gaussian(0.5, learn_sigma=True)
    assert [p.shape for p in learned.parameters()] == [torch.Size([])]
    assert learned.sigma.item() == pytest.approx(0.5)
    learned.log_prob(OUTPUT, OUTPUT.sigmoid() + 0.5).sum().backward()
    # The maximum-likelihood sigma equals the error, 0.5: the gradient vanishes there.
    assert learned.log_sigma.grad.item() == pytest.approx(0, abs=1e-4)


def test_dequantization_adds_less_than_one_intensity_step():
    images = torch.zeros(4, 1, 8, 8)
    target = QuantizedGaussian().target(images, torch.Generator().manual_seed(0))
    assert target.min() >= 0
    assert target.max() < 1 / 255
    assert target.std() > 0.2 / 255
    assert Gaussian().target(images) is images


@pytest.mark.parametrize(
    ("given", "kept"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_likelihoods_are_summed_in_float32_at_least(given, kept):
    assert wide(torch.ones(2, dtype=given)).dtype == kept


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.1), QuantizedGaussian(0.1)])
def test_samples_are_pixels_around_the_mean(likelihood):
    randomness = torch.Generator().manual_seed(0)
    draws = likelihood.sample(OUTPUT.repeat(2000, 1, 1, 1), randomness).reshape(2000, *OUTPUT.shape)
    assert draws.min() >= 0
    assert draws.max() <= 1
    assert (draws.mean(0) - likelihood.mean(OUTPUT)).abs().max() < 0.06


def test_what_a_better_output_could_save_is_the_divergence_between_pixels_and_output():
    pixels = torch.tensor([[[[0.0, 0.5, 1.0, 0.25]]]])
    logits = torch.zeros_like(pixels)
    each = [math.log(2), 0.0, math.log(2), 0.25 * math.log(0.5) + 0.75 * math.log(1.5)]
    torch.testing.assert_close(Bernoulli().excess(logits, pixels).item(), sum(each), rtol=1e-6, atol=1e-6)
    assert Bernoulli().excess(pixels.logit(1e-7), pixels).item() == pytest.approx(0, abs=1e-5)


def test_what_a_better_mean_could_save_is_the_squared_error_in_units_of_sigma():
    target = torch.tensor([[[[0.5, 0.75]]]])
    for sigma in (0.5, 2.0):
        found = Gaussian(sigma).excess(torch.zeros_like(target), target)
        assert found.item() == pytest.approx(0.25**2 / (2 * sigma**2))


class Rescaled(Gaussian):
    def target(self, images, generator=None):
        return 2 * images - 1


class Binarized(Bernoulli):
    def target(self, images, generator=None):
        return torch.bernoulli(images, generator=generator)


class Averaged(Gaussian):
    def log_prob(self, output, target):
        return super().log_prob(output, target).mean()


class EachPixel(Gaussian):
    def excess(self, output, target):
        return (target - self.mean(output)).square()


@pytest.mark.parametrize(
    ("likelihood", "words"),
    [
        (Rescaled(0.1), "Rescaled: target must return the images"),
        (Binarized(), "Binarized: target must return the images"),
        (Averaged(0.1), r"Averaged: log_prob gives \(\) for 2 images"),
        (EachPixel(0.1), r"EachPixel: excess gives \(2, 1, 16, 16\) for 2 images"),
    ],
)
def test_a_likelihood_that_scores_would_take_for_another_is_refused(likelihood, words):
    with pytest.raises(ValueError, match=words):
        build_vae(RunConfig(data="mine", likelihood=likelihood), (1, 16, 16))


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.1), QuantizedGaussian(0.1)])
def test_the_librarys_likelihoods_pass_the_check_of_ones_own(likelihood):
    check_likelihood("own", likelihood, (3, 4, 5))
