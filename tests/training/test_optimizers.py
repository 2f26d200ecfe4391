import pytest
import torch

from negvae.parts import OPTIMIZERS


def test_the_authors_rmsprop_by_hand():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = OPTIMIZERS["rmsprop-authors"].load()([parameter], 0.1, capturable=False)
    gradient, mean = torch.tensor([2.0, 1e-6]), torch.ones(2)
    expected = torch.zeros(2)
    for _ in range(200):
        parameter.grad = gradient.clone()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient**2
        expected -= 0.1 * gradient / (mean + 1e-10).sqrt()
    torch.testing.assert_close(parameter.detach(), expected)
    # The first step is short where the gradient is small; a gradient far below 1e-5 never gets a full one.
    assert abs(parameter[1].item()) < 200 * 0.1 * 0.11


@pytest.mark.parametrize("name", ["rmsprop", "rmsprop-authors"])
def test_after_many_steps_both_forms_of_rmsprop_take_the_same_ones(name):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = OPTIMIZERS[name].load()([parameter], 0.1, capturable=False)
    for _ in range(300):
        before = parameter.item()
        parameter.grad = torch.ones(1)
        optimizer.step()
    assert before - parameter.item() == pytest.approx(0.1, rel=1e-4)
