"""Halves of a batch in two threads: the same bits as by one thread, and the gradient of the whole batch."""

import pytest
import torch
from torch import nn

from negvae.training import halves
from negvae.training.halves import Halves
from negvae.training.weights import Weights


def trained(monkeypatch, cores, dtype=torch.float32, steps=5):
    monkeypatch.setattr(halves.os, "cpu_count", lambda: cores)
    randomness = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=randomness) / 10
    data = torch.randn(steps, 2, 6, 2, 8, 8, generator=randomness)
    weights = Weights(network, [], dtype, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    taken = [0, 0]

    def loss(copied, half):
        taken[half] += 1
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return copied(data[taken[half] - 1, half]).float().square().mean()

    with Halves(network, weights, loss, torch.device("cpu")) as pair:
        losses = [pair.step() for _ in range(steps)]
    weights.release()
    return network, losses, data


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_thread_and_two_give_the_same_bits(monkeypatch, dtype):
    one, two = (trained(monkeypatch, cores, dtype) for cores in (1, 2))
    assert torch.equal(torch.stack(one[1]), torch.stack(two[1]))
    assert all(
        torch.equal(a, b) for a, b in zip(one[0].state_dict().values(), two[0].state_dict().values(), strict=True)
    )


def test_a_step_follows_the_mean_gradient_and_the_mean_statistics(monkeypatch):
    start, _, _ = trained(monkeypatch, 2, steps=0)
    network, losses, data = trained(monkeypatch, 2, steps=1)
    each = [start(data[0, half]).square().mean() for half in (0, 1)]
    assert losses[0].tolist() == pytest.approx([loss.item() for loss in each])
    ((each[0] + each[1]) / 2).backward()
    for before, after in zip(start.parameters(), network.parameters(), strict=True):
        assert torch.allclose(after, before - 0.1 * before.grad, atol=1e-6)
    whole = nn.functional.conv2d(data[0].flatten(0, 1), start[0].weight, start[0].bias)
    assert torch.allclose(network[1].running_mean, 0.1 * whole.mean((0, 2, 3)), atol=1e-6)


def test_an_error_in_either_half_is_raised(monkeypatch):
    monkeypatch.setattr(halves.os, "cpu_count", lambda: 2)
    network = nn.Linear(2, 1)
    weights = Weights(network, [], torch.float32, lambda parameters: torch.optim.SGD(parameters, lr=0.1))

    def loss(copied, half):
        if half:
            raise ValueError("the second half")
        return copied(torch.ones(1, 2)).sum()

    with pytest.raises(ValueError, match="second half"), Halves(network, weights, loss, torch.device("cpu")) as pair:
        pair.step()
