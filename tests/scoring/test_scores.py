import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from negvae.model import build_vae
from negvae.scoring import SCORES, bits_per_dim, compute_scores, kl, nats_per_dim, prior_ratio
from negvae.scoring.blocks import IMAGES as IMAGES_OF_A_BLOCK
from negvae.scoring.comparison import compare
from tests.conftest import SHAPES, blobs, small_run


@pytest.fixture
def model():
    return build_vae(small_run("gray", initialization="he"), SHAPES["gray"]).eval()


IMAGES = blobs(33, SHAPES["gray"])


def test_scores_are_what_their_names_say(model):
    randomness = torch.Generator().manual_seed(0)
    with torch.no_grad():
        mean, log_var = model.encode(IMAGES.float() / 255)
        posterior = Independent(Normal(mean, (0.5 * log_var).exp()), 1)
        to = [kl_divergence(posterior, Independent(Normal(torch.full((10,), c), 1.0), 1)) for c in (0.0, 8.0)]
        z = mean + (0.5 * log_var).exp() * torch.cat(
            [torch.randn(count, 10, generator=randomness) for count in (IMAGES_OF_A_BLOCK, 1)]
        )
        log_likelihood = model.likelihood.log_prob(model.decode(z), IMAGES.float() / 255)
    expected = (to[0] - log_likelihood) / 784
    torch.testing.assert_close(kl(model, IMAGES, precision="float32"), to[0], rtol=1e-4, atol=1e-4)
    ratio = prior_ratio(model, IMAGES, precision="float32")
    torch.testing.assert_close(ratio, to[0] - to[1], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(nats_per_dim(model, IMAGES, precision="float32"), expected)
    torch.testing.assert_close(bits_per_dim(model, IMAGES, precision="float32"), expected / math.log(2))


def test_one_pass_gives_the_same_as_one_by_one_and_repeats(model):
    together = compute_scores(model, IMAGES)
    assert list(together) == list(SCORES)
    assert torch.equal(together["kl"], compute_scores(model, IMAGES, ["kl"])["kl"])
    again = compute_scores(model, IMAGES)
    assert all(torch.equal(together[name], again[name]) for name in SCORES)


def test_more_posterior_samples_average(model):
    def spread(samples):
        generators = [torch.Generator().manual_seed(seed) for seed in range(8)]
        runs = [nats_per_dim(model, IMAGES, samples=samples, generator=g, precision="float32") for g in generators]
        return torch.stack(runs).std(0).mean()

    assert spread(16) < spread(1) / 2


@pytest.mark.parametrize("images", [IMAGES.float(), blobs(2, (1, 20, 20)), IMAGES[0]])
def test_foreign_images_are_refused(model, images):
    with pytest.raises(ValueError, match="uint8 N x 1x28x28"):
        compute_scores(model, images)


def test_unknown_scores_suggest_the_nearest(model):
    with pytest.raises(ValueError, match="did you mean kl"):
        compute_scores(model, IMAGES, ["kll"])


def test_compare_orients_scores_towards_outliers(model):
    rows = [c.row() for c in compare(model, IMAGES, {"same": IMAGES, "inverted": 255 - IMAGES}, precision="float32")]
    assert rows[0]["auc_kl"] == 0.5
    farther = rows[1]["nats_per_dim_ood"] > rows[1]["nats_per_dim_test"]
    assert (rows[1]["auc_bpd"] > 0.9) == farther
    assert (rows[1]["auc_bpd"] < 0.1) != farther
    assert rows[1]["bits_per_dim_ood"] == pytest.approx(rows[1]["nats_per_dim_ood"] / math.log(2))
