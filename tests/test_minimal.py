"""examples/minimal.py shares no code with the library and computes the same: in float64, to 1e-10."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from negvae.model import build_vae
from negvae.negatives import NegativeBatch
from negvae.scoring import compute_scores, detection_metrics
from negvae.training.objectives import train_step
from negvae.training.step import Learner
from negvae.training.weights import Weights
from tests.conftest import SHAPES, blobs, small_run

PATH = Path(__file__).parents[1] / "examples" / "minimal.py"
BATCH, SHAPE, RATE = 6, SHAPES["gray"], 1e-6
COLUMN = r"""AUC BPD  [01]\.\d{3}
AUC KL   [01]\.\d{3}
Test BPD \d+\.\d{3} nats per dimension, the tables' unit; \d+\.\d{3} bits
OOD BPD  \d+\.\d{3} nats per dimension, the tables' unit; \d+\.\d{3} bits
$"""

specification = importlib.util.spec_from_file_location("minimal", PATH)
minimal = importlib.util.module_from_spec(specification)
specification.loader.exec_module(minimal)


@pytest.fixture
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Recorder(Weights):
    """The library's weights of one network, moved by plain gradient descent, with the gradients they were given."""

    def __init__(self, network):
        super().__init__(network, [], torch.float32, lambda p: torch.optim.SGD(p, lr=RATE))

    def step(self):
        self.seen = [p.grad.clone() for p in self.parameters]
        super().step()


def library_model():
    """A model with preset gray in float64, whose layers run as torch has them."""
    model = build_vae(small_run(), SHAPE).double().train()
    model.plain = True
    return model


def copied(model):
    """The example's model with the library's weights."""
    vae = minimal.VAE()
    vae.load_state_dict(model.state_dict())
    return vae


def both_step(model, encoder, decoder, vae, optimizers, source, seed=0):
    """The losses of the library's step and of the example's, on the same images, codes and noise."""
    randomness = torch.Generator().manual_seed(seed)
    x = blobs(BATCH, SHAPE, seed) / 255
    noise, codes = torch.randn(2, BATCH, model.latent_size, generator=randomness)
    given = torch.rand(x.shape, generator=randomness) if source == "auxiliary" else None
    made = [m.generate(codes) if source == "generated" else None for m in (model, vae)]
    negatives = None if source == "none" else NegativeBatch(given, made[0])
    theirs = train_step(model, encoder, decoder, x, x, negatives, noise)
    return theirs, minimal.train_step(vae, optimizers, x, noise, given, made[1])


def assert_equal(ours, theirs):
    """Tensor by tensor to 1e-10 of the largest entry."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype == torch.float64
        assert a.shape == b.shape
        assert b.abs().max() > 0
        assert (a - b).abs().max() <= 1e-10 * b.abs().max()


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("source", ["none", "auxiliary", "generated"])
def test_losses_and_gradients_equal_the_librarys(source):
    model = library_model()
    vae = copied(model)
    optimizers = [torch.optim.SGD(network.parameters(), lr=RATE) for network in (vae.encoder, vae.decoder)]
    encoder, decoder = Recorder(model.encoder), Recorder(model.decoder)
    parts, losses = both_step(model, encoder, decoder, vae, optimizers, source)
    assert_equal(
        losses, [parts.reconstruction + parts.kl + parts.negative_kl, parts.reconstruction + parts.generator_kl]
    )
    assert (parts.negative_kl > 0) == (source != "none")
    assert (parts.generator_kl > 0) == (source == "generated")
    assert_equal([p.grad for p in vae.encoder.parameters()], encoder.seen)
    assert_equal([p.grad for p in vae.decoder.parameters()], decoder.seen)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(("optimizer", "rate"), [("rmsprop", 1e-4), ("adam", 1e-3)])
@pytest.mark.parametrize("source", ["none", "auxiliary", "generated"])
def test_three_steps_move_the_weights_as_the_librarys_do(source, optimizer, rate, monkeypatch):
    monkeypatch.setattr("negvae.training.step.build_vae", lambda *arguments: build_vae(*arguments).double())
    learner = Learner(small_run(optimizer=optimizer, learning_rate=rate), blobs(BATCH, SHAPE), None)
    model = learner.model
    model.plain = True
    vae, before = copied(model), copied(model)
    optimizers = [minimal.OPTIMIZERS[optimizer](network.parameters()) for network in (vae.encoder, vae.decoder)]
    for seed in range(3):
        both_step(model, learner.encoder, learner.decoder, vae, optimizers, source, seed)
    assert all((a != b).any() for a, b in zip(vae.parameters(), before.parameters(), strict=True))
    assert_equal(vae.parameters(), model.parameters())


@pytest.mark.usefixtures("_float64")
def test_scores_equal_the_librarys():
    model = library_model().eval()
    images = blobs(BATCH, SHAPE)
    noise = torch.randn(BATCH, model.latent_size, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    randomness = torch.Generator().manual_seed(1)
    theirs = compute_scores(model, images, ["bpd", "kl"], generator=randomness, precision="float32")
    assert_equal(minimal.scores(copied(model), model.prepare(images), noise.double()), theirs.values())


def test_auroc_equals_the_librarys_with_ties_and_without():
    randomness = torch.Generator().manual_seed(0)
    inliers, outliers = (torch.randn(n, generator=randomness) for n in (50, 70))
    for low, high in ((inliers, outliers + 1), (inliers.round(), outliers.round()), (inliers, inliers + 9)):
        assert minimal.auroc(low, high) == pytest.approx(detection_metrics(low, high).auroc, abs=1e-12)


def test_both_start_from_the_same_weights():
    model = build_vae(small_run(seed=7), SHAPE)
    vae = minimal.VAE()
    vae.initialize(torch.Generator().manual_seed(7))
    ours, theirs = vae.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert model.latent_size == minimal.LATENT_SIZE
    assert model.negative_prior.shift == minimal.NEGATIVE_SHIFT


@pytest.mark.parametrize("negatives", ["none", "generated", "uniform-noise"])
def test_main_prints_a_column_of_the_tables(negatives, blob_files, capsys):
    paths = ["--inliers", str(blob_files["in"]), "--ood", str(blob_files["out"])]
    minimal.main([*paths, "--negatives", negatives, "--epochs", "1", "--limit", "20"])
    printed = capsys.readouterr().out
    assert re.search(COLUMN, printed)


@pytest.mark.parametrize("option", ["--inliers", "--ood", "--negatives"])
@pytest.mark.parametrize("line", [r"other.npy: .*\(1, 20, 20\).*\(1, 28, 28\)", "nowhere.npy: no such file"])
def test_main_refuses_in_one_line_what_it_cannot_take(option, line, blob_files, tmp_path, capsys):
    paths = ["--inliers", str(blob_files["in"]), "--ood", str(blob_files["out"])]
    with pytest.raises(SystemExit) as stop:
        minimal.main([*paths, option, str(tmp_path / line.split(":")[0])])
    assert stop.value.code == 2
    assert re.search(line, capsys.readouterr().err.splitlines()[-1])
