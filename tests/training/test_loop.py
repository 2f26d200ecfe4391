import itertools
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from negvae.model import PosteriorHead
from negvae.model.networks import pyramid
from negvae.negatives import build_source
from negvae.training.checkpoint import FILE
from negvae.training.history import read_metrics
from negvae.training.loop import train, train_seeds
from negvae.training.run import TrainingDivergedError
from tests.conftest import PRECISIONS, SHAPES, blobs, small_run, spoil_generators

IMAGES = blobs(100, (1, 28, 28))


def weights(result):
    return {name: tensor.clone() for name, tensor in result.model.state_dict().items()}


def interrupt_after(steps):
    """An observer that sends SIGINT to this process once so many updates have come."""
    counter = itertools.count(1)

    def on_progress(update):
        if next(counter) == steps:
            os.kill(os.getpid(), signal.SIGINT)

    return on_progress


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("network", "source", "options"),
    [
        ("gray", "none", {"optimizer": "rmsprop"}),
        ("gray", "augmented+generated", {"optimizer": "adam"}),
        ("color", "uniform-noise", {"likelihood": "quantized-gaussian", "learn_sigma": True}),
    ],
)
def test_resumed_equals_unbroken_bit_for_bit(tmp_path, monkeypatch, precision, network, source, options):
    monkeypatch.setattr("negvae.training.loop.STEPS_PER_UPDATE", 3)
    images = blobs(100, SHAPES[network])
    config = small_run(network, epochs=3, precision=precision, negatives=source, **options)
    whole = train(config, images, build_source(source, None), directory=tmp_path / "whole")
    broken = tmp_path / "broken"
    first = train(config, images, build_source(source, None), directory=broken, on_progress=interrupt_after(2))
    assert first.stopped_by == "SIGINT"
    assert first.progress.step not in (0, 12)  # in the middle of an epoch
    second = train(
        config, images, build_source(source, None), directory=broken, resume=True, on_progress=interrupt_after(4)
    )
    assert second.stopped_by == "SIGINT"
    third = train(config, images, build_source(source, None), directory=broken, resume=True)
    assert third.progress.finished
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(third)[name]), name
    ends = [load_file(folder / FILE) for folder in (tmp_path / "whole", broken)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    timings = {"seconds", "images_per_second"}
    rows = [
        [{k: v for k, v in row.items() if k not in timings} for row in read_metrics(d)]
        for d in (tmp_path / "whole", broken)
    ]
    assert rows[0] == rows[1]
    assert [row["epoch"] for row in rows[0]] == [1, 2, 3]


def test_a_run_killed_outright_resumes_from_its_last_checkpoint(tmp_path):
    config = small_run(epochs=3)
    whole = train(config, IMAGES, directory=tmp_path / "whole")

    def die(update):
        if update.epoch == 2 and update.row is None:
            raise MemoryError  # nothing is saved on the way out

    with pytest.raises(MemoryError):
        train(config, IMAGES, directory=tmp_path / "killed", on_progress=die, checkpoint_seconds=1e9)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "half a li')
    resumed = train(config, IMAGES, directory=tmp_path / "killed", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))
    assert [row["epoch"] for row in read_metrics(tmp_path / "killed")] == [1, 2, 3]


@pytest.fixture(autouse=True)
def _read_often(monkeypatch):
    monkeypatch.setattr("negvae.training.loop.STEPS_PER_UPDATE", 5)


def test_budget_stops_with_a_checkpoint(tmp_path):
    result = train(small_run(epochs=1000), IMAGES, directory=tmp_path, budget=0.3)
    assert result.stopped_by == "budget"
    assert not result.progress.finished
    assert (tmp_path / FILE).exists()


def test_checkpoints_at_intervals_do_not_change_the_result(tmp_path):
    plain = train(small_run(), IMAGES, directory=tmp_path / "a", checkpoint_seconds=1e9)
    often = train(small_run(), IMAGES, directory=tmp_path / "b", checkpoint_seconds=1e-9)
    memory = train(small_run(), IMAGES)
    for other in (often, memory):
        assert all(torch.equal(x, y) for x, y in zip(weights(plain).values(), weights(other).values(), strict=True))


def test_global_random_state_is_neither_read_nor_moved():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = train(small_run(epochs=1), IMAGES, build_source("augmented", None))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    two = train(small_run(epochs=1), IMAGES, build_source("augmented", None))
    assert all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(two).values(), strict=True))
    other = train(small_run(epochs=1, seed=3), IMAGES, build_source("augmented", None))
    assert any(not torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values(), strict=True))


def test_divergence_names_the_step_and_the_last_good_checkpoint(tmp_path):
    train(small_run(epochs=1), IMAGES, directory=tmp_path)
    config = small_run(epochs=3, learning_rate=1e8)
    with pytest.raises(TrainingDivergedError, match=r"step \d+ of epoch 2: .*last good checkpoint is .*safetensors"):
        train(config, IMAGES, directory=tmp_path, resume=True)
    assert all(torch.isfinite(t).all() for t in load_file(tmp_path / FILE).values() if t.is_floating_point())


def test_metrics_grow_and_training_learns(tmp_path):
    seen = []

    def on_progress(update):
        if update.row:
            seen.append(len(Path(tmp_path / "metrics.jsonl").read_text().splitlines()))

    result = train(small_run(epochs=6), IMAGES, directory=tmp_path, on_progress=on_progress)
    assert seen == [1, 2, 3, 4, 5, 6]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history
    assert rows[-1]["nats_per_dim"] < rows[0]["nats_per_dim"]


@pytest.mark.parametrize("damage", ["truncated", "foreign", "other model"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, damage):
    train(small_run(epochs=1), IMAGES, directory=tmp_path)
    path = tmp_path / FILE
    config = small_run(epochs=2, latent_size=11 if damage == "other model" else 10)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "foreign":
        path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="checkpoint"):
        train(config, IMAGES, directory=tmp_path, resume=True)


@pytest.mark.parametrize("images", [IMAGES.float(), IMAGES[0], IMAGES[:1]])
def test_images_that_cannot_be_trained_on_are_refused(images):
    with pytest.raises(ValueError, match="images"):
        train(small_run(), images)


def test_after_epoch_joins_the_row_and_leaves_no_trace_in_the_model(tmp_path):
    config = small_run("color", epochs=2)
    images = blobs(40, SHAPES["color"])
    seen = []

    def after_epoch(model, config, epoch):
        assert not model.training
        with torch.no_grad():
            model.encode(images.float() / 255)  # would move the running statistics of a model in training mode
        seen.append(epoch)
        return {"extra": epoch * 1.5}

    plain = train(config, images)
    watched = train(config, images, directory=tmp_path, after_epoch=after_epoch)
    assert seen == [1, 2]
    assert [row["extra"] for row in read_metrics(tmp_path)] == [1.5, 3.0]
    assert all(torch.equal(tensor, weights(watched)[name]) for name, tensor in weights(plain).items())


def test_time_of_after_epoch_is_not_training(monkeypatch):
    clock = itertools.count()  # every look at the clock is a second later
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    config = small_run(epochs=2)

    def after_epoch(model, config, epoch):
        for _ in range(1000):
            next(clock)
        return {}

    assert train(config, blobs(16, SHAPES["gray"]), after_epoch=after_epoch).progress.seconds < 1000


def test_time_of_checkpoints_and_reports_is_not_training(tmp_path, monkeypatch):
    monkeypatch.setattr("negvae.training.loop.STEPS_PER_UPDATE", 1)
    clock = itertools.count()  # every look at the clock is a second later
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))

    def slowly(*arguments, **options):
        for _ in range(1000):
            next(clock)

    monkeypatch.setattr("negvae.training.run.save_checkpoint", slowly)
    config = small_run(epochs=2, transformations="turns")
    result = train(config, IMAGES[:32], directory=tmp_path, on_progress=slowly, checkpoint_seconds=0)
    assert result.progress.seconds < 1000


def test_a_generator_of_another_device_is_refused(tmp_path):
    train(small_run(epochs=1), IMAGES, directory=tmp_path)
    spoil_generators(tmp_path / FILE)
    with pytest.raises(ValueError, match="its random numbers cannot go on on cpu: take the type of device"):
        train(small_run(epochs=2), IMAGES, directory=tmp_path, resume=True)


def test_weights_that_the_last_step_spoils_are_not_saved(tmp_path):
    config = small_run(epochs=1, batch_size=100, optimizer="rmsprop", learning_rate=3e38)
    with pytest.raises(TrainingDivergedError, match="step 1 of epoch 1: the weights are not finite numbers; no check"):
        train(config, IMAGES, directory=tmp_path)
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_seeds_trained_together_equal_each_trained_alone(tmp_path, precision):
    configs = [small_run(precision=precision, negatives="generated", seed=seed) for seed in (0, 4)]
    source = build_source("generated", None)
    updates = []
    together = train_seeds(
        configs, IMAGES, source, directories=[tmp_path / str(c.seed) for c in configs], on_progress=updates.append
    )
    for config, result in zip(configs, together, strict=True):
        alone = train(config, IMAGES, source, directory=tmp_path / f"alone{config.seed}")
        assert all(torch.equal(weights(alone)[name], tensor) for name, tensor in weights(result).items())
        ends = [load_file(tmp_path / folder / FILE) for folder in (str(config.seed), f"alone{config.seed}")]
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not torch.equal(weights(together[0])["encoder.0.weight"], weights(together[1])["encoder.0.weight"])
    rows = [r.row for r in updates if r.row]
    assert rows == together[0].history


def test_a_run_begun_together_goes_on_alone(tmp_path):
    configs = [small_run(epochs=2, seed=seed) for seed in (0, 1)]
    train_seeds([replace(c, epochs=1) for c in configs], IMAGES, directories=[tmp_path / "0", tmp_path / "1"])
    resumed = train(configs[1], IMAGES, directory=tmp_path / "1", resume=True)
    whole = train(configs[1], IMAGES)
    assert all(torch.equal(weights(whole)[name], tensor) for name, tensor in weights(resumed).items())
    with pytest.raises(ValueError, match="different steps"):
        train_seeds(configs, IMAGES, directories=[tmp_path / "0", tmp_path / "1"], resume=True)


@pytest.mark.parametrize("other", [{"seed": 0}, {"seed": 1, "epochs": 3}])
def test_only_seeds_may_differ(other):
    with pytest.raises(ValueError, match="differ in their seeds"):
        train_seeds([small_run(), small_run(**other)], IMAGES)


@pytest.mark.parametrize("layer", [torch.nn.Dropout, torch.nn.RReLU])
def test_layers_that_draw_random_numbers_draw_those_of_the_seed(layer, tmp_path):
    def networks(shape, latent_size):
        layers = [torch.nn.Flatten(), torch.nn.Linear(784, 16), layer(), PosteriorHead(16, latent_size)]
        return torch.nn.Sequential(*layers), pyramid(shape, latent_size)[1]

    config, steps = small_run(network=networks, epochs=2, latent_size=2), itertools.count(1)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    whole = train(config, IMAGES)
    assert torch.equal(torch.get_rng_state(), before)  # the program's own are left alone
    torch.manual_seed(8)
    train(config, IMAGES, directory=tmp_path, should_stop=lambda: "enough" if next(steps) == 4 else "")
    resumed = train(config, IMAGES, directory=tmp_path, resume=True)
    assert all(torch.equal(weights(whole)[name], tensor) for name, tensor in weights(resumed).items())
