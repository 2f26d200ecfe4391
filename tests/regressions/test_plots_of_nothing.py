"""Plots of a detector that is not fitted, and of data without names."""

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from negvae import NegVAEDetector, ScoreDetector
from negvae.detector.plots import LatentDisplay


def rows(count, seed=0, columns=3):
    return np.random.default_rng(seed).normal(size=(count, columns))


def far(batch):
    return abs(batch).sum(1)


def test_plots_of_what_cannot_be_plotted_say_so():
    for plot in (NegVAEDetector().plot_scores, lambda: NegVAEDetector().plot_heatmaps(rows(3))):
        with pytest.raises(NotFittedError):
            plot()
    with pytest.raises(TypeError, match="the data is a ndarray: give it by the name in the legend"):
        ScoreDetector(far).fit(rows(60)).plot_scores(rows(3))
    with pytest.raises(TypeError, match="the data is a list: give it by the name in the legend"):
        LatentDisplay.from_estimator(NegVAEDetector(), [1])
