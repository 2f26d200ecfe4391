"""The checks of shapes that run in every test refuse what they should."""

import pytest
import torch

from negvae.model import GaussianPrior, Posterior
from negvae.training import objectives


@pytest.mark.parametrize(("mean", "log_var"), [((4, 3), (4, 2)), ((4, 3), (1, 3)), ((3,), (3,))])
def test_shapes_that_only_broadcasting_would_save_are_refused(mean, log_var):
    with pytest.raises(TypeError, match=r"GaussianPrior\.kl: (mean|log_var) is \("):
        GaussianPrior(3).kl(torch.zeros(mean), torch.zeros(log_var))


def test_right_shapes_pass():
    assert GaussianPrior(3).kl(torch.zeros(4, 3), torch.zeros(4, 3)).shape == (4,)
    posterior = Posterior(torch.zeros(4, 3), torch.zeros(4, 3))
    assert posterior.sample(torch.zeros(5, 4, 3)).shape == (5, 4, 3)


def test_functions_are_checked_wherever_they_are_called_from():
    assert hasattr(objectives.shared_losses, "__wrapped__")
    assert hasattr(objectives.train_step, "__wrapped__")
