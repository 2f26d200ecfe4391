"""Regressions: data that callers have in memory, and the state of their own program."""

import numpy as np
import pytest
import torch
from PIL import Image

from negvae import NegVAEDetector
from negvae.detector.inputs import as_array
from tests.conftest import blobs

SHAPE = (3, 18, 18)
OPTIONS = {"epochs": 1, "batch_size": 16, "precision": "float32", "device": "cpu", "random_state": 3}


def pictures(count=4, seed=0):
    return [Image.fromarray(image.transpose(1, 2, 0)) for image in blobs(count, SHAPE, seed).numpy()]


def reversed_palette(image):
    """The same picture as palette indices whose entries stand in reverse order."""
    indexed = image.quantize(64)
    indices, palette = np.asarray(indexed), np.array(indexed.getpalette("RGB"), np.uint8).reshape(-1, 3)
    last = len(palette) - 1
    turned = Image.fromarray((last - indices).astype(np.uint8))
    turned.putpalette(palette[::-1].tobytes())
    return indexed.convert("RGB"), turned


@pytest.fixture(scope="module")
def fitted():
    with pytest.warns(UserWarning, match="target_fpr"):
        return NegVAEDetector(**OPTIONS, target_fpr=0.01).fit(blobs(60, SHAPE))


def scores(detector, data):
    return detector.ood_score(data, "kl").tolist()


def test_images_in_memory_are_converted_as_those_of_files(fitted, tmp_path):
    images = pictures()
    plain, turned = reversed_palette(images[0])
    assert scores(fitted, [turned]) == scores(fitted, [plain])
    kinds = [turned, images[1].convert("L"), images[2].convert("RGBA"), images[3].convert("1"), images[0]]
    paths = []
    for number, image in enumerate(kinds):
        paths.append(tmp_path / f"{number}.png")
        image.save(paths[-1])
    from_folder = scores(fitted, str(tmp_path))
    assert scores(fitted, kinds) == from_folder
    assert scores(fitted, paths) == from_folder
    assert scores(fitted, [str(path) for path in paths]) == from_folder
    assert scores(fitted, np.array([str(path) for path in paths])) == from_folder
    assert scores(fitted, [kinds[0], paths[1], str(paths[2]), kinds[3], np.asarray(kinds[4])]) == from_folder
    assert scores(fitted, tuple(kinds)) == from_folder
    for image, path, expected in zip(kinds, paths, from_folder, strict=True):
        assert scores(fitted, image) == scores(fitted, path) == [expected]


def test_a_dataset_of_pillow_images_is_converted_too(fitted):
    class Pictures(torch.utils.data.Dataset):
        images = (*pictures(2), pictures(1)[0].convert("L"))

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return self.images[index], 0

    assert scores(fitted, Pictures()) == scores(fitted, list(Pictures.images))


def test_gray_images_are_served_to_a_color_model_as_negvae_score_does(fitted):
    gray = np.stack([np.asarray(image.convert("L")) for image in pictures()])
    assert scores(fitted, gray) == scores(fitted, np.repeat(gray[:, None], 3, 1))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda images: [*images, None], "item 4 of the list is None"),
        (lambda images: [*images, images[0].resize((9, 9))], "item 4 is 9 x 9"),
        (lambda images: [*images, np.zeros((9, 9), np.uint8)], "item 4 is 9 x 9"),
        (lambda images: [*images, "no-such.png"], "no-such.png"),
        (lambda images: [*images, 7], "item 4 of the list is no image"),
        (lambda images: [*images, np.zeros(5)], "item 4 of the list is no image"),
        (lambda images: [*images, Image.fromarray(np.zeros((18, 18), np.int32))], "item 4: has I pixels"),
        (lambda images: [[1.0, 2.0], [1.0]], "item 1 of the list has shape"),
        (lambda images: [[1.0, 2.0], None], "item 1 of the list is None"),
        (lambda images: [[1.0, 2.0], [[1.0], 2.0]], "item 1 of the list holds lists"),
    ],
)
def test_the_item_that_does_not_fit_is_named(fitted, spoil, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says) as caught:
        fitted.predict(spoil(pictures()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_tensors_of_every_float_type_are_taken(fitted, kind):
    images = blobs(4, SHAPE, 5)
    tensor = (images.double() / 255).to(kind)
    array, _ = as_array(tensor, "test")
    assert array.shape == images.shape
    found = fitted.ood_score(tensor, "kl")
    np.testing.assert_allclose(found, fitted.ood_score(images, "kl"), rtol=0.2 if kind == torch.bfloat16 else 1e-5)


def test_a_list_of_rows_is_rows(fitted):
    assert as_array([[1.0, 2.0], [3.0, 4.0]], "test")[0] == [[1.0, 2.0], [3.0, 4.0]]
    assert as_array([torch.ones(2), torch.ones(2)], "test")[0].shape == (2, 2)


def test_a_row_that_drowns_the_others_is_warned_of():
    rows = np.random.default_rng(0).standard_normal((200, 3))
    rows[7] = 1e9
    options = {"epochs": 1, "latent_size": 2, "negatives": "none", "device": "cpu"}
    with pytest.warns(UserWarning, match=r"^column 0 holds 1e\+09, and 90% of its values lie from -1"):
        NegVAEDetector(**options, calibration_fraction=0.1).fit(rows)


def test_a_shuffled_loader_is_warned_of_where_its_order_counts():
    images = blobs(40, (1, 28, 28))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), 8, shuffle=True)
    detector = NegVAEDetector(preset="gray", epochs=1, device="cpu", target_fpr=0.2).fit(loader)
    with pytest.warns(UserWarning, match="the DataLoader shuffles"):
        detector.predict(loader)
