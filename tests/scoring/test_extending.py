"""The score of docs/extending.md, from fit over a saved folder to `negvae score` in another process and ONNX."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from negvae import NegVAEDetector, register_likelihood
from negvae.model import Gaussian
from negvae.parts import LIKELIHOODS
from negvae.runs.artifact import load_artifact
from negvae.scoring import SCORES, Scorer, compute_scores, register_score
from tests import processes
from tests.conftest import blobs

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
CODE = re.findall(r"^## A score$.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)[0]
NAMES = ("largest_code", "worst_pixel")
IMAGES = blobs(60, (1, 16, 16)).numpy()
SEEN = np.concatenate([blobs(8, (1, 16, 16), 5).numpy(), 255 - blobs(8, (1, 16, 16), 6).numpy()])


@pytest.fixture
def registered(monkeypatch):
    """The page's scores, registered for the length of a test."""
    monkeypatch.setattr(SCORES, "_entries", dict(SCORES._entries))
    names = {}
    exec(CODE, names)
    return names


@pytest.fixture
def package(tmp_path):
    """A folder with an installed package that registers the page's scores."""
    place = tmp_path / "site"
    (place / "mine-1.0.dist-info").mkdir(parents=True)
    (place / "mine.py").write_text(CODE)
    (place / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (place / "mine-1.0.dist-info" / "entry_points.txt").write_text("[negvae]\nmine = mine\n")
    return place


def test_the_page_is_short_and_its_score_goes_all_the_way(registered, package, tmp_path):
    assert len([line for line in CODE.splitlines() if line]) < 20
    detector = NegVAEDetector(decision_score=registered["worst_pixel"], epochs=2, target_fpr=0.2, device="cpu")
    detector.fit(IMAGES).save(tmp_path / "run")
    scores = detector.ood_score(SEEN)
    assert scores.shape == (16,)
    assert (scores > 0).all()
    assert (scores <= 1).all()
    assert "worst_pixel: The largest difference" in (tmp_path / "run" / "MODEL_CARD.md").read_text()

    np.save(tmp_path / "seen.npy", SEEN)
    done = processes.run(["score", tmp_path / "run", tmp_path / "seen.npy"], path=[package])
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    np.testing.assert_allclose([row["worst_pixel"] for row in rows], scores, rtol=1e-5)
    np.testing.assert_allclose([row["p_value"] for row in rows], detector.p_values(SEEN))
    again = NegVAEDetector.load(tmp_path / "run", device="cpu")
    assert again.decision_score == "worst_pixel"
    np.testing.assert_array_equal(again.ood_score(SEEN), scores)
    np.testing.assert_array_equal(again.ood_score(SEEN, registered["worst_pixel"]), scores)

    without = processes.run(["score", tmp_path / "run", tmp_path / "seen.npy"])
    assert without.returncode == 2
    assert without.stderr.count("\n") == 1
    assert "score 'worst_pixel', which is not registered here" in without.stderr


@pytest.mark.parametrize("name", NAMES)
def test_its_onnx_file_gives_the_same_values(registered, tmp_path, name):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from negvae.runs.export import export_onnx, relative_difference, run_onnx

    NegVAEDetector(decision_score=name, epochs=2, target_fpr=0.2, device="cpu").fit(IMAGES).save(tmp_path / "run")
    written = export_onnx(tmp_path / "run")
    assert written.encoder_only == (name == "largest_code")
    wanted = load_artifact(tmp_path / "run", "cpu").scorer()(torch.from_numpy(SEEN), [name])[name]
    assert relative_difference(run_onnx(written.path, SEEN)[0], wanted) < 1e-3


def test_a_registered_score_is_a_function_of_the_image_alone(registered):
    detector = NegVAEDetector(epochs=1, target_fpr=0.2, device="cpu").fit(IMAGES)
    scorer = Scorer(detector.model_)
    together = scorer(torch.from_numpy(SEEN), [registered["largest_code"], "worst_pixel"])
    assert list(together) == ["largest_code", "worst_pixel"]
    for name in NAMES:
        assert scorer(torch.from_numpy(SEEN[3:4]), [name])[name][0] == together[name][3]
    assert "largest_code" not in detector.calibration_.scores  # only what was asked for, and the library's own


def test_what_is_wrong_with_a_score_is_said(registered, monkeypatch):
    detector = NegVAEDetector(epochs=1, target_fpr=0.2, device="cpu").fit(IMAGES)
    with pytest.raises(ValueError, match="score 'kl' is registered already"):
        register_score("kl", unit="nats")(lambda x: x.kl)
    with pytest.raises(ValueError, match="unknown need of a score 'decode': did you mean decoder"):
        register_score("other", unit="nats", needs=["decode"])
    with pytest.raises(ValueError, match="is not registered: put @negvae"):
        detector.ood_score(IMAGES, lambda x: x.kl)
    register_score("per_pixel", unit="")(lambda x: x.images)
    with pytest.raises(ValueError, match=r"score per_pixel gave \(32, 1, 16, 16\) for 32 inputs"):
        detector.ood_score(IMAGES, "per_pixel")
    register_score("pickled", unit="", needs=())(lambda x: x.log_likelihood)
    with pytest.raises(ValueError, match="of the encoder alone"):
        compute_scores(detector.model_, torch.from_numpy(IMAGES), ["pickled"])


def test_a_score_that_torch_cannot_trace_is_refused_and_nothing_is_written(registered, tmp_path):
    pytest.importorskip("onnx")
    from negvae.runs.export import export_onnx

    register_score("by_numpy", unit="nats", needs=())(lambda x: torch.from_numpy(np.sort(x.kl.numpy())))
    NegVAEDetector(decision_score="by_numpy", epochs=1, target_fpr=0.2, device="cpu").fit(IMAGES).save(tmp_path / "run")
    with pytest.raises(ValueError, match="score by_numpy cannot be exported") as refused:
        export_onnx(tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run" / "model.onnx").exists()


def test_a_likelihood_that_torch_cannot_trace_is_refused_in_one_line(registered, tmp_path, capfd, monkeypatch):
    pytest.importorskip("onnx")
    from negvae.runs.export import export_onnx

    class Checking(Gaussian):
        def log_prob(self, output, target):
            return torch.distributions.Normal(self.mean(output), self.sigma).log_prob(target).flatten(1).sum(1)

    monkeypatch.setattr(LIKELIHOODS, "_entries", dict(LIKELIHOODS._entries))
    register_likelihood("checking")(Checking)
    options = dict(network="pyramid", decision_score="bpd", epochs=1, target_fpr=0.2, device="cpu")
    NegVAEDetector(likelihood="checking", **options).fit(IMAGES).save(tmp_path / "run")
    capfd.readouterr()
    with pytest.raises(ValueError, match="score bpd cannot be exported: it, or a part of the model, is not made"):
        export_onnx(tmp_path / "run")
    assert capfd.readouterr().err == ""
