"""What people have at hand goes in as it is: data frames, arrays of other libraries, single images and paths."""

import copy
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.base import clone

from negvae import NegVAEDetector
from negvae.runs.score import score_files
from tests.conftest import blobs

NAMES = ["width", "height", "depth"]
OPTIONS = {"epochs": 1, "target_fpr": 0.1, "random_state": 0, "device": "cpu"}
ROWS, NEW = (np.random.default_rng(seed).normal(size=(count, 3)) for seed, count in ((0, 100), (1, 9)))


@pytest.fixture(scope="module")
def on_rows():
    return NegVAEDetector(**OPTIONS).fit(ROWS)


def tabular(kind, values):
    if kind == "pandas":
        return pytest.importorskip("pandas").DataFrame(values, columns=NAMES)
    if kind == "polars":
        return pytest.importorskip("polars").DataFrame(values, schema=NAMES)
    if kind == "array-api-strict":
        return pytest.importorskip("array_api_strict").asarray(values)
    if kind == "pyarrow":
        return pa.table(dict(zip(NAMES, values.T, strict=True)))
    return torch.from_numpy(values) if kind == "torch" else values.tolist()


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow", "array-api-strict", "torch", "lists"])
def test_rows_of_other_libraries_give_the_same_decisions(on_rows, kind):
    fitted = NegVAEDetector(**OPTIONS).fit(tabular(kind, ROWS))
    named = kind in ("pandas", "polars", "pyarrow")
    assert list(getattr(fitted, "feature_names_in_", [])) == (NAMES if named else [])
    new = tabular(kind, NEW)
    np.testing.assert_array_equal(fitted.ood_score(new), on_rows.ood_score(NEW))
    np.testing.assert_array_equal(fitted.predict(new), on_rows.predict(NEW))
    np.testing.assert_array_equal(fitted.p_values(new), on_rows.p_values(NEW))
    np.testing.assert_array_equal(fitted.transform(new), on_rows.transform(NEW))
    if kind in ("pandas", "polars"):
        swapped = new[["height", "width", "depth"]]
        with pytest.raises(ValueError, match="order"):
            fitted.predict(swapped)


def test_rows_in_arrays_of_files_give_the_same_decisions(on_rows, tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    np.savez(tmp_path / "rows.npz", x=ROWS)
    np.savez(tmp_path / "parts.npz", x_train=ROWS, x_test=NEW)
    for name, tested in (("rows.npy", ROWS), ("rows.npz", ROWS), ("parts.npz", NEW)):
        fitted = NegVAEDetector(**OPTIONS).fit(tmp_path / name)
        np.testing.assert_array_equal(fitted.ood_score(NEW), on_rows.ood_score(NEW))
        np.testing.assert_array_equal(fitted.p_values(tmp_path / name), on_rows.p_values(tested))


def test_columns_called_by_numbers_are_found_in_files_and_refused_in_frames_in_another_order(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(ROWS)
    fitted = NegVAEDetector(**OPTIONS).fit(frame)
    expected, swapped = fitted.ood_score(frame), frame[[2, 0, 1]]
    fitted.save(tmp_path / "kept")
    swapped.to_csv(tmp_path / "swapped.csv", index=False)
    frame.set_axis(["a", "b", "c"], axis=1).to_csv(tmp_path / "named.csv", index=False)  # by their places
    frame.rename(columns={2: "b"}).to_csv(tmp_path / "other.csv", index=False)
    for again in (NegVAEDetector.load(tmp_path / "kept"), pickle.loads(pickle.dumps(fitted)), fitted):
        for same in (frame, frame.to_numpy()):
            np.testing.assert_array_equal(again.ood_score(same), expected)
        np.testing.assert_allclose(again.ood_score(str(tmp_path / "swapped.csv")), expected, rtol=1e-6)
        with pytest.warns(UserWarning, match="was fitted without feature names"):
            by_place = again.ood_score(str(tmp_path / "named.csv"))
        np.testing.assert_allclose(by_place, expected, rtol=1e-6)
        with pytest.raises(ValueError, match="column 0 of X is '2', of the inliers '0'"):
            again.predict(swapped)
        with pytest.raises(ValueError, match="has no column '2'; its columns are '0', '1', 'b'"):
            again.predict(str(tmp_path / "other.csv"))
    score_files(tmp_path / "kept", [str(tmp_path / "swapped.csv")], tmp_path / "scores.csv", device="cpu")
    rows = pd.read_csv(tmp_path / "scores.csv")
    np.testing.assert_allclose(rows[fitted.calibration_.score], expected, rtol=1e-6)


def test_a_pickle_and_a_copy_keep_the_rows_that_were_left_out():
    fitted = NegVAEDetector(**{**OPTIONS, "trim": 0.1}).fit(ROWS)
    assert fitted.left_out_.any()
    for again in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        np.testing.assert_array_equal(again.left_out_, fitted.left_out_)


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_the_output_that_was_set_is_kept(on_rows, kind):
    frame = type(tabular(kind, NEW))
    chosen = copy.deepcopy(on_rows).set_output(transform=kind)
    expected = on_rows.transform(NEW)
    for again in (chosen, pickle.loads(pickle.dumps(chosen)), copy.deepcopy(chosen), clone(chosen).fit(ROWS)):
        codes = again.transform(NEW)
        assert isinstance(codes, frame)
        assert list(codes.columns) == list(on_rows.get_feature_names_out())
        np.testing.assert_array_equal(codes.to_numpy(), expected)
    unfitted = pickle.loads(pickle.dumps(NegVAEDetector(**OPTIONS).set_output(transform=kind)))
    assert isinstance(unfitted.fit(ROWS).transform(NEW), frame)
    assert isinstance(pickle.loads(pickle.dumps(on_rows)).transform(NEW), np.ndarray)


def test_single_images_and_lists_of_paths_are_scored(tmp_path):
    images = blobs(60, (1, 16, 16)).numpy()
    looking = NegVAEDetector(**OPTIONS).fit(images)
    new = blobs(3, (1, 16, 16), 1).numpy()
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(paths, new, strict=True):
        Image.fromarray(image[0]).save(path)
    expected, opened = looking.ood_score(new), [Image.open(path) for path in paths]
    every = (paths, [str(path) for path in paths], tuple(paths), np.array(paths), opened, tmp_path, list(new))
    for many in every:
        np.testing.assert_array_equal(looking.ood_score(many), expected)
        np.testing.assert_array_equal(looking.predict(many), looking.predict(new))
    for one in (paths[1], str(paths[1]), opened[1], [paths[1]], new[1:2], new[1], new[1, 0]):
        np.testing.assert_array_equal(looking.ood_score(one), expected[1:2])
        assert looking.predict(one).shape == looking.p_values(one).shape == (1,)
    color = NegVAEDetector(**OPTIONS).fit(images.repeat(3, 1))
    one = new[1].repeat(3, 0)
    for given in (one[None], one.transpose(1, 2, 0), opened[1]):
        np.testing.assert_array_equal(color.ood_score(given), color.ood_score(new.repeat(3, 1))[1:2])
    with pytest.raises(ValueError, match="one color image or three gray ones: give 1 x 3 x 16 x 16"):
        color.predict(torch.from_numpy(one))
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        looking.predict([paths[0], tmp_path / "gone.png"])
    for image in opened:
        image.close()


def test_groups_of_which_no_inlier_is_held_out_are_named():
    rows, names = np.random.default_rng(0).normal(size=(200, 4)), np.repeat(["rare", "usual"], [1, 199])
    with pytest.warns(UserWarning, match=r"no inlier of 1 of 2 groups is held out \(rare\): such a group has no"):
        detector = NegVAEDetector(epochs=1, random_state=0).fit(rows, groups=names)
    assert list(detector.calibration_.thresholds) == ["usual"]
