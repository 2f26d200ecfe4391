import torch
from torch import nn

from negvae.training.weights import Weights


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    return net.to(memory_format=torch.channels_last)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


def test_the_one_vector_moves_as_the_separate_parameters_would():
    ours, theirs = network(), network()
    weights, optimizer = Weights(ours, [], torch.float32, adam), adam(theirs.parameters())
    inputs = torch.rand(5, 1, 8, 8)
    for _ in range(3):
        ours(inputs).square().sum().backward()
        weights.step()
        optimizer.zero_grad()
        theirs(inputs).square().sum().backward()
        optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_layers_compute_with_rounded_copies_of_exact_weights():
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    weights = Weights(net, [], torch.bfloat16, adam)
    kinds = [p.dtype for p in net.parameters()]
    assert kinds == [torch.bfloat16] * 2 + [torch.float32] * 2 + [torch.bfloat16] * 2  # batch norm stays exact
    for p, exact in zip(net.parameters(), before, strict=True):
        assert torch.equal(p.detach().float(), exact.to(p.dtype).float())
    with weights.exact():
        assert all(torch.equal(p, exact) for p, exact in zip(net.parameters(), before, strict=True))
        next(net.parameters()).data.fill_(0.5)
    assert (next(net.parameters()) == 0.5).all()
    weights.release()
    assert all(p.dtype == torch.float32 for p in net.parameters())


def test_small_updates_add_up_although_a_rounded_copy_would_not_move():
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    weights = Weights(net, [], torch.bfloat16, lambda p: torch.optim.SGD(p, lr=1e-4))
    for _ in range(100):
        net.weight.grad = torch.ones_like(net.weight)
        weights.step()
    weights.release()
    assert abs(net.weight.item() - 0.99) < 1e-5


def test_a_parameter_without_gradient_stays():
    net = network()
    weights = Weights(net, [], torch.float32, lambda p: torch.optim.SGD(p, lr=1.0))
    before = [p.detach().clone() for p in net.parameters()]
    net[3].bias.grad = torch.ones(2)
    weights.step()
    moved = [not torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True)]
    assert moved == [False] * 5 + [True]
    assert all(p.grad is None for p in net.parameters())
