"""What the command sends to the workers: the images of every source that draws on a data set, in their order."""

import pytest
import torch

from negvae.cluster.train import _auxiliary
from negvae.negatives import build_source, parse
from tests.conftest import blobs


@pytest.mark.parametrize(
    "text",
    ["a", "zoomed:a", "auxiliary:a", "generated", "none", "0.2*a+0.3*zoomed:b+0.5*generated", "zoomed:b+augmented+a"],
)
def test_workers_build_the_command_s_source_anew(text):
    sets = {"a": blobs(3, (1, 16, 16), 1), "b": blobs(3, (1, 16, 16), 2)}
    asked = []

    def load(name):
        asked.append(name)
        return sets[name]

    sent = _auxiliary(build_source(text, load))
    assert len(sent) == len(asked) == sum(spec.kind in ("auxiliary", "zoomed") for spec in parse(text))
    assert all(torch.equal(images, sets[name]) for images, name in zip(sent, asked, strict=True))
    others = iter(sent)
    build_source(text, lambda name: next(others))
    assert next(others, None) is None
