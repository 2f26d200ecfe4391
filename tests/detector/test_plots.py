"""Plots show what the detector computes: the same scores, the threshold, and codes between the priors."""

import matplotlib as mpl
import numpy as np
import pytest

from tests.conftest import blobs

mpl.use("Agg")


@pytest.fixture(scope="module")
def detector():
    from negvae import NegVAEDetector

    rows = np.random.default_rng(0).normal(size=(200, 3))
    return NegVAEDetector(epochs=2, random_state=0, device="cpu").fit(rows)


def test_scores_stand_beside_the_held_out_inliers_and_the_threshold(detector):
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    far = np.full((7, 3), 9.0)
    display = detector.plot_scores({"far": far}, ax=ax)
    assert display.ax_ is ax
    assert display.scores["far"].tolist() == detector.ood_score(far).tolist()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["held-out inliers", "far", "threshold"]
    assert ax.lines[0].get_xdata()[0] == detector.calibration_.threshold == display.threshold
    heights = [sum(patch.get_xy()[:, 1].max() for patch in group) for group in (ax.patches[1:],)]
    assert heights[0] == pytest.approx(1)  # all seven lie in the outermost bin
    assert list(detector.plot_scores().scores) == ["held-out inliers"]
    plt.close("all")


def test_codes_lie_between_the_priors(detector):
    import matplotlib.pyplot as plt

    rows = np.random.default_rng(1).normal(size=(20, 3))
    display = detector.plot_latent({"rows": rows})
    codes, shift = detector.transform(rows), detector.model_.negative_prior.shift
    assert display.codes["rows"][:, 0] == pytest.approx(codes.mean(1) / shift)
    assert display.figure_ is display.ax_.figure
    with pytest.raises(ValueError, match="nothing to plot"):
        detector.plot_latent({})
    plt.close("all")


def test_roc_is_that_of_the_decision_score(detector):
    import matplotlib.pyplot as plt

    rows = np.random.default_rng(2).normal(size=(50, 3))
    display = detector.plot_roc(rows, np.full((5, 3), 9.0))
    assert display.roc_auc == 1.0
    plt.close("all")


@pytest.fixture
def few_steps(monkeypatch):
    from negvae.training import patches

    monkeypatch.setattr(patches, "STEPS", 20)


def test_heat_maps_stand_below_the_images_with_the_largest_scores(detector, few_steps):
    import matplotlib.pyplot as plt

    from negvae import NegVAEDetector

    images = blobs(90, (1, 16, 16), 0).numpy()
    looking = NegVAEDetector(epochs=1, target_fpr=0.1, random_state=0, device="cpu").fit(images[:60])
    new = images[60:].copy()
    new[3, :, 4:9, 4:9] = 255
    display = looking.plot_heatmaps(new, count=3)
    chosen = np.argsort(-looking.ood_score(new))[:3]
    assert chosen[0] == 3
    assert display.axes_.shape == (2, 3)
    assert all((shown == new[row][0]).all() for shown, row in zip(display.images, chosen, strict=True))
    drawn = display.axes_[1, 0].images[0]
    assert (drawn.get_array() == looking.heatmap(new)[3]).all()
    assert drawn.get_clim() == display.axes_[1, 2].images[0].get_clim()  # one scale for all
    title = display.axes_[0, 0].get_title()
    assert title == f"outlier, p = {looking.p_values(new)[3]:.2g}"
    _, axes = plt.subplots(2, 3)
    assert display.plot(axes).axes_[0, 0] is axes[0, 0]
    with pytest.raises(ValueError, match="must be 2 x 3"):
        display.plot(axes[0])
    with pytest.raises(ValueError, match="count is 0"):
        looking.plot_heatmaps(new, count=0)
    with pytest.raises(ValueError, match="takes rows of features"):
        detector.plot_heatmaps(new)
    plt.close("all")


def test_heat_maps_of_photos_have_the_sizes_of_the_photos(few_steps, monkeypatch):
    import matplotlib.pyplot as plt
    from PIL import Image

    from negvae import NegVAEDetector
    from negvae.decoding import Decoding

    tiles = Decoding(fit="tile", height=32, width=32, channels=3)
    monkeypatch.setattr("negvae.detector.photos.choose_decoding", lambda *arguments: tiles)
    colors = np.random.default_rng(0).integers(0, 255, (24, 3))
    photos = [Image.new("RGB", (40 + place % 3, 44), tuple(map(int, color))) for place, color in enumerate(colors)]
    looking = NegVAEDetector(epochs=1, target_fpr=0.2, random_state=0, device="cpu").fit(photos)
    display = looking.plot_heatmaps(photos[:4])
    order = np.argsort(-looking.ood_score(photos[:4]), kind="stable")
    for place, row in enumerate(order):
        size = photos[row].size[::-1]
        assert display.maps[place].shape == size
        assert display.images[place].shape == (*size, 3)
        assert np.abs(display.images[place].astype(int) - colors[row]).max() <= 1
    plt.close("all")
