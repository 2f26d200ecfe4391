"""Workers that share every batch: the run of one process, whatever their number.

The workers are threads here, and add up in memory; how Ray and gloo carry the same sums is tested with the cluster.
"""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from negvae.fast import convolution
from negvae.model import build_vae
from negvae.negatives import build_source
from negvae.training.history import read_metrics
from negvae.training.loop import train
from negvae.training.step import Learner
from negvae.training.workers import Peers
from tests.conftest import blobs, small_run

IMAGES, OTHERS = blobs(24, (1, 28, 28)), 255 - blobs(20, (1, 28, 28), 1)
SOURCES = ["none", "others", "added-noise", "uniform-noise", "generated", "augmented", "0.4*generated+0.6*others"]


@pytest.fixture
def double(monkeypatch):
    """Learners in float64, by torch's own layers: what is left of a difference is no rounding.

    In float32 an optimizer's first steps turn rounding of a gradient near zero into a step the other way, and by how
    much depends on the processor's kernels.
    """
    monkeypatch.setattr(convolution, "run", lambda network, inputs: network(inputs))
    monkeypatch.setattr("negvae.training.step.build_vae", lambda *arguments: build_vae(*arguments).double())


def source_of(text):
    return build_source(text, lambda name: OTHERS)


def together(size, work):
    """`work(peers)` of every worker, side by side."""
    barrier, slots = threading.Barrier(size, timeout=60), [torch.zeros(0)] * size

    def adds(rank):
        def add(tensor):
            slots[rank] = tensor
            barrier.wait()
            total = torch.stack(slots).sum(0)
            barrier.wait()
            tensor.copy_(total)

        return add

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: work(Peers(rank, size, adds(rank))), range(size)))


def first_step(config, source, peers=None):
    learner = Learner(config, IMAGES, source_of(source), peers)
    learner.begin_epoch(learner.randomness.get_state(), 0)
    learner.step()
    losses = learner.trace[0].clone()
    learner.average(losses)
    return losses, learner.encoder.master.grad, learner.decoder.master.grad, learner.randomness.get_state()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("size", "update"), [(2, "alternating"), (3, "simultaneous")])
@pytest.mark.usefixtures("double")
def test_losses_and_gradients_are_those_of_one_process(source, size, update):
    config = small_run(update=update, likelihood="quantized-gaussian", learn_sigma=True)
    alone = first_step(config, source)
    for losses, encoder, decoder, state in together(size, lambda peers: first_step(config, source, peers)):
        torch.testing.assert_close(losses, alone[0], rtol=1e-10, atol=0)
        assert (losses[2] > 0) == (source != "none")
        assert (losses[3] > 0) == ("generated" in source)
        for mine, whole in ((encoder, alone[1]), (decoder, alone[2])):
            assert (mine - whole).norm() <= 1e-10 * whole.norm()
            assert whole.norm() > 0
        assert torch.equal(state, alone[3])


def test_the_fast_layers_share_a_batch_too():
    """As before in float32, whose rounding (6e-8) adds up over a thousand terms and one network behind the other."""
    config = small_run(update="simultaneous")
    alone = first_step(config, "0.4*generated+0.6*others")
    for losses, encoder, decoder, _ in together(2, lambda peers: first_step(config, "0.4*generated+0.6*others", peers)):
        torch.testing.assert_close(losses, alone[0], rtol=1e-4, atol=0)
        for mine, whole in ((encoder, alone[1]), (decoder, alone[2])):
            assert (mine - whole).norm() <= 1e-3 * whole.norm()


@pytest.mark.usefixtures("double")
def test_a_run_can_be_passed_from_hand_to_hand(tmp_path):
    """One worker, then three, then two: the checkpoints belong to the run and not to the workers."""
    config = small_run(epochs=3, negatives="generated", optimizer="rmsprop", learning_rate=1e-4)
    source = source_of("generated")
    alone = train(config, IMAGES, source, directory=tmp_path / "alone")

    def stretch(epochs, peers=None):
        run = dataclasses.replace(config, epochs=epochs)
        return train(run, IMAGES, source, directory=tmp_path / "shared", resume=True, peers=peers)

    stretch(1)
    together(3, lambda peers: stretch(2, peers))
    results = together(2, lambda peers: stretch(3, peers))
    assert [result.stopped_by for result in results] == ["finished"] * 2
    whole = torch.cat([p.flatten() for p in alone.model.parameters()])
    for result in results:
        mine = torch.cat([p.flatten() for p in result.model.parameters()])
        assert (mine - whole).abs().max() < 1e-8
    rows, wanted = read_metrics(tmp_path / "shared"), read_metrics(tmp_path / "alone")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for row, expected in zip(rows, wanted, strict=True):
        for name in ("reconstruction", "kl", "negative_kl", "generator_kl"):
            assert row[name] == pytest.approx(expected[name], rel=1e-8)


@pytest.mark.usefixtures("double")
def test_batch_norm_takes_the_statistics_of_the_whole_batch():
    config = small_run("color", negatives="generated", batch_size=8)
    images = blobs(16, (3, 32, 32))

    def step(peers):
        learner = Learner(config, images, source_of("generated"), peers)
        learner.begin_epoch(learner.randomness.get_state(), 0)
        learner.step()
        return {name: b for name, b in learner.model.named_buffers() if "running" in name}, learner.encoder.master.grad

    alone, gradient = step(None)
    assert alone
    for running, mine in together(3, step):
        assert (mine - gradient).norm() <= 1e-9 * gradient.norm()
        for name, values in running.items():
            torch.testing.assert_close(values, alone[name], rtol=1e-6, atol=1e-9)


def test_a_word_to_the_first_worker_stops_all_at_the_same_step(tmp_path):
    config = small_run(epochs=50)

    def work(peers):
        asked = []
        should_stop = lambda: asked.append(1) or ("SIGTERM" if peers.rank == 0 and len(asked) > 8 else "")  # noqa: E731
        return train(config, IMAGES, None, directory=tmp_path, peers=peers, should_stop=should_stop)

    results = together(2, work)
    assert results[0].stopped_by == "SIGTERM"
    places = {(result.progress.epoch, result.progress.step) for result in results}
    assert places == {(3, 0)}  # after the ninth step, of 3 in an epoch
    assert (
        train(config, IMAGES, None, directory=tmp_path, resume=True, should_stop=lambda: "enough").stopped_by
        == "enough"
    )


def test_the_first_worker_alone_trains_the_encoder_of_transformations(tmp_path):
    """It shares no batch: the others would train the same, and would not hear of a stop."""
    config = small_run(network="pyramid", transformations="turns", batch_size=12, epochs=1)

    def work(peers):
        return train(config, IMAGES, source_of("none"), directory=tmp_path, peers=peers)

    first, second = together(2, work)
    steps = first.progress.shift_steps
    assert first.stopped_by == "finished"
    assert steps[0] == steps[1] > 0
    assert second.progress.shift_steps[0] == 0
    assert not second.progress.finished


def test_what_cannot_be_shared_is_refused(tmp_path):
    with pytest.raises(ValueError, match="9 workers for batches of 8"):
        together(9, lambda peers: train(small_run(), IMAGES, None, peers=peers))
    train(small_run(epochs=1), IMAGES, None, directory=tmp_path / "0")

    def go_on(peers):
        return train(small_run(), IMAGES, None, directory=tmp_path / str(peers.rank), resume=True, peers=peers)

    with pytest.raises(ValueError, match="must be one that all nodes share"):
        together(2, go_on)
