import re
from pathlib import Path

import numpy as np
import pytest
import torch

from negvae.cli import main
from negvae.data.tiling import tiling
from negvae.detector.estimator import NegVAEDetector
from negvae.report import figures
from negvae.report.page import Findings, Kept, _colored, _histograms, examine, training_inliers, write_report
from negvae.report.photos import heat_pictures, photos
from negvae.report.scored import false_alarms, p_value_chart
from negvae.runs.artifact import load_artifact
from negvae.runs.pictures import palette
from negvae.scoring.calibration import Calibration
from tests.conftest import blobs


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report") / "artifact"
    NegVAEDetector(preset="gray", epochs=2, batch_size=16, device="cpu").fit(blobs(120, (1, 28, 28)).numpy()).save(
        directory
    )
    return directory


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """40 blobs, 5 negatives of blobs at rows 0, 9, 18, 27 and 36, and a file that is no image."""
    images = blobs(40, (1, 28, 28), 7).numpy()
    images[::9] = 255 - images[::9]
    folder = tmp_path / "mixed"
    folder.mkdir()
    np.save(folder / "a.npy", images)
    (folder / "b<i>.png").write_bytes(b"no image")
    return folder


def test_kept_rows_are_the_largest_and_never_more_than_asked() -> None:
    draw = np.random.default_rng(0)
    kept, everything = Kept(10), []
    for size in (3, 50, 1, 200):
        keys = draw.normal(size=size)
        everything.extend(keys)
        asked = []

        def columns(rows: np.ndarray, keys: np.ndarray = keys, asked: list[int] = asked) -> dict[str, np.ndarray]:
            asked.append(len(rows))
            return {"value": keys[rows]}

        kept.offer(keys, columns)
        assert len(kept.keys) <= 10
        assert sum(asked) <= 10  # only what enters is looked at
        np.testing.assert_array_equal(kept.keys, kept.columns["value"])
    np.testing.assert_array_equal(kept.ordered()["value"], np.sort(everything)[::-1][:10])


def test_findings_agree_with_the_detector(detector: Path, mixed: Path) -> None:
    artifact = load_artifact(detector, "cpu")
    found = examine(artifact, artifact.calibration, [str(mixed)], top=5, batch_size=7, precision="float32")
    images = np.load(mixed / "a.npy")
    stored, model = torch.from_numpy(images), artifact.model
    scores = artifact.scorer("float32")(stored, ["combined"])["combined"]
    assert (found.rows, found.failed) == (41, 1)
    assert found.outliers == int((scores > artifact.calibration.threshold).sum()) >= 5
    assert {place.split("[")[1] for place in found.least.ordered()["place"]} == {"0]", "9]", "18]", "27]", "36]"}
    np.testing.assert_allclose(found.most.ordered()["combined"], np.sort(scores)[:5], rtol=1e-4)
    np.testing.assert_allclose(np.sort(found.sample.columns["combined"]), np.sort(scores), rtol=1e-4)
    codes = found.sample.columns["codes"][np.argsort(found.sample.columns["combined"])]
    with torch.inference_mode():
        wanted = model.encode(model.prepare(stored)).mean.numpy()[np.argsort(scores)]
    np.testing.assert_allclose(codes, wanted, rtol=1e-3, atol=1e-3)


def test_the_page_shows_it_all_and_runs_nothing(detector: Path, mixed: Path, tmp_path: Path) -> None:
    write_report(detector, [str(mixed)], tmp_path / "page.html", precision="float32")
    text = (tmp_path / "page.html").read_text()
    for title in ("Counts", "Least typical", "Most typical", "Scores", "Latent space", "Errors", "Provenance"):
        assert f"<h2>{title}</h2>" in text
    assert "b&lt;i&gt;.png" in text
    assert "b<i>" not in text
    assert "<script" not in text
    assert not re.search("<th[^>]*></th>", text)  # every column has a name for readers who hear the table
    assert text.count("data:image/png") == 4  # least and most typical, each with reconstructions
    assert "threshold" in text
    assert "training data is not at hand" in text


def test_p_values_of_outliers_alone_are_at_the_left_of_their_chart() -> None:
    shown = p_value_chart(np.full(50, 1 / 211))
    assert all(f">{tick}<" in shown for tick in ("0", "0.2", "0.8", "1.0"))


def test_inliers_join_the_map_where_their_data_is_at_hand(tmp_path: Path, mixed: Path) -> None:
    from negvae.config import preset
    from negvae.runs.sets import load_inliers
    from negvae.runs.train import run

    data = tmp_path / "inliers.npy"
    np.save(data, blobs(60, (1, 28, 28)).numpy())
    config = preset("gray", str(data), epochs=1, batch_size=16, device="cpu", calibration=0.4)
    run(config, tmp_path / "model")
    images, what = training_inliers(load_artifact(tmp_path / "model", "cpu"))
    # Of 60 images without splits every fifth is left to tests; two fifths of the other 48 are held out from training.
    assert images.shape == (19, 1, 28, 28)
    inliers = load_inliers(config)
    assert np.array_equal(images, inliers.held_out.numpy())
    assert not {image.tobytes() for image in images} & {image.numpy().tobytes() for image in inliers.training}
    assert what == "inliers held out from training"
    write_report(tmp_path / "model", [str(mixed)], tmp_path / "page.html")
    assert "inliers held out from training (19)" in (tmp_path / "page.html").read_text()


def test_rows_of_features_have_a_page_too(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(200, 3))
    NegVAEDetector(epochs=2, device="cpu").fit(rows).save(tmp_path / "model")
    np.save(tmp_path / "rows.npy", np.concatenate([rows[:20], rows[:2] * 30]))
    found = write_report(tmp_path / "model", [str(tmp_path / "rows.npy")], tmp_path / "page.html", top=2)
    assert {place[-4:] for place in found.least.columns["place"]} == {"[20]", "[21]"}
    assert "data:image/png" not in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing.npy"], "no such file"),
        (["{mixed}/b<i>.png"], "no image that can be scored"),
        (["{mixed}", "--top", "0"], "top is 0"),
        (["{mixed}", "--score", "iwae"], "was not calibrated"),
        (["{mixed}", "--out", "nowhere/page.html"], "no such folder"),
    ],
)
def test_what_is_refused_is_refused_in_a_line(
    detector: Path, mixed: Path, options: list[str], message: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["negvae", "report", str(detector), *(o.format(mixed=mixed) for o in options)])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_the_chart_marks_the_highest_threshold_of_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    by_group = {"kl": {"low": np.arange(10.0), "high": np.arange(10.0, 20.0)}}
    thresholds = {"low": 8.5, "high": 18.5}
    calibration = Calibration({"kl": np.arange(20.0)}, "kl", 16.5, 0.1, groups=by_group, thresholds=thresholds)
    marked, draw = [], figures.histogram

    def histogram(series: dict[str, np.ndarray], *, marks: dict[str, float] | None = None, **options: object) -> object:
        marked.append(marks)
        return draw(series, marks=marks, **options)

    monkeypatch.setattr(figures, "histogram", histogram)
    sample = {"kl": np.arange(5.0), "p": np.full(5, 0.5)}
    _histograms(calibration, Findings(rows=5), sample)
    assert marked == [{"threshold": 18.5}, None]


def test_false_alarms_of_a_share_of_the_data_are_about_and_not_at_most() -> None:
    scores = {"kl": np.arange(20.0)}
    assert false_alarms(Calibration(scores, "kl", 16.5, 0.2)).startswith("at most 19.05% on average")
    of_share = Calibration(scores, "kl", 16.5, contamination=0.2)
    assert false_alarms(of_share).startswith("about 19.05% on average")
    assert "about 0.19" in of_share.describe()


def test_heat_maps_of_tiles_keep_to_the_scale_of_colors_where_tiles_overlap() -> None:
    plan = tiling((96, 72), (48, 48))
    values = np.arange(len(plan)) % 2 * 6.0  # a tile beside a black one is pale yellow
    kept = photos(np.zeros((len(plan), 3, 48, 48), np.uint8), [plan])
    shown = heat_pictures(kept, lambda tiles: np.tile(values[:, None, None], (1, 48, 48)), _colored)[0]
    colors = set(map(tuple, shown[:, :, 12:84].reshape(3, -1).T.tolist()))
    assert len(colors) > 2
    assert colors <= set(map(tuple, palette().tolist()))
    assert (shown[:, :, :12] == 255).all()
