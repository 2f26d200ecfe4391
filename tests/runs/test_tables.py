"""Rows of features in CSV and Parquet files with a column of groups: from training to score, and in the detector."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import csv as arrow_csv

from negvae import NegVAEDetector
from negvae.config import preset
from negvae.data.batches import Batch
from negvae.data.rows import feature_columns, holds_rows, load_rows
from negvae.runs.artifact import load_artifact, read_section
from negvae.runs.groups import labeled, labeling
from negvae.runs.train import run
from negvae.runs.watch import watch
from tests.cli.test_commands import call
from tests.conftest import blobs

RULE = ("--target-fpr", "0.1", "--confidence", "0.9")


def table(count: int, seed: int, further: bool = False) -> pa.Table:
    """Rows of two products, of which the second varies more; `further`: reordered columns, and one of text."""
    random = np.random.default_rng(seed)
    product = np.where(random.uniform(size=count) < 0.5, "bolt", "nut")
    rows = random.normal(size=(count, 3)) * np.where(product == "nut", 4.0, 1.0)[:, None]
    columns = {"a": rows[:, 0], "product": product, "b": rows[:, 1], "c": rows[:, 2] > 0}
    if further:
        columns = {"id": np.full(count, "x"), **dict(reversed(columns.items()))}
    return pa.table(columns)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    arrow_csv.write_csv(table(600, 0), folder / "good.csv")
    pq.write_table(table(600, 0), folder / "good.parquet")
    arrow_csv.write_csv(table(300, 1, further=True), folder / "new.csv")
    pq.write_table(table(300, 1), folder / "new.parquet")
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> Path:
    config = preset(
        "features", str(place / "good.csv"), groups="product", target_fpr=0.1, confidence=0.9, epochs=2, device="cpu"
    )
    run(config, place / "model", left_open=["calibration"])
    return place / "model"


def p_values(out: Path) -> list[float]:
    return [float(row["p_value"]) for row in csv.DictReader(out.read_text().splitlines())]


def test_a_table_is_numbers_in_named_columns(place: Path, tmp_path: Path) -> None:
    assert holds_rows(place / "good.csv")
    assert holds_rows(place / "good.parquet")
    names = feature_columns(place / "new.csv", "product")
    assert names == ("id", "c", "b", "a")
    rows = load_rows(place / "new.csv", columns=["a", "b", "c"])
    np.testing.assert_array_equal(rows, load_rows(place / "new.parquet", columns=["a", "b", "c"]))
    for text, message in (
        ("a,b\n1,2\n3,\n", r"row 1, column 'b' is nan .*SimpleImputer"),
        ("a,b\n1,x\n", "column 'b' holds string, and features are numbers"),
        ("a,a\n1,2\n", "two columns are called 'a'"),
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_rows(tmp_path / "t.csv")


def test_a_column_names_the_groups_from_training_to_score(capsys, place: Path, model: Path, tmp_path: Path) -> None:
    calibration = load_artifact(model, "cpu").calibration
    assert list(calibration.thresholds) == ["bolt", "nut"]
    assert calibration.confidence == 0.9
    assert calibration.size == 200  # as the detector holds out, and not a fifth
    assert read_section(model, "detector")["feature_names"] == ["a", "b", "c"]
    for name in ("new.csv", "new.parquet"):
        code, _, error = call(capsys, "score", model, place / name, "--groups", "product", "--out", tmp_path / "s.csv")
        assert (code, "target FPR 0.1 with 0.9 confidence" in error) == (0, True)
        assert " rows/s)" in error
        detector = NegVAEDetector.load(model, "cpu")
        np.testing.assert_array_equal(p_values(tmp_path / "s.csv"), detector.p_values(place / name, "product"))
    code, _, _ = call(capsys, "watch", model, place, "--groups", "product", "--once", "--settle", "0",
                      "--out", tmp_path / "watch")  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "watch" / "rows.jsonl").read_text().splitlines()]
    found = [row["p_value"] for row in rows if row["path"].endswith("new.parquet")]
    assert found == detector.p_values(place / "new.parquet", "product").tolist()
    code, _, error = call(capsys, "score", model, place / "new.csv", "--groups", "kind", "--out", tmp_path / "t.csv")
    assert (code, error.splitlines()[-1].count("has no column 'kind'")) == (2, 1)
    assert not (tmp_path / "t.csv").exists()


def test_a_table_without_the_column_of_groups_is_an_error_and_ends_nothing(
    capsys, place: Path, model: Path, tmp_path: Path
) -> None:
    """Before, one such file among a thousand ended a job with nothing written, and a watch for ever."""
    arriving = tmp_path / "in"
    arriving.mkdir()
    for name in ("a.parquet", "c.parquet"):
        shutil.copy(place / "new.parquet", arriving / name)
    pq.write_table(table(5, 3).drop_columns("product"), arriving / "b.parquet")
    code, _, _ = call(capsys, "score", model, arriving, "--groups", "product", "--out", tmp_path / "s.csv")
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    wrong = [row for row in rows if row["error"]]
    assert code == 0
    assert (len(rows), len(wrong)) == (605, 5)
    assert {(Path(row["path"]).name, row["p_value"], row["error"][:24]) for row in wrong} == {
        ("b.parquet", "", "has no column 'product';")
    }
    code, _, _ = call(capsys, "watch", model, arriving, "--groups", "product", "--once", "--settle", "0",
                      "--out", tmp_path / "watch")  # fmt: skip
    watched = [json.loads(line) for line in (tmp_path / "watch" / "rows.jsonl").read_text().splitlines()]
    assert code == 0
    assert [row["index"] for row in watched if row["error"]] == [0, 1, 2, 3, 4]
    assert {row["path"]: row["p_value"] for row in watched}[str(arriving / "c.parquet")] > 0


def test_a_table_that_is_rewritten_is_decided_by_its_new_groups(capsys, place: Path, model: Path, tmp_path: Path):
    """Before, the groups of the old file decided the rows of the new one, or were too few and ended the watch."""
    new = table(12, 5)
    arriving = tmp_path / "in"
    arriving.mkdir()
    file = arriving / "rows.csv"
    arrow_csv.write_csv(new.filter(pc.equal(new["product"], "bolt")).slice(0, 2), file)
    updates = []

    def rewrite(watched):
        updates.append(watched.rows)
        if watched.rows == 2 and updates.count(2) == 1:
            arrow_csv.write_csv(new, tmp_path / "new.csv")
            shutil.move(tmp_path / "new.csv", file)

    watch(
        model, str(arriving), tmp_path / "watch", groups="product", interval=0.01, settle=0, device="cpu",
        on_update=rewrite, should_stop=lambda: updates[-1:] == [14] or len(updates) > 50,
    )  # fmt: skip
    watched = [json.loads(line) for line in (tmp_path / "watch" / "rows.jsonl").read_text().splitlines()][2:]
    assert call(capsys, "score", model, file, "--groups", "product", "--out", tmp_path / "s.csv")[0] == 0
    assert [row["p_value"] for row in watched] == p_values(tmp_path / "s.csv")


def test_rows_of_a_table_that_has_become_shorter_or_has_gone_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    arrow_csv.write_csv(table(3, 5), file)
    batch = Batch([str(file)] * 5, list(range(5)), [""] * 5, np.zeros((5, 3, 1, 1)))
    label = labeling("product", ["bolt", "nut"])
    assert labeled(batch, label).errors == ["has no row 4 any more: it was changed while it was read"] * 5
    file.unlink()
    assert labeled(batch, label).errors == ["No such file or directory"] * 5


def test_a_model_of_rows_is_calibrated_and_evaluated(capsys, place: Path, model: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(model, tmp_path / "run"))
    before = load_artifact(own, "cpu").calibration
    code, _, _ = call(capsys, "calibrate", own)
    again = load_artifact(own, "cpu").calibration
    assert code == 0
    assert again.thresholds == before.thresholds
    np.testing.assert_array_equal(again.scores["neighbors"], before.scores["neighbors"])
    code, _, error = call(capsys, "calibrate", own, "--data", place / "good.parquet")
    assert (code, "what the model was trained on" in error) == (2, True)
    code, _, _ = call(capsys, "calibrate", own, "--data", place / "new.csv", "--groups", "product", *RULE)
    expected = NegVAEDetector.load(model, "cpu").recalibrate(place / "new.csv", groups="product").calibration_
    assert code == 0
    assert load_artifact(own, "cpu").calibration.thresholds == expected.thresholds
    columns = table(100, 3).drop_columns(["product"]).to_pydict()
    pq.write_table(pa.table({**columns, "a": np.array(columns["a"]) + 40}), tmp_path / "far.parquet")
    code, _, error = call(capsys, "evaluate", own, "--ood", tmp_path / "far.parquet")
    assert (code, "name inliers that are new to it with --data" in error) == (2, True)
    code, _, _ = call(
        capsys, "evaluate", own, "--data", place / "new.parquet", "--ood", tmp_path / "far.parquet", "--limit", "80"
    )
    assert code == 0
    (row,) = json.loads((own / "evaluation.json").read_text())["rows"]
    assert row["auc_neighbors"] > 0.99
    assert row["alarms_ood"] == 1


def test_a_rate_that_cannot_be_shown_is_refused_before_training(capsys, place: Path, tmp_path: Path) -> None:
    for options, message in (
        (["--groups", "product", "--target-fpr", "0.01", "--confidence", "0.95"], "needs at least 299 held-out"),
        (["--groups", "product", "--target-fpr", "0.001"], "needs at least 999 held-out"),
        (["--groups", "product", "--calibration", "0", "--confidence", "0.9"], "hold out a part"),
        (["--groups", "folders"], "groups in a column"),
        ([], "column 'product' holds string"),
    ):
        code, _, error = call(capsys, "train", "--data", place / "good.csv", *options, "--out", tmp_path / "none")
        assert (code, message in error, (tmp_path / "none").exists()) == (2, True, False), error


def test_a_run_without_calibration_is_told_to_name_new_rows(capsys, place: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 2)))
    np.save(tmp_path / "new.npy", np.random.default_rng(1).normal(size=(60, 2)))
    run(preset("features", str(tmp_path / "x.npy"), epochs=1, calibration=0, device="cpu"), out := tmp_path / "run")
    advised = f"run `negvae calibrate {out} --data NEW-INLIERS` first"
    assert advised in call(capsys, "export", out)[2]
    assert advised in call(capsys, "watch", out, tmp_path, "--once", "--out", tmp_path / "w")[2]
    told = call(capsys, "score", out, tmp_path / "new.npy")[2].replace("\n", " ")
    assert f"run `negvae calibrate {out} --data NEW-INLIERS --score kl` for p-values" in told
    command = advised.split("`")[1].replace("NEW-INLIERS", str(tmp_path / "new.npy")).split()
    assert call(capsys, *command[1:])[0] == 0
    images = tmp_path / "images"
    np.save(tmp_path / "images.npy", blobs(40, (1, 28, 28)).numpy())
    run(preset("gray", str(tmp_path / "images.npy"), epochs=1, calibration=0, device="cpu"), images)
    with pytest.raises(ValueError, match=f"run `negvae calibrate {images}` first"):
        load_artifact(images).calibrated()


def test_a_detector_takes_a_column_of_groups(place: Path) -> None:
    settings = {"device": "cpu", "epochs": 2, "target_fpr": 0.1}
    good, new = table(600, 0), table(300, 1)
    named = NegVAEDetector(**settings).fit(good, groups="product")
    train, test = (np.stack([part[name].to_numpy().astype(float) for name in "abc"], 1) for part in (good, new))
    plain = NegVAEDetector(**settings).fit(train, groups=good["product"].to_pylist())
    expected = plain.p_values(test, new["product"].to_pylist())
    np.testing.assert_array_equal(named.p_values(new, "product"), expected)
    np.testing.assert_array_equal(named.monitor().update(place / "new.csv", "product").p_values, expected)
    assert named.feature_names_in_.tolist() == ["a", "b", "c"]
    for X, message in ((test, "which X must have"), (new, "its columns are a, product")):
        with pytest.raises(ValueError, match=message):
            named.predict(X, "kind")


def test_folders_name_the_groups_of_a_training_run(capsys, tmp_path: Path) -> None:
    for seed, name in enumerate(("left", "right")):
        (tmp_path / "products" / name).mkdir(parents=True)
        for number, image in enumerate(blobs(40, (1, 28, 28), seed).numpy() // (1 + seed)):
            Image.fromarray(image[0]).save(tmp_path / "products" / name / f"{number:02d}.png")
    code, text, _ = call(
        capsys, "train", "--data", tmp_path / "products", "--out", tmp_path / "run", "--preset", "gray",
        "--epochs", "1", "--calibration", "0.5", "--groups", "folders", "--target-fpr", "0.2", "--device", "cpu",
    )  # fmt: skip
    assert (code, "2 groups, each with its own threshold" in text) == (0, True)
    first = load_artifact(tmp_path / "run", "cpu").calibration
    # Every fifth image is for testing, and half of the others are held out.
    assert sum(len(scores) for scores in first.groups["kl"].values()) == 32
    assert call(capsys, "calibrate", tmp_path / "run")[0] == 0
    assert load_artifact(tmp_path / "run", "cpu").calibration.thresholds == first.thresholds


def test_a_watch_goes_on_with_the_groups_and_sizes_that_it_was_started_with(place: Path, model: Path, tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "new.csv").write_bytes((place / "new.csv").read_bytes())
    given = {"once": True, "settle": 0, "device": "cpu"}
    began = watch(model, str(tmp_path / "in"), tmp_path / "out", groups="product", **given)
    with pytest.raises(ValueError, match="was started with groups product, not None: take another folder"):
        watch(model, str(tmp_path / "in"), tmp_path / "out", **given)
    with pytest.raises(ValueError, match="was started with resize False, not True"):
        watch(model, str(tmp_path / "in"), tmp_path / "out", groups="product", resize=True, **given)
    path = tmp_path / "out" / "state.json"
    state = json.loads(path.read_text())
    assert (state["options"].pop("groups"), state["options"].pop("resize")) == ("product", False)
    path.write_text(json.dumps(state))  # as earlier versions wrote it
    again = watch(model, str(tmp_path / "in"), tmp_path / "out", **given)
    assert again.rows == began.rows > 0


def test_a_column_of_features_names_the_groups_of_a_run_that_is_calibrated_again(capsys, place: Path, tmp_path: Path):
    random = np.random.default_rng(0)
    columns = {name: random.normal(size=400) for name in "ab"}
    data = tmp_path / "lines.csv"
    arrow_csv.write_csv(pa.table({**columns, "line": random.integers(1, 3, size=400)}), data)
    run(preset("features", str(data), epochs=1, device="cpu", calibration=0.5), tmp_path / "run")
    code, _, error = call(capsys, "calibrate", tmp_path / "run", "--groups", "line")
    assert code == 0, error
    calibration = load_artifact(tmp_path / "run", "cpu").calibration
    assert (list(calibration.thresholds), calibration.size) == (["1", "2"], 200)
    arrow_csv.write_csv(pa.table({**columns, "line": random.integers(1, 3, size=400)}), data)
    code, _, error = call(capsys, "calibrate", tmp_path / "run", "--groups", "line")
    assert (code, error.count("\n")) == (2, 1)
    assert "lines.csv has changed since the run was trained" in error
    assert "encoder" not in error
