"""What a run writes about where it comes from."""

import subprocess
from pathlib import Path

import pytest

import negvae
from negvae.config import preset
from negvae.runs.provenance import provenance
from negvae.version import source_commit

ROOT = Path(negvae.__file__).resolve().parents[2]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_the_commit_is_that_of_the_checkout():
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert source_commit().split(" ")[0] == head.strip()


def test_facts_are_there():
    facts = provenance(preset("gray", "mnist", seed=3))
    assert {"negvae", "commit", "written", "python", "torch", "device", "threads", "precision"} < facts.keys()
    assert facts["seed"] == 3
