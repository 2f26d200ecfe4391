"""Mutants that once passed the tests: each is put into a copy of the package, and a test must fail.

A mutant is a change of a file, as text; the tests named with it are run against the copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.torture.count import Count

ROOT = Path(__file__).parents[2]


class Mutant(NamedTuple):
    """A change, and the tests that must notice it."""

    name: str
    file: str
    old: str
    new: str
    tests: str = "tests/model/test_paper.py"


OBJECTIVES, NETWORKS, CONFIG = "training/objectives.py", "model/networks.py", "config.py"
MUTANTS = [
    Mutant("the weight of negatives is on the positive KL", OBJECTIVES,
           "losses.kl + negative_weight * losses.negative_kl", "negative_weight * losses.kl + losses.negative_kl"),
    Mutant("RMSProp with decay 0.99", "training/optimizers.py", "alpha=0.9", "alpha=0.99"),
    Mutant("RMSProp with epsilon 1e-6", "training/optimizers.py", "eps=1e-10", "eps=1e-6"),
    Mutant("color with 64 latent dimensions", CONFIG, "latent_size=100", "latent_size=64"),
    Mutant("color with a shift of 9", CONFIG, "negative_shift=25.0", "negative_shift=9.0"),
    Mutant("gray with a shift of 9", CONFIG,
           "latent_size=10, negative_shift=8.0", "latent_size=10, negative_shift=9.0"),
    Mutant("color's first layer has 16 filters", NETWORKS,
           "*down(3, 32), *down(32, 64)", "*down(3, 16), *down(16, 64)"),
    Mutant("gray-paper's decoder has 64 filters", NETWORKS,
           "nn.Conv2d(32, 256, 5, padding=2), nn.ReLU(),\n        nn.Conv2d(256, 1",
           "nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(),\n        nn.Conv2d(64, 1"),
    Mutant("positives and negatives in separate passes", OBJECTIVES,
           "posterior = model.encode(images if negatives is None else torch.cat([images, negatives]))",
           "apart = [model.encode(x) for x in (images, negatives) if x is not None]\n"
           "    posterior = Posterior(*(torch.cat(parts) for parts in zip(*apart, strict=True)))"),
    Mutant("dequantization by 1/300", "model/likelihoods.py", "noise / 255", "noise / 300"),
    Mutant("added noise is not clipped", "negatives/sources.py", "else noisy.clamp_(0, 1)", "else noisy"),
    Mutant("He's head is not scaled", "model/initialization.py", "layer.weight.mul_(0.1)", "layer.weight.mul_(1.0)"),
    Mutant("the negative KL is halved in the gradient", OBJECTIVES,
           "negative_kl = model.negative_prior.kl(*negative).mean()",
           "negative_kl = model.negative_prior.kl(*negative).mean() * 0.7", "tests/training/test_objectives.py"),
    Mutant("the pull is summed over all negatives twice", OBJECTIVES,
           "model.prior.kl(*model.encode(generated)).sum() / negatives",
           "model.prior.kl(*model.encode(generated)).sum() / (2 * negatives)", "tests/training/test_objectives.py"),
    Mutant("batch norm in the pull uses the batch", OBJECTIVES,
           "network.eval().requires_grad_(False)", "network.requires_grad_(False)",
           "tests/training/test_objectives.py"),
    Mutant("p-values leave out the new image", "scoring/calibration.py",
           "return (1 + at_least) / (len(held_out) + 1)", "return at_least / len(held_out)",
           "tests/scoring/test_calibration.py"),
    Mutant("ties do not count in p-values", "scoring/calibration.py", 'side="left"', 'side="right"',
           "tests/scoring/test_calibration.py"),
    Mutant("the threshold is one rank too low", "scoring/calibration.py", "held_out[-rank]", "held_out[-rank - 1]",
           "tests/scoring/test_calibration.py"),
]  # fmt: skip


def outcome(mutant: Mutant) -> str:
    """Run the tests against a mutant: "killed", "survived", or what else became of it."""
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "negvae"
        shutil.copytree(ROOT / "src" / "negvae", source, ignore=shutil.ignore_patterns("__pycache__"))
        file = source / mutant.file
        text = file.read_text()
        if mutant.old not in text:
            return "not applicable: the source has changed"
        file.write_text(text.replace(mutant.old, mutant.new, 1))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", mutant.tests]
        environment = {**os.environ, "PYTHONPATH": place, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    return {0: "survived", 1: "killed"}.get(done.returncode, "broken")


def torture(count: Count) -> None:
    """Count what becomes of every mutant."""
    for mutant in MUTANTS:

        def faults(mutant: Mutant = mutant) -> list[str]:
            found = outcome(mutant)
            return [] if found == "killed" else [f"{mutant.name}: {found}"]

        count.trial("named mutants", mutant.name, faults)
