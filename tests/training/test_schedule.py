"""The learning rate in the course of a training."""

import pytest
import torch

from negvae.config import RunConfig
from negvae.training.loop import train
from negvae.training.schedule import rise_and_fall
from negvae.training.step import Learner
from tests.conftest import blobs, small_run

IMAGES = blobs(24, (1, 28, 28))


def rates(config, epochs):
    """The learning rates of both networks at each step of some epochs."""
    learner, found = Learner(config, IMAGES, None), []
    for epoch in range(epochs):
        learner.begin_epoch(learner.randomness.get_state(), 0, epoch)
        for _ in range(learner.steps):
            learner.step()
            found.append([weights.optimizer.param_groups[0]["lr"] for weights in (learner.encoder, learner.decoder)])
    return found


def test_it_is_constant_where_nothing_else_is_asked_for():
    assert RunConfig(data="x").schedule == "constant"
    assert rates(small_run(epochs=2, learning_rate=0.01), 2) == [[0.01, 0.01]] * 6


def test_it_rises_and_falls_over_all_epochs():
    expected = [0.01 * rise_and_fall(step, 6, 0.05) for step in range(6)]
    found = rates(small_run(epochs=2, learning_rate=0.01, schedule="cosine"), 2)
    torch.testing.assert_close(torch.tensor(found), torch.tensor([[each, each] for each in expected]))
    assert expected[0] == 0.01  # a short run rises in its first step
    assert expected[-1] < 1e-6


def test_the_last_steps_are_the_shortest():
    factors = [rise_and_fall(step, 1000, 0.05) for step in range(1000)]
    assert max(factors) == factors[49] == 1
    assert factors[:50] == sorted(factors[:50])
    assert factors[49:] == sorted(factors[49:], reverse=True)
    assert sum(factors) / 1000 == pytest.approx(0.5, abs=0.01)


def test_a_run_that_was_stopped_goes_on_with_its_rates(tmp_path):
    config = small_run(epochs=3, schedule="cosine")
    whole = train(config, IMAGES, None)
    looks = []

    def stop():
        looks.append(1)
        return "enough" if len(looks) == 4 else ""

    stopped = train(config, IMAGES, None, directory=tmp_path, should_stop=stop)
    assert (stopped.progress.epoch, stopped.progress.step) == (1, 1)
    again = train(config, IMAGES, None, directory=tmp_path, resume=True)
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match=r"schedule .*linear.*constant"):
        RunConfig(data="x", schedule="linear")
