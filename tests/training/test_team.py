"""Threads of one process that share every batch: the run of one worker, whatever their number."""

import dataclasses
import threading
import time
import types

import pytest
import torch

from negvae.fast import convolution
from negvae.model import build_vae
from negvae.model.reparametrized import SpectralNorm
from negvae.negatives import Generated, build_source
from negvae.training import choice, team
from negvae.training.checkpoint import read_progress
from negvae.training.choice import Choice, candidates, choose_workers, measure
from negvae.training.helpers import Helpers
from negvae.training.history import read_metrics
from negvae.training.loop import train
from negvae.training.step import Learner
from tests.conftest import SHAPES, blobs, small_run

GRAY, OTHERS = blobs(24, (1, 28, 28)), 255 - blobs(20, (1, 28, 28), 1)


@pytest.fixture
def double(monkeypatch):
    """Learners in float64, by torch's own layers: what is left of a difference is no rounding."""
    monkeypatch.setattr(convolution, "run", lambda network, inputs: network(inputs))
    monkeypatch.setattr("negvae.training.step.build_vae", lambda *arguments: build_vae(*arguments).double())


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of few rows, so that there are more of them than workers."""
    monkeypatch.setattr(team, "LEAST_ROWS", 1)


def weights(model):
    """All that a model keeps, as one vector."""
    return torch.cat([value.detach().flatten().double() for value in model.state_dict().values()])


def helpers():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("negvae-worker")]


@pytest.mark.parametrize(
    ("network", "negatives", "update"),
    [
        ("gray", "none", "alternating"),
        ("gray", "augmented", "alternating"),
        ("gray", "0.4*generated+0.6*others", "simultaneous"),
        ("color", "none", "alternating"),
        ("color", "generated", "simultaneous"),
    ],
)
@pytest.mark.usefixtures("double", "small_parts")
def test_three_epochs_by_any_number_of_workers_are_those_of_one(network, negatives, update):
    images = GRAY if network == "gray" else blobs(8, (3, 32, 32))
    config = small_run(
        network, negatives=negatives, update=update, epochs=3, likelihood="quantized-gaussian", learn_sigma=True,
        batch_size=8 if network == "gray" else 4,
    )  # fmt: skip

    def run(workers):
        return train(config, images, build_source(negatives, lambda name: OTHERS), workers=workers)

    alone = run(None)
    for workers in (1, 2, 3):
        result = run(workers)
        assert (weights(result.model) - weights(alone.model)).abs().max() < 1e-9
        for row, expected in zip(result.history, alone.history, strict=True):
            for name in ("reconstruction", "kl", "negative_kl", "generator_kl"):
                assert row[name] == pytest.approx(expected[name], rel=1e-9)
    assert not helpers()


@pytest.mark.parametrize("small", [True, False])
def test_what_layers_keep_besides_weights_is_that_of_one_worker(small, monkeypatch):
    monkeypatch.setattr(team, "LEAST_ROWS", 1 if small else 128)
    config = small_run("color-authors-spectral", initialization="glorot", latent_size=4)
    images, source = blobs(16, (3, 32, 32)), build_source("added-noise", lambda name: OTHERS)
    kept = []
    for workers in (1, 2):
        model = train(config, images, source, workers=workers).model
        kept.append([module.vector for module in model.modules() if isinstance(module, SpectralNorm)])
    start = [module.vector for module in build_vae(config, (3, 32, 32)).modules() if isinstance(module, SpectralNorm)]
    for alone, together, before in zip(*kept, start, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
        assert (together - before).abs().max() > 0.1


@pytest.mark.usefixtures("small_parts")
def test_the_bits_do_not_depend_on_who_is_slow(monkeypatch):
    config, whole = small_run(epochs=2), Learner.take

    def run(slow):
        def take(self, *arguments):
            if threading.current_thread().name == slow:
                time.sleep(0.02)
            return whole(self, *arguments)

        monkeypatch.setattr(Learner, "take", take)
        return weights(train(config, GRAY, None, workers=2).model)

    assert torch.equal(run("negvae-worker-1"), run("MainThread"))


def test_a_run_goes_on_with_the_number_of_its_checkpoint_or_with_another(tmp_path):
    config, said = small_run(epochs=3), []

    def stretch(epochs, folder, **options):
        run = dataclasses.replace(config, epochs=epochs)
        return train(run, GRAY, None, directory=tmp_path / folder, resume=True, log=said.append, **options)

    stretch(1, "0", workers=3)
    assert read_progress(tmp_path / "0").workers == 3
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        stretch(2, "0")
    finally:
        torch.set_num_threads(threads)
    mixed = stretch(3, "0", workers=1)
    assert said == [
        "training with 3 workers of one thread each",
        "training with 3 workers of one thread each (as before)",
        "training with 1 worker of one thread",
    ]
    whole = stretch(3, "1", workers=3)
    torch.testing.assert_close(weights(mixed.model), weights(whole.model), rtol=0.05, atol=0.05)
    assert [row["epoch"] for row in read_metrics(tmp_path / "0")] == [1, 2, 3]
    split = stretch(2, "2", workers=3)
    assert split.progress.epoch == 2
    assert torch.equal(weights(stretch(3, "2", workers=3).model), weights(whole.model))


class Breaking(Generated):
    """Generated negatives that fail at the second step of any worker but the first."""

    seen = 0

    def sample(self, *arguments):
        if threading.current_thread().name != "MainThread":
            type(self).seen += 1
            if self.seen == 2:
                raise LookupError("no negatives in this thread")
        return super().sample(*arguments)


def test_helpers_compute_alone_whatever_number_of_threads_others_set():
    threads, others_set, seen = torch.get_num_threads(), threading.Event(), []

    def make(rank):
        made.set()
        assert others_set.wait(30)
        return lambda step: seen.append(torch.get_num_threads())

    made, helpers = threading.Event(), Helpers(make)
    try:
        helpers.begin("step", workers=2)
        assert made.wait(30)
        torch.set_num_threads(3)
        others_set.set()
        helpers.gather()
    finally:
        helpers.close()
        torch.set_num_threads(threads)
    assert seen == [1]


def test_what_a_worker_raises_ends_the_run(tmp_path):
    with pytest.raises(LookupError, match="no negatives in this thread"):
        train(small_run(negatives="generated"), GRAY, Breaking(), workers=2)
    assert not helpers()

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_run(), GRAY, None, workers=2, should_stop=stop)
    assert not helpers()
    result = train(small_run(epochs=9), GRAY, None, workers=2, directory=tmp_path, should_stop=lambda: "SIGTERM")
    assert (result.stopped_by, read_progress(tmp_path).step) == ("SIGTERM", 1)


@pytest.mark.parametrize(
    ("workers", "error", "message"),
    [
        (0, ValueError, "workers is 0: it must be at least 1"),
        (9, ValueError, "9 workers for batches of 8 images"),
        (2.0, TypeError, "workers is 2.0: it must be a whole number"),
        (True, TypeError, "workers is True"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(workers, error, message, tmp_path):
    with pytest.raises(error, match=message):
        train(small_run(batch_size=8), GRAY, None, workers=workers, directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_networks_that_cannot_be_shared_are_refused():
    def networks(shape, latent_size):
        encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(784, 2 * latent_size))
        decoder = torch.nn.Sequential(torch.nn.Linear(latent_size, 784), torch.nn.Unflatten(1, shape))
        return encoder, decoder

    with pytest.raises(ValueError, match="Dropout draws from one random generator"):
        train(dataclasses.replace(small_run(), network=networks), GRAY, None, workers=2)
    mixture = build_source("0.1*generated+0.9*others", lambda name: blobs(20, (3, 32, 32)))
    with pytest.raises(ValueError, match="rows of each kind of negatives"):
        train(small_run("color", batch_size=8), blobs(16, (3, 32, 32)), mixture, workers=2)


def test_workers_do_not_meet_for_the_encoder_of_transformations(double):
    """Its batch norms see batches of its own: workers neither meet for them nor need rows of each kind for them."""
    config = small_run(network="pyramid", transformations="turns", batch_size=12, epochs=1)
    assert not team.workers_meet(Learner(config, GRAY, None))
    source = build_source("0.1*generated+0.9*others", lambda name: OTHERS)
    assert not choice.obstacle(Learner(dataclasses.replace(config, batch_size=20), GRAY, source), 2)
    one, two = (train(config, GRAY, None, workers=workers) for workers in (1, 2))
    assert two.progress.shift_steps[0] > 0
    assert (weights(one.model) - weights(two.model)).abs().max() < 1e-8


def test_the_number_is_measured_where_a_run_is_long(monkeypatch):
    learner, asked, rates = Learner(small_run(), GRAY, None), [], {0: 170, 1: 100, 2: 180, 4: 182}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(choice, "measure", lambda make, numbers: asked.append(numbers) or rates)

    def choose(steps, like=learner):
        return choose_workers(lambda: learner, like, steps)

    assert choose(10).workers is None
    assert not asked
    found = choose(10**6)
    assert asked == [[0, 1, 2, 4]]
    assert (found.workers, found.otherwise) == (2, 0)
    assert found.how == "images/s by workers: 4 threads in operators: 170, 1: 100, 2: 180, 4: 182"
    rates[0] = 200
    assert (choose(10**6).workers, choose(10**6).otherwise) == (None, 2)
    model = types.SimpleNamespace(modules=list, dimensions=8, takes_features=True)
    assert choose(10**7, types.SimpleNamespace(batch=8, source=None, model=model)).workers == 1


class Recorded:
    """A stand-in for a learner that notes with how many workers it is to go on."""

    def __init__(self):
        self.numbers = []

    def share_among(self, workers):
        self.numbers.append(workers)


def watched(ways, now, seconds):
    """What a watch does when looks at 25 steps each find these seconds: numbers set, numbers kept, lines said."""
    learner, said = Recorded(), []
    watch = choice.WorkerWatch([learner], ways, now, said.append)
    kept = [found for each in seconds if (found := watch.look(each, 25)) is not None]
    return learner.numbers, kept, said


def test_a_slow_run_goes_on_with_fewer_workers_where_that_is_quicker():
    assert watched([2, 1], 2, [1, 1, 4, 2]) == (
        [1], [1], ["steps became slow beside other programs: going on with 1 worker of one thread"]
    )  # fmt: skip
    assert watched([2, 1], 2, [1, 1, 4, 4]) == ([1, 2], [], [])  # taken back
    assert watched([2, 1], 2, [1, 1, *[4] * 6]) == ([1, 2], [], [])
    assert watched([2, 1], 2, [1, 1, *[4] * 7])[0] == [1, 2, 1]  # and tried again
    assert watched([2, 1], 2, [1, 1, 1.5, 1.5])[0] == []
    assert watched([2], 2, [1, 9, 9, 9]) == ([], [], [])
    assert watched([], 0, [1, 9]) == ([], [], [])


def test_it_goes_back_when_the_neighbor_is_gone():
    beside, alone = [1, 1, 4, 2], [2] * choice.PATIENCE
    numbers, kept, said = watched([0, 2], 0, [*beside, *alone, 1, 1])
    assert (numbers, kept) == ([2, 0], [2, 0])
    assert said[1].startswith("more of the processor is free: going on with")
    numbers, kept, _ = watched([0, 2], 0, [*beside, *alone, 4, *alone, *alone, 4])
    assert numbers == [2, 0, 2, 0, 2]  # in vain, and after twice as many looks in vain again
    assert kept == [2]


def test_a_run_that_began_beside_others_tries_more_workers_later():
    assert watched([2, 1], 1, [2] * choice.PATIENCE + [1])[:2] == ([2], [2])


def test_workers_that_wait_for_one_another_may_become_fewer(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)

    def ways(learner, *chosen, **further):
        return choice.ways_to_work(Choice(*chosen, "", **further), learner)

    plain = Learner(small_run(), GRAY, None)
    assert ways(plain, 4, measured=True) == [4]
    assert ways(plain, 1, measured=True) == [4, 2, 1]
    assert ways(plain, 1) == [1]
    assert ways(plain, None, measured=True) == [0]
    assert ways(plain, None, otherwise=2, measured=True) == [0, 2]
    normed = Learner(small_run("color"), blobs(16, (3, 32, 32)), None)
    assert ways(normed, 2, measured=True) == [4, 2, 1]
    assert ways(normed, None, otherwise=4, measured=True) == [0, 4, 1]
    assert ways(normed, 2) == [2]


def test_a_run_changes_its_number_in_the_middle_and_records_it(monkeypatch, tmp_path):
    monkeypatch.setattr("negvae.training.loop.choose_workers", lambda *asked: Choice(None, "tried", otherwise=2))
    monkeypatch.setattr("negvae.training.loop.STEPS_PER_UPDATE", 1)
    monkeypatch.setattr(choice, "LAG", -1)  # any step is slow
    monkeypatch.setattr(choice, "GAIN", 1e-9)  # and any trial is quicker
    said = []
    result = train(small_run(), GRAY, None, directory=tmp_path, log=said.append)
    assert result.stopped_by == "finished"
    assert said[1:] == ["steps became slow beside other programs: going on with 2 workers of one thread each"]
    assert read_progress(tmp_path).workers == 2
    assert not helpers()


def test_operators_take_their_threads_again(monkeypatch):
    learner, seen = Learner(small_run(), GRAY, None), []
    take = learner.take
    monkeypatch.setattr(learner, "take", lambda *given: seen.append(torch.get_num_threads()) or take(*given))
    torch.set_num_threads(2)
    for workers in (1, 0):
        learner.share_among(workers)
        learner.begin_epoch(learner.randomness.get_state(), 0)
        learner.step()
    assert (seen, learner.workers) == ([1, 2], None)
    learner.close()


@pytest.mark.parametrize("network", ["gray", "color"])
@pytest.mark.parametrize("negatives", ["none", "generated"])
def test_workers_come_and_go_between_steps(network, negatives, double):
    """Those that wait for one another too: a helper that rests must not be told to go on."""
    images = blobs(24, SHAPES[network])

    def trained_by(numbers):
        learner = Learner(small_run(network, negatives=negatives), images, build_source(negatives, lambda name: images))
        learner.begin_epoch(learner.randomness.get_state(), 0)
        for workers in numbers:
            learner.share_among(workers)
            learner.step()
        learner.close()
        return weights(learner.model)

    torch.testing.assert_close(trained_by([2, 1, 2]), trained_by([1, 1, 1]), rtol=1e-6, atol=1e-9)
    assert not helpers()


def test_a_measurement_gives_a_rate_for_each_number_and_leaves_no_thread():
    rates = measure(lambda: Learner(small_run(), GRAY, None), [0, *candidates(2)], seconds=0.05)
    assert sorted(rates) == [0, 1, 2]
    assert all(rate > 0 for rate in rates.values())
    assert not helpers()
