"""One walk over the table of scores: each against its definition in plain float64, in any company, in its direction."""

import copy
import dataclasses
import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import Independent, Normal, kl_divergence

from negvae.negatives import build_source
from negvae.scoring import SCORES, Scorer, calibrate, regret
from negvae.scoring.blocks import IMAGES
from negvae.scoring.dose import predictive_code
from negvae.scoring.metrics import auroc
from negvae.scoring.passes import shared_draws
from negvae.scoring.table import names_of, score_of
from negvae.training.loop import train
from tests.conftest import SHAPES, blobs, small_run

NOT_HERE = {"features", "transformations"}
NAMES = names_of(lambda score: NOT_HERE.isdisjoint(score.needs))
NAMES = tuple(name for name in NAMES if name != "defects")  # of heat maps, in test_heatmaps
OTHERS = 255 - blobs(23, SHAPES["gray"], 7)
BITS = 784 * math.log(2)


@pytest.fixture(scope="module")
def scorer():
    """Of a model that has learned a little, with a second one for its ensemble."""
    images = blobs(160, SHAPES["gray"], 3)
    models = []
    for seed in range(2):
        config = small_run("gray", initialization="he", epochs=5, batch_size=16, negatives="augmented", seed=seed)
        models.append(train(config, images[:120], build_source("augmented", None)).model.eval())
    names = [*names_of(lambda score: score.calibrated and NOT_HERE.isdisjoint(score.needs)), "latent_neighbors"]
    references = calibrate(Scorer(models[0]), images[:120], images[120:], names=names).reference
    return Scorer(models[0], references, (models[1],))


def plain(scorer, images):
    """Every score of every image as its paper has it: float64, torch's own layers, one image after the other."""
    found = {name: [] for name in NAMES}
    models = [copy.deepcopy(model).double() for model in (scorer.model, *scorer.ensemble)]
    for model in models:
        model.plain = True
    for image in images:
        for name, value in _plain(models, scorer.references, image).items():
            found[name].append(float(value))
    return {name: np.array(values) for name, values in found.items()}


def _radius(fitted, code):
    """Return the distance of a code to the fifth nearest of 120, which stand below the matrix that whitens."""
    return np.sort(np.linalg.norm(fitted[len(code[0]) :] - code @ fitted[: len(code[0])], axis=1))[4]


def _plain(models, references, image):
    model, x = models[0], image[None].double() / 255
    standard = Independent(Normal(torch.zeros(10).double(), 1.0), 1)

    def bound(model, q, samples):
        """E log p(x|z) - KL, over the draws that all images share."""
        logs = [-_cross_entropy(model.decode(q.base_dist.loc + q.base_dist.scale * noise), x)
                for noise in shared_draws(model, samples).noise.double()]  # fmt: skip
        return torch.stack(logs).mean() - kl_divergence(q, standard).squeeze()

    def posterior(model):
        mean, log_var = model.encoder(x).chunk(2, 1)
        return Independent(Normal(mean, (0.5 * log_var).exp()), 1)

    with torch.no_grad():
        q = posterior(model)
        kl, elbo = kl_divergence(q, standard).squeeze(), bound(model, q, 1)
        scores = {
            "kl": kl,
            "prior_ratio": kl
            - kl_divergence(q, Independent(Normal(torch.full((10,), 8.0).double(), 1.0), 1)).squeeze(),
            "latent_norm": q.base_dist.loc.square().sum(),
            "reconstruction": -(elbo + kl),
            "bpd": -elbo / BITS,
            "latent_neighbors": _radius(references.fitted["latent_neighbors"], q.base_dist.loc.numpy()),
        }
        weights = []
        for noise in shared_draws(model, 16).noise.double():
            z = q.base_dist.loc + q.base_dist.scale * noise
            weights.append(standard.log_prob(z) - q.log_prob(z) - _cross_entropy(model.decode(z), x))
        scores["iwae"] = -(torch.stack(weights).logsumexp(0).squeeze() - math.log(16)) / BITS
        scores["typicality"] = abs(scores["bpd"] - references.scales["bpd"][3])
        logits = model.decode(q.base_dist.loc + q.base_dist.scale * shared_draws(model).noise.double())
        entropy = -(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x)).sum()
        lost = _cross_entropy(logits, x) - entropy
        first = [(kl + 1e-3).log(), (lost + 1e-3).log(), scores["bpd"]]
        statistics = np.array([float(value) for value in [*first, *predictive_code(x)]])
        fitted = references.fitted["dose"]
        scores["dose"] = np.square((statistics - fitted[0]) @ fitted[1:]).sum()
        ratios = []
        for name in ("dose", "prior_ratio"):
            _, median, high, _ = references.scales[name]
            ratios.append((float(scores[name]) - median) / (high - median))
        scores["combined"] = max(ratios)
        buffer = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(buffer, "PNG", optimize=True)
        scores["input_complexity"] = scores["bpd"] - 8 * len(buffer.getvalue()) / 784
        nats = torch.stack([-bound(member, posterior(member), 1) for member in models])
        scores["waic"] = nats.mean() + (nats - nats.mean()).square().sum()  # n - 1 = 1
        before = best = bound(model, q, 4)
    mean, log_var = (part.clone().requires_grad_() for part in (q.base_dist.loc, 2 * q.base_dist.scale.log()))
    optimizer = torch.optim.Adam([mean, log_var], lr=0.05)
    for _ in range(regret.STEPS + 1):
        value = bound(model, Independent(Normal(mean, (0.5 * log_var).exp()), 1), 4)
        best = torch.maximum(best, value.detach())
        optimizer.zero_grad()
        (-value).backward()
        optimizer.step()
    scores["likelihood_regret"] = (best - before) / BITS
    return scores


def _cross_entropy(logits, x):
    return -(x * torch.nn.functional.logsigmoid(logits) + (1 - x) * torch.nn.functional.logsigmoid(-logits)).sum()


def test_every_score_is_what_its_definition_says(scorer, monkeypatch):
    monkeypatch.setattr(regret, "STEPS", 8)  # thirty take most of this file's time
    images = torch.cat([blobs(2, SHAPES["gray"]), OTHERS[:2]])
    wanted, found = plain(scorer, images), scorer(images, NAMES)
    assert list(found) == list(NAMES)
    for name in NAMES:
        # The networks differ in float32; dose and combined enlarge that, in units of the training images' spread.
        loose = 1e-2 if name in ("dose", "combined") else 1e-3
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(found[name], wanted[name], rtol=loose, atol=loose * scale, err_msg=name)
        assert found[name].dtype == np.float32


@pytest.mark.parametrize("name", NAMES)
def test_alone_as_in_any_batch_to_the_last_bit(scorer, name, monkeypatch):
    monkeypatch.setattr("negvae.scoring.regret.STEPS", 3)  # as good here as thirty
    few = name in ("likelihood_regret", "iwae")  # which take many passes
    images = torch.cat([blobs(2 if few else IMAGES, SHAPES["gray"]), OTHERS[:3]])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = scorer(images, [name])[name]
        torch.set_num_threads(2)
        np.testing.assert_array_equal(scorer(images.flip(0), [name])[name][::-1], together)
        for row in (0, len(images) - 1):
            assert scorer(images[row : row + 1], [name])[name][0] == together[row]
            assert scorer(images[row : row + 1], ["kl", name, "bpd"])[name][0] == together[row]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NAMES)
def test_larger_is_farther_out(scorer, name, monkeypatch):
    monkeypatch.setattr("negvae.scoring.regret.STEPS", 10)  # which show it as thirty do
    count = 8 if name == "likelihood_regret" else 20
    inliers, outliers = (scorer(images[:count], [name])[name] for images in (blobs(23, SHAPES["gray"], 9), OTHERS))
    assert auroc(inliers, outliers)[0] > 0.8


def test_what_is_calibrated_and_compared():
    assert set(names_of(lambda score: score.calibrated)) == {
        "combined", "neighbors", "dose", "bpd", "kl", "prior_ratio", "transformations_kl",
        "transformations_distance", "reconstruction", "latent_norm", "typicality",
    }  # fmt: skip
    assert names_of(lambda score: score.evaluated) == ("bpd", "kl", "prior_ratio")


def test_every_entry_says_what_it_is():
    for score in SCORES.entries():
        assert score.unit
        assert score.describe().startswith(score.meaning)
        assert callable(score.load())
        assert score_of(score.name) is score_of(score) is score


def test_the_table_in_the_docs_is_this_table():
    page = (Path(__file__).parents[2] / "docs" / "scores.md").read_text()
    for score in SCORES.entries():
        cells = (f"`{score.name}`", score.meaning, score.unit, score.citation)
        assert "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" in page.splitlines()


def test_names_and_help_import_no_torch():
    code = (
        "import sys, negvae, negvae.cli.common; from negvae.scoring import SCORES; negvae.register_score;"
        " assert 'kl' in SCORES; assert 'waic' in negvae.cli.common.score_help(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_entries_and_scorers_do_not_change(scorer):
    for fixed in (SCORES["kl"], scorer):
        with pytest.raises(dataclasses.FrozenInstanceError):
            fixed.unit = "bits"
