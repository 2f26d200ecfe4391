"""Regressions: which images a run may be calibrated and tested on, and what a run leaves behind."""

import dataclasses
import json
import os

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from negvae import NegVAEDetector
from negvae.runs import artifact, train
from negvae.runs.artifact import WEIGHTS, load_artifact
from negvae.runs.calibrate import calibrate_run
from negvae.runs.defects import defects_table
from negvae.runs.evaluate import evaluate_run, evaluation_table
from negvae.runs.recorded import INLIERS, read_recorded
from negvae.runs.resolve import LEAST_STEPS, fill_in
from negvae.runs.sets import load_inliers
from negvae.runs.train import run
from tests.cli.test_commands import call
from tests.conftest import blobs, calibrated_run, small_run

SHAPE = (1, 28, 28)
FIT = {"epochs": 1, "batch_size": 16, "precision": "float32", "device": "cpu", "preset": "gray", "random_state": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Inliers in a file, other inliers, and a folder of images."""
    place = tmp_path_factory.mktemp("place")
    np.save(place / "x.npy", blobs(96, SHAPE).numpy())
    np.save(place / "out.npy", (255 - blobs(20, SHAPE)).numpy())
    np.save(place / "more.npy", blobs(40, SHAPE, 1).numpy())
    (place / "photos").mkdir()
    for number, image in enumerate(blobs(95, SHAPE, 2)):
        Image.fromarray(image[0].numpy()).save(place / "photos" / f"{number:03}.png")
    return place


@pytest.fixture(scope="module")
def by_path(place):
    NegVAEDetector(**FIT, target_fpr=0.1).fit(str(place / "x.npy")).save(place / "by-path")
    return place / "by-path"


@pytest.fixture(scope="module")
def by_array(place):
    NegVAEDetector(**FIT, target_fpr=0.1, decision_score="kl").fit(blobs(96, SHAPE)).save(place / "by-array")
    return place / "by-array"


def sets(images):
    return {np.asarray(image).tobytes() for image in images}


def test_a_detector_fitted_by_path_is_calibrated_on_what_it_held_out_only(by_path, place):
    artifact = load_artifact(by_path)
    recorded = read_recorded(by_path, artifact.provenance)
    assert (recorded.source, len(recorded.held_out)) == ("whole", 19)
    inliers = load_inliers(artifact.config, recorded=recorded)
    everything = np.load(place / "x.npy")
    assert sets(inliers.held_out) == sets(everything[list(recorded.held_out)])
    assert not sets(inliers.held_out) & sets(inliers.training)
    before = artifact.calibration
    after = calibrate_run(by_path)
    assert after.size == before.size == 19
    np.testing.assert_allclose(after.scores["kl"], before.scores["kl"], rtol=1e-6)
    with pytest.raises(ValueError, match=r"x\.npy .*all of it was trained on.*--data"):
        evaluate_run(by_path, [str(place / "out.npy")])
    evaluate_run(by_path, [str(place / "out.npy")], data=str(place / "more.npy"))


def test_a_detector_fitted_on_an_array_is_calibrated_and_evaluated_with_data(by_array, place, capsys):
    more = place / "more.npy"
    code, _, error = call(capsys, "evaluate", by_array, "--ood", place / "out.npy")
    assert code == 2
    assert "in memory" in error
    assert "--data" in error
    code, text, _ = call(capsys, "evaluate", by_array, "--ood", place / "out.npy", "--data", more)
    assert code == 0
    assert "40 images" in text
    code, _, error = call(capsys, "calibrate", by_array)
    assert code == 2
    assert "--data" in error
    reference = load_artifact(by_array).calibration.reference
    code, text, _ = call(capsys, "calibrate", by_array, "--data", more)
    assert code == 0
    calibration = load_artifact(by_array).calibration
    assert (calibration.score, calibration.target_fpr, calibration.size) == ("kl", 0.1, 40)
    for name, values in reference.scales.items():
        np.testing.assert_array_equal(calibration.reference.scales[name], values)
    code, _, error = call(capsys, "calibrate", by_array, "--data", more, "--precision", "int8")
    assert code == 2
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ({"decision_score": "kl", "target_fpr": 0.2}, ("kl", 0.2, 0.0)),
        ({"decision_score": "bpd", "contamination": 0.1}, ("bpd", None, 0.1)),
        ({"decision_score": "bpd", "target_fpr": None}, ("bpd", None, 0.0)),
    ],
)
def test_calibrating_anew_keeps_the_rule(place, tmp_path, rule, kept):
    detector = NegVAEDetector(**{**FIT, **rule}).fit(str(place / "x.npy"))
    detector.save(tmp_path / "run")
    for data in (None, str(place / "more.npy")):
        found = calibrate_run(tmp_path / "run", data)
        assert (found.score, found.target_fpr, found.contamination) == kept
    assert calibrate_run(tmp_path / "run", target_fpr=0.3).target_fpr == 0.3
    assert calibrate_run(tmp_path / "run", score="kl").score == "kl"


def test_a_file_that_is_added_changed_or_gone_is_named(place, tmp_path):
    photos = place / "photos"
    config = dataclasses.replace(small_run(epochs=1, calibration=0.25), data=str(photos))
    run(config, tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / INLIERS).read_text())
    assert len(recorded["files"]) == 95
    assert all(len(digest) == 64 for digest in (recorded["sha256"], *recorded["files"].values()))
    assert len(recorded["held_out"]) == 19
    assert evaluate_run(tmp_path / "run", [str(place / "out.npy")])["rows"]
    extra, changed = photos / "0005.png", photos / "007.png"
    kept = changed.read_bytes()

    def add():
        Image.fromarray(np.zeros((28, 28), np.uint8)).save(extra)

    spoil = {"0005.png is new": add, "007.png is gone": changed.unlink,
             "007.png is another": lambda: changed.write_bytes((photos / "000.png").read_bytes())}  # fmt: skip
    for says, break_it in spoil.items():
        break_it()
        with pytest.raises(ValueError, match=f"photos has changed.*{says}"):
            calibrate_run(tmp_path / "run", target_fpr=0.2)
        with pytest.raises(ValueError, match="photos has changed"):
            evaluate_run(tmp_path / "run", [str(place / "out.npy")])
        with pytest.raises(ValueError, match=f"photos has changed.*{says}"):
            run(dataclasses.replace(config, epochs=2), tmp_path / "run", resume=True)
        extra.unlink(missing_ok=True)
        changed.write_bytes(kept)
    assert calibrate_run(tmp_path / "run", target_fpr=0.2).size == 19


def test_few_images_get_enough_steps_by_every_door(place, tmp_path, monkeypatch):
    """Command line, detector and cluster ask the same function, and what a person has fixed stays."""
    config = small_run("pyramid", epochs=6, batch_size=160)
    assert fill_in(config, 160, ()) == config
    filled = fill_in(config, 160, ("batch_size", "epochs"))
    assert (filled.batch_size, filled.epochs) == (20, 125)
    assert filled.epochs * (160 // filled.batch_size) >= LEAST_STEPS
    assert fill_in(config, 160, ("epochs",)).batch_size == 160
    assert fill_in(config, 160, ("epochs",)).epochs == LEAST_STEPS
    assert fill_in(config, 160, ("batch_size",)).epochs == 6
    assert fill_in(config, 10**6, ("batch_size", "epochs")) == config
    warned = []
    fill_in(config, 160, ("batch_size",), warn=warned.append)
    assert len(warned) == 1
    assert "48 training steps are few: 125 epochs" in warned[0]
    # The command line and the detector come to the same run.
    seen = []

    def stop(configs, *arguments, **options):
        seen.extend(configs)
        raise ValueError("seen")

    monkeypatch.setattr("negvae.runs.train.train_seeds", stop)
    monkeypatch.setattr("negvae.detector.fitting.train", lambda config, *a, **o: stop([config]))
    from negvae.cli.train import _described

    described, left_open = _described(tmp_path / "out", "gray", {"data": str(place / "x.npy")}, False)
    assert left_open == ["batch_size", "epochs", "network", "calibration"]  # no transformations: not by this preset
    with pytest.raises(ValueError, match="seen"):
        run(described, tmp_path / "out", left_open=left_open, trainer=stop)
    with pytest.raises(ValueError, match="seen"):
        NegVAEDetector(preset="gray", target_fpr=0.2).fit(blobs(77, SHAPE))
    for found in seen:
        training = {seen[0].data: 77}.get(found.data, 62)
        assert found.epochs * (training // found.batch_size) >= LEAST_STEPS
    assert not (tmp_path / "out").exists()


def test_what_a_person_fixed_and_is_too_little_is_warned_of(place, capsys):
    with pytest.warns(UserWarning, match="4 training steps are few"):
        NegVAEDetector(**{**FIT, "target_fpr": 0.1}).fit(blobs(90, SHAPE))
    code, text, _ = call(
        capsys, "train", "--data", place / "x.npy", "--preset", "gray", "--epochs", 1, "--batch-size", 16,
        "--precision", "float32", "--out", place / "few",
    )  # fmt: skip
    assert code == 0
    assert "4 training steps are few" in text


@pytest.mark.parametrize("fields", [{"network": "color"}, {"network": "gray-paper", "likelihood": "gaussian"}])
def test_a_refused_run_leaves_nothing(tmp_path, fields):
    np.save(tmp_path / "x.npy", blobs(20, (1, 20, 20)).numpy())
    config = dataclasses.replace(small_run("pyramid", epochs=1), data=str(tmp_path / "x.npy"))
    with pytest.raises(ValueError, match="made for"):
        run(dataclasses.replace(config, **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()

    def refuses(*arguments, **options):
        raise ValueError("no workers")

    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="no workers"):
        run(config, tmp_path / "run", trainer=refuses)
    assert os.listdir(tmp_path / "run") == []
    run(config, tmp_path / "run")


def test_equal_runs_have_equal_bytes(tmp_path):
    np.save(tmp_path / "x.npy", blobs(30, SHAPE).numpy())
    config = dataclasses.replace(small_run(epochs=1, calibration=0.2), data=str(tmp_path / "x.npy"))
    for name in ("a", "b", "c"):
        run(config, tmp_path / name)
    for file in (WEIGHTS, "calibration.safetensors", INLIERS):
        assert len({(tmp_path / name / file).read_bytes() for name in ("a", "b", "c")}) == 1


def test_another_user_may_read_what_was_trained(tmp_path):
    before = os.umask(0o022)
    try:
        np.save(tmp_path / "x.npy", blobs(20, SHAPE).numpy())
        run(dataclasses.replace(small_run(epochs=1), data=str(tmp_path / "x.npy")), tmp_path / "run")
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "run").iterdir()} == {"0o644"}


def test_weights_that_may_not_be_read_are_called_so(tmp_path, request):
    np.save(tmp_path / "x.npy", blobs(20, SHAPE).numpy())
    run(dataclasses.replace(small_run(epochs=1), data=str(tmp_path / "x.npy")), tmp_path / "run")
    (tmp_path / "run" / WEIGHTS).chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != folder.parent:
            folder.chmod(folder.stat().st_mode | 0o055)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match="weights"):
            load_artifact(tmp_path / "run")
    finally:
        os.seteuid(os.getuid())


def test_two_trainings_of_one_folder_do_not_mix(tmp_path, monkeypatch):
    """The second begins while the first has read its data, and while it trains."""
    np.save(tmp_path / "in.npy", blobs(40, (1, 28, 28)).numpy())
    config = dataclasses.replace(small_run(epochs=1), data=str(tmp_path / "in.npy"))
    resolve, said = train.resolve, []
    words = "run is being trained or calibrated by another process: wait, or take another folder"

    def second(*args):
        monkeypatch.setattr(train, "resolve", resolve)
        for resume in (False, True):
            with pytest.raises(ValueError, match=words) as refused:
                train.run(config, tmp_path / "run", resume=resume)
            said.append(str(refused.value))
        return resolve(*args)

    monkeypatch.setattr(train, "resolve", second)
    train.run(config, tmp_path / "run")
    assert len(said) == 2
    assert not (tmp_path / "run" / train.LOCK).exists()
    with pytest.raises(ValueError, match="already holds a run"):
        train.run(config, tmp_path / "run")
    with pytest.raises(FileNotFoundError):
        train.run(dataclasses.replace(config, data=str(tmp_path / "none.npy")), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / train.LOCK).touch()
    train.run(config, tmp_path / "killed")


def test_a_run_that_another_process_trains_is_not_calibrated(tmp_path):
    """Else the scores of the former weights would be taken for those of the new ones that the other process writes."""
    place = calibrated_run(tmp_path)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    words = "run is being trained or calibrated by another process: wait until it has ended"
    with artifact.alone(place), pytest.raises(ValueError, match=words):
        calibrate_run(place, target_fpr=0.2)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    assert calibrate_run(place, target_fpr=0.2).target_fpr == 0.2
    assert not (place / artifact.LOCK).exists()
    with pytest.raises(FileNotFoundError, match="no such folder"):
        calibrate_run(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_more_samples_change_the_figures_of_bpd_and_not_the_alarms(place, tmp_path):
    NegVAEDetector(**FIT, target_fpr=0.2, decision_score="bpd").fit(blobs(96, SHAPE)).save(tmp_path / "run")
    given = {"data": str(place / "more.npy"), "device": "cpu"}
    (one,), (eight,) = (
        evaluate_run(tmp_path / "run", [str(place / "out.npy")], samples=samples, **given)["rows"] for samples in (1, 8)
    )
    assert eight.keys() == one.keys()
    assert eight["metrics"].keys() == one["metrics"].keys()
    assert eight["nats_per_dim_test"] != one["nats_per_dim_test"]
    assert [eight[f"alarms_{part}"] for part in ("test", "ood")] == [one[f"alarms_{part}"] for part in ("test", "ood")]


@pytest.mark.parametrize(
    ("name", "printed"), [("odd[bold]", "odd[bold]"), ("odd[/]", "odd[/]"), (os.fsdecode(b"odd-\xe9"), r"odd-\xe9")]
)
def test_tables_of_evaluations_show_the_names_of_folders_as_they_are(name, printed):
    figures = {f"auc_{score}": 0.5 for score in ("bpd", "kl", "prior_ratio")}
    row = {"ood": name, "served_as_negatives": False, "metrics": {"kl": {"fpr_at_95_tpr": 1.0}}}
    row |= figures | {f"{key}_ci": (0.4, 0.6) for key in figures} | {"nats_per_dim_test": 1.0, "nats_per_dim_ood": 1.0}
    sets = {"train": name, "negatives": "none", "likelihood": "bernoulli", "score": "kl", "target_fpr": None}
    kinds = {name: {"images": 3, "auroc": 0.5, "auroc_defects": None}}
    defects = {"train": name, "score": "kl", "kinds": kinds, "pixel_auroc": None, "pro": None}
    for table in (evaluation_table({**sets, "rows": [row]}), defects_table(defects)):
        console = Console(width=160)
        with console.capture() as found:
            console.print(table)
        assert found.get().count(printed) == 2, found.get()
