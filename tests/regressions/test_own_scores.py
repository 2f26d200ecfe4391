"""Scores of any model: the data frames that they take, and what a function may return."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from negvae import ScoreDetector


def rows(count, seed=0, columns=3):
    return np.random.default_rng(seed).normal(size=(count, columns))


def far(batch):
    return abs(batch).sum(1)


def test_options_of_own_scores_are_refused_in_one_line():
    for size in (1.5, None, "x", True, 0):
        with pytest.raises(ValueError, match=f"batch_size is {size!r}: it must be a whole number of at least 1"):
            ScoreDetector(far, batch_size=size).fit(rows(60))
    with pytest.raises(TypeError, match="score is 3: it must be a function of a batch of inputs"):
        ScoreDetector(3).fit(rows(60))
    two = ScoreDetector(lambda batch: abs(batch)[:, :2], random_state=np.random.RandomState(0)).fit(rows(60))
    assert two.calibration_.size == 48


def test_own_scores_take_data_frames_of_several_types():
    plain = rows(60)
    plain[:, 2] = plain[:, 2] > 0
    frames = {
        "object": pd.DataFrame(plain).astype(object),
        "nullable": pd.DataFrame(plain).astype("Float64"),
        "mixed": pd.DataFrame(plain).astype({2: bool}),
    }
    wanted = ScoreDetector(far).fit(plain).ood_score(plain)
    for kind, frame in frames.items():
        assert np.array_equal(ScoreDetector(far).fit(frame).ood_score(frame), wanted), kind
    single = pd.DataFrame(plain).astype(np.float32)
    ScoreDetector(lambda batch: far(batch) if batch.dtype == torch.float32 else None).fit(single)


def test_what_own_scores_cannot_take_is_named():
    for values, kind in ((["a"] * 60, "str"), (pd.date_range("2026", periods=60), "datetime64"),
                         (pd.Categorical(["a"] * 60), "category")):  # fmt: skip
        frame = pd.DataFrame({"width": rows(60)[:, 0], "kind": values})
        with pytest.raises(ValueError, match=f"X: column 'kind' holds {kind}.*, and features are numbers"):
            ScoreDetector(far).fit(frame)
    with pytest.raises(TypeError, match="X is csr_matrix: it must be an array, a table, a list or a path"):
        ScoreDetector(far).fit(csr_matrix(rows(60)))


def test_what_an_own_score_returns_is_refused_if_it_is_no_number_for_each_input():
    refused = {
        "the function returned numbers of shape (60, 0) for 60 inputs": lambda batch: np.zeros((len(batch), 0)),
        "the function returned <U1: it must return real numbers": lambda batch: ["a"] * len(batch),
        "the function returned complex128: it must return real numbers": lambda batch: far(batch) * 1j,
        "the function returned object: it must return real numbers": lambda batch: [None] * len(batch),
    }
    for message, score in refused.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            ScoreDetector(score).fit(rows(60))
    with pytest.raises(ValueError, match="returned 2 scores for the first batch and 1 for another"):
        ScoreDetector(lambda batch: batch[:, : 2 if len(batch) == 50 else 1], batch_size=50).fit(rows(60))


def test_columns_in_another_order_are_refused(tmp_path):
    frame = pd.DataFrame(rows(60), columns=["width", "height", "depth"])
    fitted = ScoreDetector(far).fit(frame)
    fitted.save(tmp_path / "saved")
    for detector in (fitted, ScoreDetector.load(tmp_path / "saved", far)):
        assert list(detector.feature_names_in_) == ["width", "height", "depth"]
        assert len(detector.predict(frame)) == len(detector.predict(frame.to_numpy())) == 60
        with pytest.raises(ValueError, match="column 0 of X is 'height', of the inliers 'width': give the same"):
            detector.predict(frame[["height", "width", "depth"]])
    assert not hasattr(fitted.fit(frame.to_numpy()), "feature_names_in_")


def test_masked_entries_are_refused():
    """Their values would be scored as if they were known."""
    plain = rows(60)
    detector = ScoreDetector(far).fit(plain)
    with pytest.raises(ValueError, match="the data has masked entries: fill them in"):
        detector.ood_score(np.ma.masked_less(plain, 0))
    assert np.array_equal(detector.ood_score(np.ma.array(plain)), detector.ood_score(plain))
