"""Regressions: settings of the host program, the unit of a column, the form of a table; each once stopped a user."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from negvae import NegVAEDetector
from negvae.report.page import write_report
from negvae.runs.export import export_onnx
from negvae.runs.score import score_files
from tests.conftest import blobs
from tests.detector.test_state import STATES

IMAGES = blobs(40, (1, 16, 16)).numpy()
OTHERS = blobs(20, (1, 16, 16), seed=1).numpy()
OPTIONS = {"epochs": 1, "batch_size": 16, "precision": "float32", "device": "cpu", "target_fpr": 0.4}


# --- the host's default type and device -----


@pytest.fixture(scope="module")
def with_maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("host")
    NegVAEDetector(**OPTIONS, heatmaps=True).fit(IMAGES).save(folder / "run")
    np.save(folder / "new.npy", IMAGES[:10])
    return folder


def everything(folder: Path, out: Path) -> list[np.ndarray]:
    """What each public way to a loaded run with heat maps gives."""
    out.mkdir()
    detector = NegVAEDetector.load(folder / "run", device="cpu")
    new = str(folder / "new.npy")
    found = [detector.heatmap(IMAGES[:5]), np.array([each.p_value for each in detector.drift(IMAGES[:9]).moved])]
    found.append(detector.recalibrate(OTHERS).p_values(IMAGES[:5]))
    detector.plot_heatmaps(IMAGES[:3])
    score_files(folder / "run", [new], out / "scores.csv", names=["defects"], heatmaps=out / "maps", device="cpu")
    write_report(folder / "run", [new], out / "report.html", device="cpu")
    found.append(np.array([float(line.split(",")[2]) for line in (out / "scores.csv").read_text().split("\n")[1:-1]]))
    return found


def test_a_loaded_run_with_heat_maps_does_not_depend_on_the_state_of_the_program(
    with_maps: Path, tmp_path: Path
) -> None:
    plain = everything(with_maps, tmp_path / "plain")
    with STATES["float64"](), STATES["device"]():
        found = everything(with_maps, tmp_path / "set")
        if importlib.util.find_spec("onnxscript"):
            export_onnx(with_maps / "run", tmp_path / "model.onnx")
    for ours, expected in zip(found, plain, strict=True):
        np.testing.assert_array_equal(ours, expected)


# --- columns of any unit -----


def rows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 6))


def test_the_unit_of_the_columns_is_of_no_account() -> None:
    inliers, fresh, outliers = rows(120, 0), rows(40, 1), rows(40, 2) + 20
    wanted = NegVAEDetector(**OPTIONS).fit(inliers)
    for unit in (2.0**1000, 2.0**700, 2.0**-700, 2.0**-1000):
        found = NegVAEDetector(**OPTIONS).fit(inliers * unit)
        for each in (fresh, outliers):
            np.testing.assert_array_equal(found.ood_score(each * unit), wanted.ood_score(each))
        np.testing.assert_array_equal(found.sample(3), wanted.sample(3) * unit)
    for unit in (5e306, 1e200, 1e-200, 1e-307, 1e-318):
        found = NegVAEDetector(**OPTIONS).fit(inliers * unit)
        assert (found.predict(outliers * unit) == -1).all(), unit
        assert found.offset_ == pytest.approx(wanted.offset_, rel=0.01)


@pytest.mark.parametrize("column", [1.7e308, 1e20, 0.1, 3e-300], ids=str)
def test_a_constant_column_is_one_by_equal_values(column: float) -> None:
    inliers, fresh = rows(120, 0), rows(40, 1)
    inliers[:, 2] = fresh[:, 2] = column
    detector = NegVAEDetector(**{**OPTIONS, "target_fpr": 0.05}).fit(inliers)
    stored = torch.from_numpy(inliers).reshape(120, 6, 1, 1)
    assert not detector.model_.inputs(stored)[:, 2].any()
    other = fresh.copy()
    other[:, 2] *= -1 if column > 1 else 100
    assert (detector.predict(fresh) == 1).mean() > 0.8
    assert (detector.predict(other) == -1).all()


def test_a_column_of_the_largest_numbers_trains() -> None:
    inliers, outliers = rows(120, 0), rows(40, 1)
    inliers[:, 2] = np.where(inliers[:, 2] > 0, 1.7e308, -1.7e308)
    outliers[:, [0, 4]] += 20
    detector = NegVAEDetector(**OPTIONS).fit(inliers)
    assert (detector.predict(outliers) == -1).all()
    assert np.isfinite(detector.reconstruct(outliers)).all()


# --- tables and arrays that cannot be used -----


@pytest.fixture(scope="module")
def fitted() -> NegVAEDetector:
    return NegVAEDetector(**OPTIONS).fit(table())


def table(**columns: object) -> pd.DataFrame:
    return pd.DataFrame(rows(60, 0)[:, :3], columns=["length", "mass", "width"]).assign(**columns)


UNUSABLE = {
    "text": table(mass="x"),
    "categories": table(mass=pd.Categorical(["x", "y"] * 30)),
    "whole numbers as categories": table(mass=pd.Categorical([1, 2] * 30)),
    "arrow dictionary": pa.Table.from_pandas(table(mass=pd.Categorical([1, 2] * 30))),
    "dates": table(mass=pd.date_range("2020-01-01", periods=60)),
    "dates alone": pd.DataFrame({"mass": pd.date_range("2020-01-01", periods=60)}),
    "spans": table(mass=pd.to_timedelta(range(60), unit="s")),
    "complex": table(mass=[1 + 2j] * 60),
    "lists": table(mass=[[1, 2]] * 60),
    "huge": table(mass=[10**400] * 60),
    "NaN": table(mass=[1.0, np.nan] * 30),
    "infinite": table(mass=[1.0, np.inf] * 30),
    "NA": table(mass=pd.array([1, None] * 30, dtype="Int64")),
    "arrow text": pa.table({"length": rows(60, 0)[:, 0], "mass": ["x"] * 60, "width": rows(60, 0)[:, 1]}),
    "arrow null": pa.table({"length": rows(60, 0)[:, 0], "mass": [1.0, None] * 30, "width": rows(60, 0)[:, 1]}),
    "arrow dates": pa.Table.from_pandas(table(mass=pd.date_range("2020-01-01", periods=60))),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_column_of_a_table_that_cannot_be_used_is_named(fitted: NegVAEDetector, kind: str) -> None:
    uses = [NegVAEDetector(**OPTIONS).fit, lambda X: NegVAEDetector(**OPTIONS).fit(table(), calibration=X)]
    if kind != "dates alone":
        uses += [fitted.predict, fitted.recalibrate, fitted.heatmap]
    for use in uses:
        with pytest.raises(ValueError, match=r"column 'mass' (holds|is) ") as caught:
            use(UNUSABLE[kind])
        assert "\n" not in str(caught.value)


def test_a_table_of_other_columns_is_still_refused_by_their_names(fitted: NegVAEDetector) -> None:
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(table(mass="x").rename(columns={"width": "height"}))
    assert len(fitted.predict(table(mass=pd.array([1, 2] * 30, dtype="Int64")))) == 60


def test_arrays_and_tensors_that_cannot_be_used_are_refused_in_one_line() -> None:
    data = rows(60, 0)
    holes = data.copy()
    holes[7, 4] = np.nan
    cases = {
        "row 7, column 4 is NaN": holes,
        "holds datetime64": np.full((60, 3), "2020-01-01", "datetime64[D]"),
        "Complex data not supported": data + 1j,
        "masked": np.ma.masked_array(data, data > 2),
        "sparse": torch.from_numpy(data).to_sparse(),
        "device meta": torch.empty(60, 3, device="meta"),
        "list is empty": [],
        "item 0 of the list is bytes": [b"x"] * 5,
        "column 1 holds text": [[1.0, "x"]] * 9,
    }
    for message, case in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            NegVAEDetector(**OPTIONS).fit(case)
        assert "\n" not in str(caught.value)


def test_a_view_that_runs_backwards_is_taken(with_maps: Path) -> None:
    new = rows(60, 0)
    fitted = NegVAEDetector(**OPTIONS).fit(new)
    np.testing.assert_array_equal(fitted.predict(new[::-1][:1]), fitted.predict(new[-1:]))
    images = NegVAEDetector.load(with_maps / "run", device="cpu")
    np.testing.assert_array_equal(images.predict(IMAGES[::-1][:1]), images.predict(IMAGES[-1:]))


@pytest.mark.parametrize("what", ["calibration", "negatives"])
def test_columns_in_another_order_are_no_calibration(what: str) -> None:
    mixed = table()[["mass", "length", "width"]]
    with pytest.raises(ValueError, match=r"column 0 of .* is 'mass', of the inliers 'length'"):
        NegVAEDetector(**OPTIONS).fit(table(), **{what: mixed})
    with pytest.raises(ValueError, match=r"column 2 .* is missing, of the inliers 'width'"):
        NegVAEDetector(**OPTIONS).fit(table(), **{what: table()[["length", "mass"]]})
    other = table().iloc[::-1] + 0.01
    assert NegVAEDetector(**OPTIONS).fit(table(), **{what: other}).n_features_in_ == 3


def test_what_is_no_data_is_refused_by_its_type(fitted: NegVAEDetector) -> None:
    polars = pytest.importorskip("polars")
    for data in (None, {}, set(), iter([]), polars.DataFrame({"length": [1.0]}).lazy()):
        for use in (fitted.predict, NegVAEDetector(**OPTIONS).fit):
            with pytest.raises(TypeError, match=f"the data is a {type(data).__name__}: give a"):
                use(data)
