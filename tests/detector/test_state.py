"""The state of the host's program, such as torch's default type, changes no result and stops no fit."""

import contextlib

import numpy as np
import pytest
import torch

from negvae import NegVAEDetector
from negvae.negatives import build_source
from tests.conftest import blobs

IMAGES = blobs(40, (1, 16, 16)).numpy()
ROWS = np.random.default_rng(0).normal(size=(60, 5))
OPTIONS = {"epochs": 1, "batch_size": 16, "precision": "float32", "device": "cpu", "target_fpr": 0.4}
SCORES = ["combined", "dose", "bpd", "kl", "iwae", "typicality"]
KINDS = {
    "unsupervised": (IMAGES, {}),
    "generated": (IMAGES, {"preset": "general", "negatives": "0.5*generated+0.2*added-noise+0.3*uniform-noise"}),
    "quantized": (
        IMAGES,
        {"preset": "general", "negatives": "none", "likelihood": "quantized-gaussian", "learn_sigma": True},
    ),
    "rows": (ROWS, {}),
}  # fmt: skip


@contextlib.contextmanager
def default_type(kind):
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device():
    """ "meta" stands for a GPU that the host prefers: what is made there by accident has no numbers."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


STATES = {
    "float64": lambda: default_type(torch.float64),
    "bfloat16": lambda: default_type(torch.bfloat16),
    "device": default_device,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "numpy": lambda: np.errstate(all="raise"),
}


def outcome(kind, place):
    """Weights, threshold and scores of a detector that is fitted, saved and loaded again."""
    data, options = KINDS[kind]
    NegVAEDetector(**OPTIONS, **options).fit(data).save(place)
    detector = NegVAEDetector.load(place, device="cpu")
    weights = [value.double().numpy() for value in detector.model_.state_dict().values()]
    scores = [detector.ood_score(data[:8], name) for name in SCORES]
    regret = detector.ood_score(data[:2], "likelihood_regret") if kind == "generated" else np.zeros(1)
    return [*weights, *scores, regret, detector.reconstruct(data[:3]), detector.sample(2), detector.transform(data[:3])]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return {kind: outcome(kind, tmp_path_factory.mktemp("plain") / "run") for kind in KINDS}


@pytest.mark.parametrize(
    ("state", "kind"),
    [(state, kind) for state in STATES for kind in KINDS if state in ("float64", "device") or kind == "generated"],
)
def test_fit_and_scores_do_not_depend_on_the_state_of_the_program(plain, tmp_path, state, kind):
    with STATES[state]():
        found = outcome(kind, tmp_path / "run")
    for ours, expected in zip(found, plain[kind], strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("state", ["float64", "device"])
@pytest.mark.parametrize("text", ["augmented:jigsaw,cutmix,mixup,rotation,sketch,strokes,zoom", "uniform-noise"])
def test_negatives_are_drawn_alike(state, text):
    positives = blobs(16, (1, 16, 16)) / 255
    expected = build_source(text, None).sample(positives, None, torch.Generator().manual_seed(0)).images
    with STATES[state]():
        found = build_source(text, None).sample(positives, None, torch.Generator().manual_seed(0)).images
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
