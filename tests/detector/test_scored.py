"""Scores of somebody's own model: the guarantees, the page, the ONNX file and the saved folder."""

import numpy as np
import pandas as pd
import pytest
import torch

from negvae import NegVAEDetector, ScoreDetector
from negvae.runs.export import run_onnx


def distance(batch):
    return (batch**2).sum(1)


def two(batch):
    return torch.stack([batch.abs().amax(1), -batch.mean(1)], 1)


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3000, 4, generator=generator)


@pytest.mark.parametrize("score", [distance, two])
def test_fresh_inliers_alarm_at_the_rate_and_outliers_are_found(rows, score):
    detector = ScoreDetector(score, target_fpr=0.05).fit(rows[:1500])
    assert 0.03 < (detector.predict(rows[1500:]) < 0).mean() < 0.07
    assert (detector.predict(rows[:50] + 6) < 0).mean() > 0.9
    assert (detector.decision_function(rows[1500:]) < 0).tolist() == (detector.predict(rows[1500:]) < 0).tolist()
    assert [each.moved for each in detector.drift(rows[1500:])] == [False] * len(detector.calibration_.scores)
    assert detector.drift(rows[:200] + 1)[0].moved
    bounds = detector.fpr_bounds()
    assert bounds.low < 0.05 < bounds.high
    assert (detector.predict_fdr(torch.cat([rows[1500:1600], rows[:50] + 8]), 0.2)[100:] < 0).mean() > 0.8
    assert len(detector.false_discovery_bounds(rows[:40])) == 40


@pytest.mark.parametrize("layer", [torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(4)])
def test_a_network_in_training_mode_is_refused_if_its_scores_depend_on_it(rows, layer):
    network = torch.nn.Sequential(layer.train(), torch.nn.Linear(4, 1))
    with pytest.raises(ValueError, match=f"score has {type(layer).__name__} in training mode: call its eval"):
        ScoreDetector(network).fit(rows[:100])
    fitted = ScoreDetector(network.eval()).fit(rows[:100])
    with pytest.raises(ValueError, match="training mode"):
        ScoreDetector(network.train()).fit(rows[:100])
    with pytest.raises(ValueError, match="training mode"):
        fitted.predict(rows[:10])
    plain = torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.LayerNorm(1))
    assert len(ScoreDetector(plain).fit(rows[:100]).predict(rows[:10])) == 10


@pytest.mark.parametrize("detector", [NegVAEDetector(random_state=-1), ScoreDetector(two, random_state=-1)])
def test_a_negative_seed_is_named(rows, detector):
    with pytest.raises(ValueError, match=r"^random_state is -1: it must be a whole number of at least 0$"):
        detector.fit(rows[:100])


def test_a_confidence_without_a_rate_is_refused(rows):
    with pytest.raises(ValueError, match="confidence is that of target_fpr: give a target_fpr with it"):
        ScoreDetector(distance, target_fpr=None, confidence=0.95).fit(rows[:100])
    assert (ScoreDetector(distance, target_fpr=None).fit(rows[:100]).predict(rows[:100]) > 0).all()


def test_groups_get_thresholds_of_their_own(rows):
    scaled = torch.cat([rows[:1000], 3 * rows[1000:2000]])
    groups = ["small"] * 1000 + ["large"] * 1000
    detector = ScoreDetector(distance).fit(scaled, groups=groups)
    assert detector.calibration_.thresholds["large"] > 4 * detector.calibration_.thresholds["small"]
    assert (detector.predict(3 * rows[2000:2050], ["small"] * 50) < 0).mean() > 0.5


@pytest.mark.parametrize("score", [distance, two])
def test_folder_graph_and_page_give_the_same_answers(rows, tmp_path, score):
    detector = ScoreDetector(score, confidence=0.9, target_fpr=0.1).fit(rows[:400], groups=["a", "b"] * 200)
    detector.save(tmp_path / "saved")
    again = ScoreDetector.load(tmp_path / "saved", score)
    assert again.p_values(rows[400:]).tolist() == detector.p_values(rows[400:]).tolist()
    assert again.predict(rows[400:], ["a"] * 2600).tolist() == detector.predict(rows[400:], ["a"] * 2600).tolist()
    judged = again.monitor(tmp_path / "state.json").update(rows[400:500])
    assert len(judged.p_values) == 100
    detector.export(tmp_path / "file.onnx", rows[:4])
    found, p, called = run_onnx(tmp_path / "file.onnx", rows[400:].numpy())
    assert np.allclose(found, detector.ood_score(rows[400:]), rtol=1e-4, atol=1e-5)
    assert np.abs(p - detector.p_values(rows[400:])).max() < 0.01
    assert (called == (detector.predict(rows[400:]) < 0)).mean() > 0.99
    images = (255 * torch.rand(30, 1, 8, 8)).byte()
    shown = ScoreDetector(lambda batch: batch.float().mean((1, 2, 3))).fit(images)
    shown.report(images, tmp_path / "page.html", top=4)
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/png") == 2
    assert "30 scored" in page


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_scored(rows, tmp_path):
    detector = ScoreDetector(distance).fit(rows[:100])
    detector.score = None  # which cannot score
    (tmp_path / "table.csv").write_text("mine")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        detector.report(rows, tmp_path / "none" / "page.html")
    with pytest.raises(ValueError, match="exists and does not end"):
        detector.report(rows, tmp_path / "table.csv")
    with pytest.raises(ValueError, match="top is 0"):
        detector.report(rows, tmp_path / "page.html", top=0)
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize(
    ("options", "fit", "words"),
    [
        ({"score": lambda batch: batch.sum()}, 50, "must return"),
        ({"score": two, "names": ["one"]}, 50, "2 scores"),
        ({"score": two}, 20, "25 or more"),
        ({"score": two, "decision_score": "score 3"}, 50, "score 1, score 2"),
        ({"score": distance, "target_fpr": 0.01, "confidence": 0.95}, 100, "299"),
        ({"score": distance, "batch_size": 0}, 50, "batch_size"),
    ],
)
def test_what_cannot_be_used_is_refused(rows, options, fit, words):
    with pytest.raises(ValueError, match=words):
        ScoreDetector(**options).fit(rows[:fit])


def test_a_graph_may_be_checked_on_the_inliers_it_was_calibrated_with(rows, tmp_path):
    # In float32 their scores meet the held-out ones, and such a graph was once refused.
    detector = ScoreDetector(two).fit(rows[:400])
    detector.export(tmp_path / "file.onnx", rows[:400])
    _, p, _ = run_onnx(tmp_path / "file.onnx", rows[:400].numpy())
    assert np.abs(p - detector.p_values(rows[:400])).max() <= 1.5 / 401


def test_a_function_that_is_not_torch_is_not_exported_and_nan_counts_as_an_outlier(rows, tmp_path):
    detector = ScoreDetector(lambda batch: np.asarray(batch).sum(1)).fit(rows[:100].numpy())
    with pytest.raises(ValueError, match="cannot be exported"):
        detector.export(tmp_path / "file.onnx", rows[:4])
    fixed = ScoreDetector(lambda batch: torch.cat([batch, batch])[: len(batch)].sum(1)).fit(rows[:100])
    with pytest.raises(ValueError, match=r"x\.shape\[0\]"):
        fixed.export(tmp_path / "file.onnx", rows[:4])
    assert not list(tmp_path.iterdir())
    assert detector.predict(np.full((1, 4), np.nan)).tolist() == [-1]
    with pytest.raises(FileNotFoundError, match="not the folder"):
        ScoreDetector.load(tmp_path, distance)


def test_columns_of_files_are_found_by_their_names(tmp_path):
    frame = pd.DataFrame({"x": np.arange(100.0), "y": 1000 + np.arange(100.0)})
    mixed = frame[["y", "x"]].assign(note="text", part=["a", "b"] * 50)
    frame.to_csv(tmp_path / "good.csv", index=False)
    mixed.to_csv(tmp_path / "mixed.csv", index=False)
    for number, inliers in enumerate((frame, tmp_path / "good.csv")):
        fitted = ScoreDetector(lambda rows: rows[:, 0]).fit(inliers)
        fitted.save(tmp_path / f"saved{number}")
        detector = ScoreDetector.load(tmp_path / f"saved{number}", fitted.score)
        assert detector.feature_names_in_.tolist() == ["x", "y"]
        assert detector.ood_score(tmp_path / "mixed.csv").tolist() == frame.x.tolist()
        with pytest.raises(ValueError, match="column 0 of X is 'y', of the inliers 'x'"):
            detector.predict(frame[["y", "x"]])
    detector.fit(frame, groups=mixed.part)
    for judged in (detector.p_values, lambda *given: detector.monitor().update(*given).p_values):
        assert judged(tmp_path / "mixed.csv", "part").tolist() == judged(frame, mixed.part).tolist()
    detector.report(tmp_path / "mixed.csv", tmp_path / "page.html")
    (tmp_path / "other.csv").write_text("x,z\n1,2\n")
    with pytest.raises(ValueError, match=r"other.csv: has no column 'y'; its columns are 'x', 'z'"):
        detector.predict(tmp_path / "other.csv")


def test_scores_may_have_any_type_of_torch_and_masked_ones_count_as_none(rows):
    wanted = ScoreDetector(lambda batch: distance(batch).bfloat16().float()).fit(rows[:200]).ood_score(rows[:9])
    got = ScoreDetector(lambda batch: distance(batch).bfloat16()).fit(rows[:200]).ood_score(rows[:9])
    np.testing.assert_array_equal(got, wanted)

    def masked(batch):
        scores = distance(batch).numpy()
        return np.ma.masked_array(scores, np.asarray(batch[:, 0] > 9))

    detector = ScoreDetector(masked).fit(rows[:200])
    odd = torch.tensor([[10.0, 0.0, 0.0, 0.0]])
    assert detector.predict(torch.cat([odd * 0, odd])).tolist() == [1, -1]
    assert detector.ood_score(odd) > 1e30


def test_what_the_function_and_the_caller_give_wrongly_is_named(rows, tmp_path):
    with pytest.raises(ValueError, match="the function returned a list of unequal parts: it must return 60 numbers"):
        ScoreDetector(lambda batch: [[1.0], [2.0, 3.0]]).fit(rows[:60])
    with pytest.raises(TypeError, match="X is one number: it must be an array of N inputs"):
        ScoreDetector(distance).fit(np.array(3.0))
    detector = ScoreDetector(distance).fit(rows[:60])
    with pytest.raises(TypeError, match="example is a ndarray: it must be a tensor"):
        detector.export(tmp_path / "model.onnx", rows[:3].numpy())
    detector.save(tmp_path / "kept")
    with pytest.raises(TypeError, match="score is 3: it must be a function"):
        ScoreDetector.load(tmp_path / "kept", 3)
    with pytest.raises(ValueError, match=r"scores\.safetensors is a file: take a new folder"):
        detector.save(tmp_path / "kept" / "scores.safetensors")


def test_an_example_with_a_gradient_is_exported(rows, tmp_path):
    pytest.importorskip("onnxruntime")
    ScoreDetector(distance).fit(rows[:60]).export(tmp_path / "model.onnx", rows[:3].clone().requires_grad_())
    assert (tmp_path / "model.onnx").is_file()
