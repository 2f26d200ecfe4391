import pytest
import torch

from negvae.config import PRESETS
from negvae.paper.proxies import PROXIES
from negvae.parts import TRANSFORMATIONS
from tests.conftest import blobs


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 19, 26)])
@pytest.mark.parametrize("name", PROXIES)
def test_proxies_are_other_images_of_the_same_kind(name, shape):
    images = blobs(6, shape).float() / 255
    strange = PROXIES[name](images, torch.Generator().manual_seed(0))
    assert strange.shape == images.shape
    assert strange.dtype == images.dtype
    assert strange.min() >= 0
    assert strange.max() <= 1
    assert ((strange - images).abs().amax((1, 2, 3)) > 0.02).all()
    assert torch.equal(strange, PROXIES[name](images, torch.Generator().manual_seed(0)))


def test_no_model_is_trained_against_a_proxy():
    assert not PROXIES.keys() & set(TRANSFORMATIONS)
    names = str(PRESETS["unsupervised"]["negatives"]).partition(":")[2].split(",")
    assert set(names) <= set(TRANSFORMATIONS)
