"""Files for FiftyOne and Label Studio: what their importers ask for, and what the scores say.

Neither tool is installed here; the rules are those of their importers (fiftyone 1.22: `Dataset.from_json` adds no field
that `sample_fields` does not declare; label-studio-sdk 2.1: `LabelInterface.validate_prediction`), which is used where
it is installed.
"""

import importlib.util
import json
import os
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
from PIL import Image

from negvae import NegVAEDetector
from negvae.messages import shown
from negvae.runs import annotation
from negvae.runs.score import score_files
from negvae.runs.train import run
from negvae.training import patches
from tests.cli.test_commands import call
from tests.conftest import blobs
from tests.runs.test_score import rows_of, run_on

FIELDS = ("FloatField", "StringField", "EmbeddedDocumentField(fiftyone.core.labels.{})")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A calibrated run, five images that look like its own, a white one and a broken one."""
    root = tmp_path_factory.mktemp("photos")
    np.save(root / "in.npy", blobs(120, (1, 28, 28)).numpy())
    run(run_on(root / "in.npy", calibration=0.25, negatives="augmented"), root / "run")
    (root / "new").mkdir()
    for number, image in enumerate(blobs(5, (1, 28, 28), 1).numpy()):
        Image.fromarray(image[0]).save(root / "new" / f"a {number}.png")
    Image.fromarray(np.full((28, 28), 255, np.uint8)).save(root / "new" / "white é.PNG")
    (root / "new" / "broken.png").write_bytes(b"not an image")
    return root


def scored(place, form, tmp_path, names=("kl",)):
    """The document, and the same rows as JSON lines by path."""
    files = [tmp_path / "document", tmp_path / "rows.jsonl"]
    for file, name in zip(files, (form, "jsonl"), strict=True):
        score_files(place / "run", [str(place / "new")], file, form=name, names=names, device="cpu")
    return json.loads(files[0].read_text(encoding="utf-8")), {row["path"]: row for row in rows_of(files[1])}


def test_fiftyone_reads_a_sample_for_each_image(place, tmp_path):
    document, rows = scored(place, "fiftyone", tmp_path, ("kl", "bpd"))
    assert document["media_type"] == "image"
    assert document["name"] == "run"
    assert len(document["samples"]) == len(rows) == 7
    declared = {"filepath", "_media_type", "tags", *document["sample_fields"]}
    for sample in document["samples"]:
        row = rows[sample["filepath"]]
        assert sample.keys() <= declared
        assert os.path.isabs(sample["filepath"])
        assert [sample[name] for name in ("kl", "bpd", "p_value", "error")] == [
            row[name] for name in ("kl", "bpd", "p_value", "error")
        ]
        assert sample["tags"] == (["error"] if row["error"] else [])
        label = {None: None, True: "outlier", False: "inlier"}[row["is_outlier"]]
        assert sample.get("decision") == (label and {"_cls": "Classification", "label": label})
    for name, kind in document["sample_fields"].items():
        assert kind.startswith("fiftyone.core.fields.")
        assert kind.removeprefix("fiftyone.core.fields.") in [each.format("Classification") for each in FIELDS], name
    assert {row["is_outlier"] for row in rows.values()} == {None, True, False}


def test_fiftyone_finds_the_heat_maps_as_gray_pictures(place, tmp_path, monkeypatch):
    monkeypatch.setattr(patches, "STEPS", 20)
    images = blobs(60, (1, 16, 16)).numpy()
    NegVAEDetector(epochs=1, target_fpr=0.1, heatmaps=True, random_state=0, device="cpu").fit(images).save(
        tmp_path / "run"
    )
    (tmp_path / "new").mkdir()
    odd = images[0].copy()
    odd[:, 4:9, 4:9] = 255
    Image.fromarray(odd[0]).save(tmp_path / "new" / "odd.png")
    maps = tmp_path / "maps"
    given = [str(tmp_path / "new")]
    score_files(tmp_path / "run", given, tmp_path / "s.json", form="fiftyone", heatmaps=maps, device="cpu")
    document = json.loads((tmp_path / "s.json").read_text())
    assert document["sample_fields"]["heatmap"].endswith("EmbeddedDocumentField(fiftyone.core.labels.Heatmap)")
    (sample,) = document["samples"]
    assert sample["heatmap"] == {"_cls": "Heatmap", "map_path": str(maps / "odd.png"), "range": [0, 255]}
    with Image.open(maps / "odd.png") as gray:
        values = np.asarray(gray)
    assert (gray.mode, gray.size) == ("L", (16, 16))  # FiftyOne takes a pixel's value, not the color of a palette
    score_files(tmp_path / "run", given, tmp_path / "s.csv", heatmaps=tmp_path / "colored", device="cpu")
    with Image.open(tmp_path / "colored" / "odd.png") as colored:
        assert colored.mode == "P"
        assert (np.asarray(colored) == values).all()


@pytest.mark.parametrize("name", ["\u5199\u771f", os.fsdecode(b"\xff")])
def test_a_run_of_any_name_gives_documents_that_the_tools_take(place, tmp_path, name):
    shutil.copytree(place / "run", tmp_path / name)
    for form in annotation.FORMATS:
        score_files(tmp_path / name, [str(place / "new")], tmp_path / form, form=form, names=("kl",), device="cpu")
    document = json.loads((tmp_path / "fiftyone").read_text(encoding="utf-8"))
    assert document["name"] == (f"negvae {name}" if name.isalpha() else shown(name))  # FiftyOne needs a-z or a digit
    assert {
        each["model_version"]
        for task in json.loads((tmp_path / "label-studio").read_text(encoding="utf-8"))
        for each in task.get("predictions", [])
    } == {shown(name)}


@pytest.mark.parametrize("form", annotation.FORMATS)
def test_images_in_a_store_keep_their_uris(form, place, tmp_path):
    uri = f"local://{place / 'new'}"  # a store of fsspec, whose URIs do not stand for paths
    score_files(place / "run", [uri], tmp_path / "document", form=form, names=("kl",), device="cpu")
    document = json.loads((tmp_path / "document").read_text(encoding="utf-8"))
    fiftyone = form == "fiftyone"
    found = document["samples"] if fiftyone else [task["data"] for task in document]
    assert sorted(row["filepath" if fiftyone else "image"] for row in found) == sorted(
        f"{uri}/{each.name}" for each in (place / "new").iterdir()
    )


def test_label_studio_imports_a_task_for_each_image(place, tmp_path):
    tasks, rows = scored(place, "label-studio", tmp_path)
    controls = {each.attrib["name"]: each for each in ET.fromstring(annotation.CONFIGURATION)}
    for task in tasks:
        data = task["data"]
        row = rows[data["path"]]
        assert controls["image"].attrib["value"] == "$image"
        address = urlparse(data["image"])
        assert address.path == "/data/local-files/"
        (inside,) = parse_qs(address.query)["d"]
        assert os.path.samefile(Path(os.path.abspath(os.sep)) / inside, row["path"])
        assert (data["kl"], data["p_value"], data["error"]) == (row["kl"], row["p_value"], row["error"])
        if row["error"]:
            assert "predictions" not in task
            continue
        (prediction,) = task["predictions"]
        assert prediction["score"] == 1 - row["p_value"]
        (region,) = prediction["result"]
        control = controls[region["from_name"]]
        assert (control.tag.lower(), control.attrib["toName"]) == (region["type"], region["to_name"])
        choices = {each.attrib["value"] for each in control}
        (choice,) = region["value"]["choices"]
        assert choice in choices
        assert choice == ("outlier" if row["is_outlier"] else "inlier")
    if importlib.util.find_spec("label_studio_sdk"):
        from label_studio_sdk.label_interface import LabelInterface

        interface = LabelInterface(annotation.CONFIGURATION)
        predictions = [each for task in tasks for each in task.get("predictions", [])]
        assert not any(interface.validate_prediction(each, return_errors=True) for each in predictions)


def test_label_studio_serves_files_below_its_own_folder(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(annotation.DOCUMENT_ROOT, str(place / "new"))
    tasks, _ = scored(place, "label-studio", tmp_path)
    assert tasks[-1]["data"]["image"] == "/data/local-files/?d=white%20%C3%A9.PNG"
    monkeypatch.setenv(annotation.DOCUMENT_ROOT, str(place / "run"))
    out = tmp_path / "tasks.json"
    code, _, error = call(
        capsys, "score", place / "run", place / "new", "--out", out, "--format", "label-studio", "--device", "cpu"
    )
    assert code == 2
    assert f"is not below {annotation.DOCUMENT_ROOT}" in error
    assert not out.exists()


def test_rows_that_are_no_image_files_are_refused(place, tmp_path, capsys):
    out = tmp_path / "s.json"
    for form in annotation.FORMATS:
        options = ["--out", out, "--format", form, "--device", "cpu"]
        code, _, error = call(capsys, "score", place / "run", place / "in.npy", *options)
        assert code == 2
        assert f"in.npy is no image file, as --format {form} needs" in error
        assert not out.exists()


def test_a_model_without_calibration_gives_no_decision(place, tmp_path):
    run(run_on(place / "in.npy", negatives="none"), tmp_path / "plain")
    inputs = [str(place / "new" / "a 0.png")]
    for form in annotation.FORMATS:
        score_files(tmp_path / "plain", inputs, tmp_path / form, form=form, device="cpu")
    (sample,) = json.loads((tmp_path / "fiftyone").read_text())["samples"]
    assert sample["p_value"] is None
    assert "decision" not in sample
    (task,) = json.loads((tmp_path / "label-studio").read_text())
    assert "predictions" not in task
    assert task["data"]["kl"] == sample["kl"] is not None
