import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from negvae.model import build_vae
from negvae.model.likelihoods import Bernoulli, Gaussian
from negvae.scoring import dose
from negvae.scoring.scorer import Scorer, calibrate
from tests.conftest import blobs, small_run


def test_predictive_code_of_an_image_worked_out_by_hand():
    """The median of left, above, and left + above - corner; beyond the frame everything is black."""
    image = torch.tensor([[10.0, 10, 10], [10, 14, 10], [10, 14, 7]]).reshape(1, 1, 3, 3) / 255
    #                    predicted     0 10 10  10 10 14  10 14 10
    errors = np.array([10.0, 0, 0, 0, 4, 4, 0, 0, 3])
    length, exact, logarithm = (float(part) for part in dose.predictive_code(image))
    assert length == pytest.approx(np.log2(1 + errors).mean(), rel=1e-4)
    assert exact == pytest.approx(5 / 9)
    assert logarithm == pytest.approx(np.log(errors.mean() + 0.1), rel=1e-4)


def test_noise_is_longer_to_code_than_blobs():
    smooth, noise = blobs(5, (3, 20, 20)).float() / 255, torch.rand(5, 3, 20, 20)
    assert (dose.predictive_code(noise)[0] > 2 * dose.predictive_code(smooth)[0]).all()


def distance(points, fitted):
    return dose.distance(torch.tensor(points, dtype=torch.float64), torch.from_numpy(fitted)).numpy()


def test_dose_is_the_squared_mahalanobis_distance():
    randomness = np.random.default_rng(0)
    training = randomness.normal(size=(5000, 3)) @ randomness.normal(size=(3, 3)) + [5, -3, 100]
    fitted = dose.fit(training)
    assert dose.is_fitted(fitted)
    points = randomness.normal(size=(7, 3)) * 5
    inverse = np.linalg.inv(np.cov(training, rowvar=False))
    wanted = [mahalanobis(point, training.mean(0), inverse) ** 2 for point in points]
    np.testing.assert_allclose(distance(points, fitted), wanted, rtol=0.05)  # up to the ridge


def test_columns_that_never_change_or_say_the_same_do_no_harm():
    column = np.random.default_rng(0).normal(size=(500, 1))
    fitted = dose.fit(np.hstack([column, column, np.ones_like(column)]))
    assert np.isfinite(distance([[0.0, 0.0, 1.0], [3.0, 3.0, 1.0]], fitted)).all()
    assert distance([[3.0, 3.0, 1.0]], fitted) < 20
    assert distance([[0.0, 0.0, 2.0]], fitted) > 1000


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.3)])
def test_excess_is_what_an_output_loses_against_the_best(likelihood):
    target = torch.rand(4, 1, 6, 6).clamp(0.05, 0.95).double()
    best, other = target.logit(), target.logit() + 0.3
    torch.testing.assert_close(likelihood.excess(best, target), torch.zeros(4).double(), rtol=0, atol=1e-12)
    lost = likelihood.log_prob(best, target) - likelihood.log_prob(other, target)
    torch.testing.assert_close(likelihood.excess(other, target), lost)
    binary = (target > 0.5).double()
    torch.testing.assert_close(
        likelihood.excess(30 * (2 * binary - 1), binary), torch.zeros(4).double(), rtol=0, atol=20
    )
    assert (likelihood.excess(best, binary) > 0).all()


def test_scorer_measures_dose_and_combined_holds_it():
    model = build_vae(small_run("deep"), (2, 20, 33)).eval()
    images = blobs(80, (2, 20, 33))
    with pytest.raises(ValueError, match="score dose is measured against training images"):
        Scorer(model)(images, ["dose"])
    calibration = calibrate(Scorer(model), images[:60], images[60:], components=("dose", "prior_ratio"))
    assert calibration.reference.components == ["dose", "prior_ratio"]
    scorer = Scorer(model, calibration.reference)
    noise = torch.randint(256, (20, 2, 20, 33), dtype=torch.uint8)
    usual, strange = scorer(images[60:], ["dose", "combined"]), scorer(noise, ["dose", "combined"])
    for name in ("dose", "combined"):
        assert usual[name].max() < strange[name].min()
    assert np.array_equal(scorer(images[:1], ["dose"])["dose"], scorer(images[:30], ["dose"])["dose"][:1])


def test_only_arrays_that_fit_gives_are_taken_for_one():
    assert dose.is_fitted(np.zeros((5, 4)))
    for shape in ((4, 4), (2, 4), (5,), (5, 4, 1), (6, 4)):
        assert not dose.is_fitted(np.zeros(shape)), shape
    assert not dose.is_fitted(np.full((5, 4), np.nan))
