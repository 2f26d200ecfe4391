"""Rates and options that are no numbers are refused in one line, and what has moved has one order."""

import re

import numpy as np
import pytest

from negvae import CrossConformalDetector, NegVAEDetector, ScoreDetector
from negvae.scoring.drift import movements
from negvae.scoring.monitor import Monitor


def rows(count, seed=0, columns=3):
    return np.random.default_rng(seed).normal(size=(count, columns))


def far(batch):
    return abs(batch).sum(1)


def test_a_rate_that_is_no_number_is_refused_in_one_line():
    detector = ScoreDetector(far).fit(rows(60))
    for value, shown in (("high", "'high'"), (None, "None"), (2, "2")):
        with pytest.raises(ValueError, match=f"fdr is {shown}: it must lie between 0 and 1"):
            detector.predict_fdr(rows(5), value)
        with pytest.raises(ValueError, match=f"the rate of false alarms is {shown}: it must lie between 0 and 1"):
            detector.drift(rows(5), value)
        with pytest.raises(ValueError, match=f"confidence is {shown}: it must lie between 0 and 1"):
            detector.fpr_bounds(value)
        with pytest.raises(ValueError, match=f"target_fpr is {shown}: it must lie between 0 and 1"):
            CrossConformalDetector(target_fpr=value).fit(rows(60))
    with pytest.raises(ValueError, match="fdr is 'high': it must lie between 0 and 1"):
        Monitor.start(detector.calibration_, fdr="high")
    for name in ("target_fpr", "confidence"):
        with pytest.raises(ValueError, match=f"{name} is 'high': it must be a number"):
            ScoreDetector(far, **{name: "high"}).fit(rows(60))


def test_options_of_the_wrong_type_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"unknown preset 3\. Known: "):
        NegVAEDetector(preset=3).fit(rows(60))
    for folds in (2.5, "five"):
        with pytest.raises(ValueError, match=re.escape(f"folds is {folds!r}: it must be a whole number from 2 to")):
            CrossConformalDetector(folds=folds).fit(rows(60))


def test_folds_are_loaded_with_a_rate_that_can_be_one(tmp_path):
    with pytest.raises(ValueError, match="target_fpr is 7: it must lie between 0 and 1"):
        CrossConformalDetector.load(tmp_path, target_fpr=7)


def test_movements_have_one_order_whatever_that_of_the_scores():
    held_out = {name: rows(40, columns=1)[:, 0] for name in ("kl", "bpd")}
    batch = {name: rows(40, 1, columns=1)[:, 0] for name in held_out}
    reversed_ = dict(reversed(held_out.items()))
    assert movements(held_out, batch, 0.1) == movements(reversed_, batch, 0.1)
    assert [each.name for each in movements(held_out, batch, 0.1)] == ["bpd", "kl"]
