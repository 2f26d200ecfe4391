import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from negvae.model import GaussianPrior
from negvae.model.priors import PriorSet


@pytest.mark.parametrize("shift", [0.0, 8.0, 25.0])
def test_kl_and_log_prob_equal_torch_distributions(shift):
    randomness = torch.Generator().manual_seed(0)
    mean, log_var, z = (torch.randn(7, 5, generator=randomness) for _ in range(3))
    prior = GaussianPrior(5, shift)
    reference = Independent(Normal(torch.full((5,), shift), torch.ones(5)), 1)
    posterior = Independent(Normal(mean, (0.5 * log_var).exp()), 1)
    torch.testing.assert_close(prior.kl(mean, log_var), kl_divergence(posterior, reference), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(prior.log_prob(z), reference.log_prob(z))


def test_kl_vanishes_at_the_prior_and_samples_have_its_moments():
    prior = GaussianPrior(4, 8.0)
    assert prior.kl(torch.full((1, 4), 8.0), torch.zeros(1, 4)).item() == 0
    draws = prior.sample(20_000, torch.Generator().manual_seed(0))
    assert (draws.mean(0) - 8).abs().max() < 0.05
    assert (draws.std(0) - 1).abs().max() < 0.05


def test_log_prob_sums_the_last_axis_whatever_comes_before_it():
    prior = GaussianPrior(3, 2.0)
    z = torch.randn(4, 5, 3)
    wanted = Independent(Normal(torch.full((3,), 2.0), 1.0), 1).log_prob(z)
    torch.testing.assert_close(prior.log_prob(z), wanted)
    mean = torch.randn(5, 3)
    excess = 0.5 * (mean.square() - (mean - 2).square()).sum(1)  # of the two divergences, which share the variance
    torch.testing.assert_close(prior.kl_excess(mean), excess)


def test_one_prior_is_a_set_too():
    assert PriorSet.simplex(1, 2, 6.0).means == ((0.0, 0.0),)
    with pytest.raises(ValueError, match="latent_size is 2"):
        PriorSet.simplex(3, 2, 6.0)


def test_samples_are_made_where_they_are_asked_for():
    prior = GaussianPrior(size=3, shift=2.0)
    assert prior.sample(2, device="meta").device.type == "meta"
    assert prior.sample(2, torch.Generator()).device.type == "cpu"
    assert prior.sample(2).shape == (2, 3)
