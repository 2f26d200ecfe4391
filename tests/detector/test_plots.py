"""Plots show what the detector computes: the same scores, the threshold, and codes between the priors."""

import matplotlib as mpl
import numpy as np
import pytest

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
