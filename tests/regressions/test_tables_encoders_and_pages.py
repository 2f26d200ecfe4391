"""Faults of tables with text and bytes, of encoders, of photos with odd tags or no disk, and of the tables' pages."""

import errno
import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import ExifTags, Image

from negvae.config import preset
from negvae.data import embedding, folders
from negvae.data.folders import read_photos
from negvae.data.rows import load_rows
from negvae.data.tables import is_table
from negvae.decoding import Decoding
from negvae.paper import unsupervised as beyond
from negvae.paper import unsupervised_show
from negvae.paper.profiles import PROFILES, parse_seeds
from negvae.runs.artifact import load_artifact
from negvae.runs.embed import encoder_of, read_feature_rows
from negvae.runs.train import run
from tests.data.test_embedding import write_encoder

ROWS = np.random.default_rng(0).normal(size=(20_000, 3))


def test_rows_of_a_csv_file_may_hold_text_of_several_lines(tmp_path):
    table = pd.DataFrame(ROWS, columns=list("abc"))
    table["note"] = "line one\nline two, with comma\n\nmore " + "x" * 60
    table.to_csv(tmp_path / "notes.csv", index=False)
    assert (tmp_path / "notes.csv").stat().st_size > 3 << 20
    np.testing.assert_allclose(load_rows(tmp_path / "notes.csv", columns=["a", "b", "c"]), ROWS)


@pytest.mark.parametrize("count", [30, 30_000])
def test_a_quotation_mark_that_is_never_closed_is_refused_and_not_a_short_table(tmp_path, count):
    lines = [f"{row}.5,2,{'x' * 80}" for row in range(count)]
    lines[count // 2] = '1,2,"open'
    (tmp_path / "open.csv").write_text("\n".join(["a,b,note", *lines, ""]))
    behind = count - count // 2 - 1
    with pytest.raises(ValueError, match=f"mark in its last column is not closed, so that {behind:,} lines"):
        load_rows(tmp_path / "open.csv", columns=["a", "b"])
    lines[count // 2] = '1,2,"closed\n"'
    lines.append('1,2,"closed\n\n"\n')
    (tmp_path / "closed.csv").write_text("\n".join(["a,b,note", *lines, ""]))
    assert load_rows(tmp_path / "closed.csv", columns=["a", "b"]).shape == (count + 1, 2)


def test_bytes_in_a_table_of_numbers_are_images_only_if_they_are_some(tmp_path):
    table = pd.DataFrame(ROWS[:20], columns=list("abc"))
    table.assign(id=[None] + [b"\x00\xff"] * 19).to_parquet(tmp_path / "ids.parquet")
    assert is_table(tmp_path / "ids.parquet")
    with pytest.raises(ValueError, match=r"column 'id' holds binary, and features are numbers.* leave it out"):
        load_rows(tmp_path / "ids.parquet")
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    encoded = (tmp_path / "one.png").read_bytes()
    table.assign(photo=[encoded] * 20).to_parquet(tmp_path / "photos.parquet")
    pd.DataFrame({"scan": [b"broken"] * 3, "label": [0, 1, 2]}).to_parquet(tmp_path / "labels.parquet")
    table.assign(image=[b"broken"] * 20).to_parquet(tmp_path / "named.parquet")
    assert not any(is_table(tmp_path / f"{name}.parquet") for name in ("photos", "labels", "named"))


def test_a_large_array_in_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("negvae.data.formats.npy.MAP_BYTES", 100)
    np.save(tmp_path / "rows.npy", ROWS[:50])
    np.testing.assert_array_equal(load_rows("~/rows.npy"), ROWS[:50])


PHOTO = Decoding(fit="pad", height=16, width=16, channels=3)


def test_damaged_tags_of_a_photo_with_sound_pixels_leave_it_upright(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    image.save(tmp_path / "sound.jpg")
    image.save(tmp_path / "damaged.jpg", exif=b"Exif\0\0garbage garbage")
    found = read_photos([str(tmp_path / name) for name in ("sound.jpg", "damaged.jpg")], PHOTO, "photos")
    assert not found.broken
    np.testing.assert_array_equal(found.inputs[0], found.inputs[1])


def test_photos_are_decoded_where_the_cache_has_no_room_for_them(tmp_path, monkeypatch):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    monkeypatch.setenv("NEGVAE_CACHE", str(tmp_path / "cache"))
    kept = folders._kept

    class Full:
        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    @contextmanager
    def full(entry):
        with kept(entry) as (file, path):
            yield (file, path) if entry is None else (Full(), path)

    monkeypatch.setattr(folders, "_kept", full)
    found = read_photos([str(tmp_path / "red.png")], PHOTO, "photos")
    assert found.inputs[0, 0].min() == 255
    assert not list((tmp_path / "cache").rglob("*.pixels"))


# --- encoders -----


def test_patches_of_an_encoder_with_channels_last_are_averaged_over_their_places():
    last = np.random.default_rng(0).random((1, 7, 7, 20))
    first = last.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(embedding._channels_first(last), first)
    np.testing.assert_array_equal(embedding._channels_first(first), first)
    np.testing.assert_allclose(embedding._pooled(first), last[0].mean((0, 1)))


def test_an_encoder_with_channels_last_gives_patches_too(tmp_path):
    """Its map was left out, and heat maps then asked for an encoder that gives a map."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    last = embedding.load_encoder(write_encoder(tmp_path / "last.onnx", ("n", 8, 8, 3), "map"))
    first = embedding.load_encoder(write_encoder(tmp_path / "first.onnx", output="map"))
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8)
    assert last.channels_last
    assert np.array_equal(list(last.patches(images)), list(first.patches(images)))
    np.testing.assert_allclose(last.rows(images), first.rows(images))


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return write_encoder(tmp_path / "encoder.onnx")


def photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for place in range(count):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{place:02}.png")
    return folder


def test_photos_are_turned_as_their_tags_say_before_they_are_encoded(tmp_path, encoder):
    image = Image.open(photos(tmp_path / "one", 1) / "00.png")
    for folder, turned in (("plain", False), ("tagged", True)):
        (tmp_path / folder).mkdir()
        exif = Image.Exif()
        if turned:
            exif[ExifTags.Base.Orientation] = 6
        stored = image.transpose(Image.Transpose.ROTATE_90) if turned else image
        for place in range(3):
            stored.save(tmp_path / folder / f"{place}.jpg", exif=exif, quality=100, subsampling=0)
    used = embedding.load_encoder(encoder)
    plain, tagged = (read_feature_rows(str(tmp_path / name), used).rows for name in ("plain", "tagged"))
    torch.testing.assert_close(plain, tagged, atol=0.05, rtol=0)


def test_a_run_keeps_the_way_in_which_its_photos_were_turned(tmp_path, encoder):
    data = photos(tmp_path / "good", 60)
    config = preset("features", str(data), embed=str(encoder), epochs=1, device="cpu", negatives="augmented")
    run(config, tmp_path / "run")
    artifact = load_artifact(tmp_path / "run")
    assert encoder_of(artifact).upright
    del artifact.provenance["encoder"]["upright"]  # as of a run of an earlier version
    assert not encoder_of(artifact).upright


def test_a_broken_photo_and_a_table_of_scores_beside_photos_are_left_out_and_named(tmp_path, encoder):
    data = photos(tmp_path / "good", 60)
    (data / "07.png").write_bytes(b"broken")
    pd.DataFrame({"p_value": [0.5]}).to_parquet(data / "scores.parquet")
    config = preset("features", str(data), embed=str(encoder), epochs=1, device="cpu", negatives="augmented")
    run(config, tmp_path / "run")
    lines = (tmp_path / "run" / "broken.tsv").read_text().splitlines()
    assert [Path(line.split("\t")[0]).name for line in lines[1:]] == ["07.png", "scores.parquet"]
    for place in range(10, 20):
        (data / f"{place}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"12 of 61 images cannot be read, more than 10%"):
        run(config, tmp_path / "again")


# --- tables of the paper's runs and of those beyond it -----


def test_figures_that_are_not_finite_are_shown_as_none(tmp_path):
    setting = beyond.make("fashion-mnist", beyond.MAIN)
    areas = {f"auc_{name}": 0.5 for name in ("combined", "prior_ratio", "dose", "kl")}
    result = {
        "seed": 0, "evaluation": {name: {**areas, "auc_combined": "nan"} for name in beyond.ood_sets("fashion-mnist")},
        "nats_per_dim_test": "inf", "proxies": {"turned": {"combined": "nan", "prior_ratio": 0.5}}, "notes": [],
        "config": {"negatives": "augmented"}, "provenance": {"device": "cpu", "commit": "abc"},
    }  # fmt: skip
    found = unsupervised_show.RunResults()
    for each in beyond.settings():
        found[each] = [dict(result), dict(result, seed=1)] if each.data == setting.data else []
    for sheet in unsupervised_show.sheets(found):
        assert sheet.rows is not None
    assert unsupervised_show.goals(found).rows[0][3] == "-"


@pytest.mark.parametrize("text", ["99999999999999999999", "9" * 5000, "1001", "0,99999999999"])
def test_an_absurd_count_of_seeds_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match="must be a count such as 3, at most 1,000, or a list") as caught:
        parse_seeds(text, PROFILES["cpu"])
    assert len(str(caught.value)) < 250


def test_results_of_further_seeds_are_gathered(tmp_path):
    profile = PROFILES["cpu"]
    kept = Path("results/cpu.jsonl").read_text(encoding="utf-8").splitlines()
    line = next(json.loads(each) for each in kept if '"fashion-mnist-unsupervised-seed0"' in each)
    line |= {"name": "fashion-mnist-unsupervised-seed7", "seed": 7}
    line["config"]["seed"] = 7
    (tmp_path / "cpu.jsonl").write_text("\n".join([*kept, json.dumps(line)]) + "\n", encoding="utf-8")
    found = unsupervised_show.gather(profile, tmp_path)
    assert [each["seed"] for each in found[beyond.make("fashion-mnist", beyond.MAIN)]] == [0, 1, 2, 3, 4, 7]
