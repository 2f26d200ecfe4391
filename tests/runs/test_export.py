from pathlib import Path

import numpy as np
import pytest
import torch

from negvae.cli import main
from negvae.detector.estimator import NegVAEDetector
from negvae.runs.artifact import load_artifact, save_calibration
from negvae.runs.export import export_onnx, relative_difference, run_onnx
from negvae.runs.graph import floor32
from negvae.scoring import SCORES, calibrate
from negvae.scoring.table import names_of
from tests.conftest import blobs

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SHAPES = {"gray": (1, 28, 28), "color": (3, 32, 32), "quantized": (2, 18, 25)}
EXPORTED = names_of(lambda score: not score.not_exported and "transformations" not in score.needs)
OPTIONS = {
    "gray": {"preset": "gray"},
    # Trained a little: until KLs of 30,000 nats differ by hundreds, float32 has few digits for `prior_ratio`.
    "color": {"preset": "color", "contamination": 0.1, "epochs": 4},
    "quantized": {"likelihood": "quantized-gaussian", "learn_sigma": True, "negatives": "none"},
}


@pytest.fixture(scope="module", params=[*SHAPES, "rows"])
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """The folder of a detector, and 64 things to score: half of them like the training data."""
    directory = tmp_path_factory.mktemp("model") / "artifact"
    if request.param == "rows":
        rows = np.random.default_rng(0).normal(5, [1, 20, 3, 0.1], (300, 4))
        NegVAEDetector(epochs=3, device="cpu").fit(rows).save(directory)
        return directory, torch.from_numpy(np.concatenate([rows[:32], rows[:32] * 1.5])).reshape(64, 4, 1, 1)
    shape = SHAPES[request.param]
    inliers = blobs(96, shape)
    if shape[0] == 2:
        directory = _two_channels(directory, inliers)
    else:
        options = {"epochs": 1, "batch_size": 16, "target_fpr": 0.2, "device": "cpu", **OPTIONS[request.param]}
        detector = NegVAEDetector(**options)
        detector.fit(inliers.numpy()).save(directory)
    return directory, torch.cat([blobs(32, shape, 5), 255 - blobs(32, shape, 6)])


def _two_channels(directory: Path, images: torch.Tensor) -> Path:
    """A model that arrays of pictures cannot make, saved by hand."""
    from negvae.config import preset
    from negvae.runs.artifact import save_artifact
    from negvae.runs.calibrate import calibrated
    from negvae.training.loop import train

    config = preset("general", "blobs", epochs=1, batch_size=16, device="cpu", **OPTIONS["quantized"])
    result = train(config, images[:64], None)
    calibration = calibrated(config, result, images[:64], images[64:], target_fpr=0.2)
    directory.mkdir()
    save_artifact(directory, config, result, {}, calibration)
    return directory


@pytest.mark.parametrize(
    ("fitted", "score"),
    [
        *(("gray", name) for name in EXPORTED if SCORES[name].calibrated and "features" not in SCORES[name].needs),
        ("color", "combined"),
        ("quantized", "bpd"),
        ("rows", "neighbors"),
        ("rows", "combined"),
        ("rows", "kl"),
    ],
    indirect=["fitted"],
)
def test_a_file_scores_and_decides_as_the_library(
    fitted: tuple[Path, torch.Tensor], score: str, tmp_path: Path
) -> None:
    directory, stored = fitted
    written = export_onnx(directory, tmp_path / "model.onnx", score=score)
    artifact = load_artifact(directory, "cpu")
    calibration = artifact.calibration.decide_by(score)
    given = stored.flatten(1).numpy() if artifact.model.takes_features else stored.numpy()
    wanted = artifact.scorer("float32")(stored, [score])[score]
    parts = [run_onnx(written.path, given[:size]) for size in (1, 7, 64)]
    got, p_values, called = (np.concatenate(outputs) for outputs in zip(*parts, strict=True))
    wanted = np.concatenate([wanted[:size] for size in (1, 7, 64)])
    assert (got.dtype, p_values.dtype, called.dtype) == (np.float32, np.float64, bool)
    assert relative_difference(got, wanted) < 1e-3
    np.testing.assert_array_equal(p_values, calibration.p_values(got))
    np.testing.assert_array_equal(called, calibration.is_outlier(got))
    clear = np.abs(wanted - calibration.threshold) > 1e-3 * abs(calibration.threshold)
    np.testing.assert_array_equal(called[clear], calibration.is_outlier(wanted)[clear])
    assert len(set(called)) == 2  # or the comparison says nothing

    model = onnx.load(written.path)
    names = [tensor.name for tensor in model.graph.initializer]
    assert any("encoder" in name for name in names) == (score != "neighbors")
    decodes = "decoder" in SCORES[score].needs
    assert any("decoder" in name for name in names) == decodes == (not written.encoder_only)
    properties = {item.key: item.value for item in model.metadata_props}
    assert properties["score"] == score
    assert float(properties["threshold"]) == calibration.threshold
    assert int(properties["calibration_size"]) == calibration.size
    assert str(Path.cwd()) not in str(model)  # nothing of this machine's folders


@pytest.mark.parametrize(
    ("fitted", "score"),
    [("rows", "iwae"), *(("gray", name) for name in EXPORTED if not SCORES[name].calibrated)],
    indirect=["fitted"],
)
def test_further_scores_and_another_rate(
    fitted: tuple[Path, torch.Tensor], score: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("negvae.scoring.scores.IWAE_SAMPLES", 3)  # a graph of sixteen takes four times as long
    source, stored = fitted
    artifact = load_artifact(source, "cpu")
    calibration = calibrate(artifact.scorer("float32"), stored[:20], stored[:32], score=score, target_fpr=0.1)
    directory = tmp_path / "copy"
    directory.mkdir()
    for path in source.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    save_calibration(directory, calibration)
    written = export_onnx(directory, target_fpr=0.5)
    assert written.path == directory / "model.onnx"
    given = stored.flatten(1) if artifact.model.takes_features else stored
    got, _, called = run_onnx(written.path, given.numpy())
    artifact = load_artifact(directory, "cpu")
    wanted = artifact.scorer("float32")(stored, [score])[score]
    assert relative_difference(got, wanted) < 1e-4
    assert (called == artifact.calibration.decide_by(target_fpr=0.5).is_outlier(wanted)).mean() > 0.98
    assert called[:32].mean() > 0.4


@pytest.mark.parametrize("fitted", ["gray"], indirect=True)
def test_logits_of_any_size_keep_their_scores(fitted: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source, stored = fitted
    directory = tmp_path / "copy"
    directory.mkdir()
    for path in source.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    weights = load_file(directory / "weights.safetensors")
    last = max((name for name in weights if name.startswith("decoder") and name.endswith("bias")), key=_layer)
    weights[last] -= 300
    calibration = load_artifact(source, "cpu").calibration
    save_file(weights, directory / "weights.safetensors", {"epochs": "1", "finished": "true"})
    save_calibration(directory, calibration)  # of the changed weights, or it would be refused as of others
    written = export_onnx(directory, score="bpd")
    score = run_onnx(written.path, stored.numpy())[0]
    wanted = load_artifact(directory, "cpu").scorer("float32")(stored, ["bpd"])["bpd"]
    assert wanted.max() > 50  # bits per dimension
    assert relative_difference(score, wanted) < 1e-4


def _layer(name: str) -> int:
    return int(name.split(".")[1])


def test_bounds_move_to_the_float32_that_compares_alike() -> None:
    bounds = np.array([0.1, 1 / 3, -0.1, 2.0, 1e-50, -1e-50])
    near = bounds.astype(np.float32)
    for scores in (near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))):
        np.testing.assert_array_equal(scores.astype(np.float64) > bounds, scores > floor32(bounds))
        np.testing.assert_array_equal(scores.astype(np.float64) <= bounds, scores <= floor32(bounds))


@pytest.mark.parametrize("fitted", ["gray"], indirect=True)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--score", "likelihood_regret"], "cannot be exported, it fits a posterior"),
        (["--score", "waic"], "cannot be exported, it takes an ensemble"),
        (["--score", "kll"], "did you mean kl?"),
        (["--score", "iwae"], "was not calibrated"),
        (["--format", "tflite"], "unknown format"),
        (["--out", "nowhere/model.onnx"], "no such folder"),
        (["--target-fpr", "0.001"], "held-out inliers"),
    ],
)
def test_what_cannot_be_exported_says_so_in_a_line(
    fitted: tuple[Path, torch.Tensor], options: list[str], message: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.argv", ["negvae", "export", str(fitted[0]), *options])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("fitted", ["gray"], indirect=True)
def test_a_missing_package_names_the_extra(
    fitted: tuple[Path, torch.Tensor], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    monkeypatch.setattr("sys.argv", ["negvae", "export", str(fitted[0])])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "negvae: onnxscript is not installed: pip install 'negvae[onnx]'\n"
