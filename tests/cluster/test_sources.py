"""What the command sends to the workers: the sets that sources of negatives draw on, by their names."""

import numpy as np
import pytest
import torch

import negvae
from negvae import parts
from negvae.config import preset
from negvae.negatives import Auxiliary, build_source
from negvae.runs.resolve import resolve
from tests.conftest import blobs

SHAPE = (1, 16, 16)


@pytest.mark.parametrize(
    "text", ["A", "zoomed:A", "auxiliary:A", "none", "0.2*A+0.3*zoomed:B+0.5*A", "zoomed:B+augmented+A", "mirrored:A"]
)
def test_workers_build_the_command_s_source_anew(text, tmp_path, monkeypatch):
    """Also one of one's own, which keeps its set changed or under another name."""
    monkeypatch.setattr(parts.SOURCES, "_entries", dict(parts.SOURCES._entries))

    @negvae.register_source("mirrored", argument="data set")
    class Mirrored:
        adversarial = False

        def __init__(self, images):
            self.images = images.flip(3)

        def sample(self, positives, model, generator, rows=slice(None)):
            return Auxiliary(self.images).sample(positives, model, generator, rows)

    for number, name in enumerate(("in", "A", "B")):
        np.save(tmp_path / f"{name}.npy", blobs(12, SHAPE, number).numpy())
    negatives = text.replace("A", str(tmp_path / "A.npy")).replace("B", str(tmp_path / "B.npy"))
    config = preset("gray", str(tmp_path / "in.npy"), network="pyramid", negatives=negatives, device="cpu")
    resolved = resolve(config)
    assert set(resolved.auxiliary) == {str(tmp_path / f"{name}.npy") for name in "AB" if name in text}
    again = build_source(negatives, resolved.auxiliary.__getitem__)
    if text == "none":
        assert resolved.source is again is None
        return
    model, draw = negvae.build_vae(config, SHAPE), torch.Generator()
    batches = [
        source.sample(torch.rand(8, *SHAPE), model, draw.manual_seed(1)).given for source in (resolved.source, again)
    ]
    if "augmented" not in text:  # which changes the positives, drawn anew above
        assert torch.equal(*batches)
