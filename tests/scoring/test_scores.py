import math

import numpy as np
import pytest
import torch

from negvae.model import build_vae
from negvae.scoring import SCORES, compute_scores, register_score
from negvae.scoring.comparison import compare
from tests.conftest import SHAPES, blobs, small_run


@pytest.fixture
def model():
    return build_vae(small_run("gray", initialization="he"), SHAPES["gray"]).eval()


IMAGES = blobs(33, SHAPES["gray"])


def test_one_pass_gives_the_same_as_one_by_one_and_repeats(model):
    names = ["bpd", "kl", "prior_ratio"]
    together = compute_scores(model, IMAGES, names)
    assert list(together) == names
    assert torch.equal(together["kl"], compute_scores(model, IMAGES, ["kl"])["kl"])
    again = compute_scores(model, IMAGES, names)
    assert all(torch.equal(together[name], again[name]) for name in names)


def test_more_posterior_samples_average(model):
    def spread(samples):
        generators = [torch.Generator().manual_seed(seed) for seed in range(6)]
        runs = [compute_scores(model, IMAGES, ["bpd"], samples=samples, generator=g)["bpd"] for g in generators]
        return torch.stack(runs).std(0).mean()

    assert spread(9) < spread(1) / 2


@pytest.mark.parametrize("images", [IMAGES.float(), blobs(2, (1, 20, 20)), IMAGES[0]])
def test_foreign_images_are_refused(model, images):
    with pytest.raises(ValueError, match="uint8 N x 1x28x28"):
        compute_scores(model, images, ["kl"])


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


def test_a_score_is_one_number_for_each_input(model, monkeypatch):
    monkeypatch.setattr(SCORES, "_entries", dict(SCORES._entries))
    register_score("listed", unit="nats")(lambda x: [0.0] * len(x.stored))
    register_score("wide", unit="nats")(lambda x: x.images)
    with pytest.raises(ValueError, match=r"score listed gave list for \d+ inputs"):
        compute_scores(model, IMAGES, ["listed"])
    with pytest.raises(ValueError, match=r"score wide gave \(\d+, 1, 28, 28\) for \d+ inputs"):
        compute_scores(model, IMAGES, ["wide"])
    register_score("turned", unit="nats")(lambda x: x.kl * 1j)
    with pytest.raises(ValueError, match=r"score turned gave torch\.complex128: it must give real numbers"):
        compute_scores(model, IMAGES, ["turned"])
    assert compute_scores(model, IMAGES[:0], ["kl"])["kl"].shape == (0,)


def test_tiles_are_compared_by_the_images_that_they_belong_to(model):
    owners = [np.repeat(np.arange(11), 3), np.repeat(np.arange(5), 2), np.arange(4)]
    others = {"a": 255 - IMAGES[:10], "b": 255 - IMAGES[:4]}
    first, second = compare(model, IMAGES, others, rule="mean", owners=owners)
    assert [len(first.inlier_scores["kl"]), len(first.ood_scores["kl"]), len(second.ood_scores["kl"])] == [11, 5, 4]
    plain = compare(model, IMAGES, others)[0].ood_scores["kl"]
    torch.testing.assert_close(first.ood_scores["kl"], plain.reshape(5, 2).double().mean(1).to(plain.dtype))
