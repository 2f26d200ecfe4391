"""The service over HTTP: scores are those of `negvae score`, clients work unchanged, and rude ones do no harm."""

import base64
import gzip
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from benchmarks.serve import encoded, form_body, fuzz, infer_body
from PIL import Image

from negvae.cli import main
from negvae.data.batches import InputSpec
from negvae.decoding import Decoding
from negvae.detector import NegVAEDetector
from negvae.runs.artifact import load_artifact, save_calibration
from negvae.scoring.heatmaps import LARGEST
from negvae.service import inference, inspection, protocol, run_model, scoring, uploads
from negvae.service.batching import ScoredBatch
from negvae.service.guard import Guard, Refused
from negvae.service.inspection import described
from negvae.service.metrics import ServiceMetrics
from negvae.service.models import Inputs, Slot
from negvae.service.onnx_model import load_onnx
from negvae.service.settings import ServiceSettings
from tests.conftest import blobs
from tests.service.conftest import SHAPE, served

FOLDER = {"a.png": "PNG", "b.jpg": "JPEG", "c.bmp": "BMP"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of several formats, one of another size, and one that is none."""
    place = tmp_path_factory.mktemp("images")
    for number, (name, form) in enumerate(FOLDER.items()):
        (place / name).write_bytes(encoded(blobs(1, SHAPE, number)[0].numpy(), form))
    (place / "d.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    Image.new("RGB", (40, 30), (9, 99, 199)).save(place / "e.png")
    return place


def score(live, model, files, query=""):
    body, headers = form_body(files)
    status, answer = live.ask("POST", f"/v1/score?model={model}{query}", body, headers)
    return status, json.loads(answer)


def rows_of_cli(capsys, *arguments):
    sys.argv = ["negvae", "score", *map(str, arguments)]
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("resize", [False, True])
def test_a_folder_scores_as_the_command_line_does_to_the_last_digit(live, models, folder, capsys, monkeypatch, resize):
    monkeypatch.setattr(sys, "argv", [])
    wanted = rows_of_cli(capsys, models["gray"], folder, *(["--resize"] if resize else []))
    files = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
    status, answer = score(live, "gray", files, f"&resize={str(resize).lower()}")
    assert status == 200
    assert len(wanted) == len(files)
    for row, image in zip(wanted, answer["images"], strict=True):
        assert (row[answer["score"]], row["p_value"], row["is_outlier"]) == (
            image["score"], image["p_value"], image["is_outlier"],
        )  # fmt: skip
        assert (row["error"] is None) == (image["error"] is None)
    assert [bool(image["error"]) for image in answer["images"]] == [False, False, False, True, not resize]
    exported = score(live, "gray-onnx", files, f"&resize={str(resize).lower()}")[1]["images"]
    good = [(a["score"], b["score"]) for a, b in zip(answer["images"], exported, strict=True) if not a["error"]]
    np.testing.assert_allclose(*zip(*good, strict=True), rtol=1e-3)


def test_rows_of_features_score_as_the_command_line_does(live, models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    rows = np.random.default_rng(1).normal(5, [2, 20, 3, 1], (20, 4))
    np.save(tmp_path / "rows.npy", rows)
    wanted = rows_of_cli(capsys, models["rows"], tmp_path / "rows.npy")
    body = (tmp_path / "rows.npy").read_bytes()
    found = score(live, "rows", [("rows.npy", body)])[1]
    assert [row[found["score"]] for row in wanted] == [image["score"] for image in found["images"]]
    assert [row["p_value"] for row in wanted] == [image["p_value"] for image in found["images"]]
    tensor = {"name": "rows", "shape": [20, 4], "datatype": "FP64", "data": rows.tolist()}
    for name in ("rows", "rows-onnx"):
        status, answer = live.ask("POST", f"/v2/models/{name}/infer", json.dumps({"inputs": [tensor]}).encode())
        assert status == 200
        np.testing.assert_allclose(
            json.loads(answer)["outputs"][0]["data"], [row[found["score"]] for row in wanted], rtol=1e-3
        )
    wrong = {"cut.npy": body[:-8], "huge.npy": body.replace(b"(20, 4)", b"(2e9,4)"), "image.png": b"\x89PNG"}
    for name, content in wrong.items():
        assert score(live, "rows", [(name, content)])[1]["images"][0]["error"]


def test_images_of_photos_are_resized_where_the_command_line_resizes_them(live):
    decoding = Decoding(fit="exact", height=28, width=28, channels=1)
    model = SimpleNamespace(spec=InputSpec(SHAPE, decoding=decoding))
    assert live.service.spec(model, True).decoding == replace(decoding, fit="resize")
    assert live.service.spec(model, None).decoding == decoding


def test_triton_s_client_works_unchanged(live):
    http = pytest.importorskip("tritonclient.http")
    client = http.InferenceServerClient(f"127.0.0.1:{live.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("gray", "1")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "model_repository"]
    assert client.get_model_metadata("rows")["inputs"] == [{"name": "rows", "datatype": "FP64", "shape": [-1, 4]}]
    images = blobs(5, SHAPE, 3).numpy()
    wanted = NegVAEDetector.load(live.service.slots["gray"].path).ood_score(images)
    tensor = http.InferInput("images", list(images.shape), "UINT8")
    for binary in (True, False):
        tensor.set_data_from_numpy(images, binary_data=binary)
        result = client.infer("gray", [tensor], request_id="7", request_compression_algorithm="gzip")
        assert result.get_response()["id"] == "7"
        np.testing.assert_array_equal(result.as_numpy("score"), wanted)
        asked = [http.InferRequestedOutput("is_outlier", binary_data=binary)]
        assert client.infer("gray", [tensor], outputs=asked).as_numpy("is_outlier").dtype == bool
    client.unload_model("gray-onnx")
    assert not client.is_model_ready("gray-onnx")
    with pytest.raises(Exception, match="not loaded"):
        client.infer("gray-onnx", [tensor])
    for path, body in (("index", b'{"ready": 3}'), ("models/gray-onnx/load", b'{"parameters": {"config": "{}"}}')):
        assert live.ask("POST", f"/v2/repository/{path}", body)[0] == 400
    listed = json.loads(live.ask("POST", "/v2/repository/index", b'{"ready": true}')[1])
    assert {each["name"] for each in listed} == {*live.service.slots} - {"gray-onnx"}
    client.load_model("gray-onnx")
    assert {each["state"] for each in client.get_model_repository_index()} == {"READY"}


def test_a_reload_loses_no_request(live):
    body, headers = infer_body(blobs(1, SHAPE).numpy())
    found, done = [], threading.Event()

    def ask():
        while not done.is_set():
            found.append(live.ask("POST", "/v2/models/gray/infer", body, headers))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        assert live.ask("POST", "/v2/repository/models/gray/load")[0] == 200
    done.set()
    for thread in threads:
        thread.join()
    assert {status for status, _ in found} == {200}
    assert len({answer for _, answer in found}) == 1


def test_a_model_that_cannot_be_loaded_again_stays_as_it_is(models, tmp_path):
    copy = tmp_path / "guard.onnx"
    copy.write_bytes(models["gray-onnx"].read_bytes())
    with served({"guard": copy}) as live:
        copy.write_bytes(b"no model")
        status, answer = live.ask("POST", "/v2/repository/models/guard/load")
        assert (status, b"stays as it is" in answer) == (400, True)
        assert score(live, "guard", [("a.png", encoded(blobs(1, SHAPE)[0].numpy()))])[0] == 200


def test_an_exported_file_whose_content_has_changed_is_served_without_its_checksum_alone(models, tmp_path):
    onnx = pytest.importorskip("onnx")
    content, copy = models["gray-onnx"].read_bytes(), tmp_path / "guard.onnx"
    model = onnx.load(models["gray-onnx"])
    weights = max((tensor.raw_data for tensor in model.graph.initializer), key=len)
    threshold = next(each.value for each in model.metadata_props if each.key == "threshold").encode()
    for part in (weights, threshold):
        assert content.count(part) == 1
        last = content.index(part) + len(part) - 1
        digit = b"2" if content[last : last + 1] == b"1" else b"1"
        copy.write_bytes(content[:last] + digit + content[last + 1 :])
        with pytest.raises(
            ValueError, match=r"guard\.onnx: its content has changed since it was exported: run `negvae"
        ):
            load_onnx(copy, 1)
    kept = [each for each in model.metadata_props if each.key != "sha256"]  # as docs/export.md says
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, copy)
    assert load_onnx(copy, 1).calibration.threshold == load_onnx(models["gray-onnx"], 1).calibration.threshold


def test_an_exported_file_whose_name_is_not_utf_8_is_served(models, tmp_path):
    copy = tmp_path / os.fsdecode(b"guard-\xff.onnx")
    copy.write_bytes(models["gray-onnx"].read_bytes())
    assert load_onnx(copy, 1).calibration.threshold == load_onnx(models["gray-onnx"], 1).calibration.threshold


def test_a_reload_with_another_rate_counts_alarms_by_that_rate(models, tmp_path):
    place = shutil.copytree(models["rows"], tmp_path / "rows")
    slot = Slot("rows", place)
    slot.load(1, 0.01)
    metrics, rows = ServiceMetrics({"rows": slot}, lambda: 0), np.random.default_rng(1).normal(5, 3, (50, 4, 1, 1))
    metrics.on_batch(ScoredBatch(slot, slot.model, slot.model.scores(Inputs(rows))))
    ranks = slot.monitor.ranks
    save_calibration(place, load_artifact(place).calibrated().decide_by(target_fpr=0.5))
    slot.load(1, 0.01)
    assert slot.monitor.ranks is ranks
    inliers = np.random.default_rng(2).normal(5, [1, 20, 3, 0.1], (50, 4)).reshape(50, 4, 1, 1)
    scores, before = slot.model.scores(Inputs(inliers)), slot.monitor.outliers
    metrics.on_batch(ScoredBatch(slot, slot.model, scores))
    assert slot.monitor.outliers - before == slot.model.calibration.is_outlier(scores).sum() > 10
    assert slot.monitor.seen == 100


def test_scores_of_a_model_that_was_replaced_meanwhile_are_counted_by_its_own_threshold(models, tmp_path):
    place = shutil.copytree(models["rows"], tmp_path / "rows")
    slot = Slot("rows", place)
    slot.load(1, 0.01)
    metrics, former = ServiceMetrics({"rows": slot}, lambda: 0), slot.model
    held_out = former.calibration.scores[former.calibration.score].astype(np.float32)
    save_calibration(place, load_artifact(place).calibrated().decide_by(score="kl", target_fpr=0.2))
    slot.load(1, 0.01)
    metrics.on_batch(ScoredBatch(slot, former, held_out))
    assert (slot.monitor.seen, slot.monitor.outliers) == (0, 0)
    called = former.calibration.is_outlier(held_out).sum()
    assert f'negvae_alarms_total{{model="rows"}} {float(called)}\n' in metrics.text().decode()
    assert f'negvae_images_total{{model="rows"}} {float(len(held_out))}\n' in metrics.text().decode()


@pytest.mark.parametrize("kind", ["grouped", "grouped-onnx"])
def test_alarms_of_a_named_group_are_counted_by_its_threshold(models, tmp_path, kind):
    rows = np.random.default_rng(3).normal([8, 6, 23, 8], [2, 2, 10, 2], (200, 4))
    np.save(tmp_path / "rows.npy", rows)
    content, found = (tmp_path / "rows.npy").read_bytes(), {}
    with served({"m": models[kind]}, max_body=2_000_000) as live:
        for group in ("", "a b", "c"):
            option = f"&group={group.replace(' ', '%20')}" if group else ""
            status, answer = score(live, "m", [("rows.npy", content)], option)
            assert status == 200, answer
            found[group] = sum(row["is_outlier"] for row in answer["images"])
        assert found["a b"] != found["c"]
        text, until = "", time.monotonic() + 60
        while f'negvae_alarms_total{{model="m"}} {float(sum(found.values()))}\n' not in text:
            assert time.monotonic() < until, (found, text)
            text = live.ask("GET", "/metrics")[1].decode()


def test_a_file_with_groups_certifies_what_its_folder_does(models):
    folder = Slot("a", models["grouped"])
    file = Slot("b", models["grouped-onnx"])
    for slot in (folder, file):
        slot.load(1, 0.01)
    wanted, found = (described(slot.model) for slot in (folder, file))
    assert found["certificate"] == wanted["certificate"]
    for name in ("rate", "threshold"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-6)
    assert found["certificate"]["confidence"] == 0.9
    assert [part["held_out"] for part in found["parts"]] == [part["held_out"] for part in wanted["parts"]]
    assert len(found["parts"]) == 2


def test_further_values_come_where_the_model_has_them(live, monkeypatch):
    files = [("a.png", encoded(image.numpy())) for image in blobs(2, SHAPE)]
    status, answer = score(live, "gray", files, "&include=reconstruction&include=position")
    assert status == 200
    for image in answer["images"]:
        assert image["reconstruction"].startswith("data:image/png;base64,")
        assert len(image["position"]) == 2
    status, answer = score(live, "gray-onnx", files, "&include=reconstruction")
    assert (status, answer["error"]) == (422, "this model has no reconstruction")
    assert score(live, "gray", files, "&include=everything")[0] == 400
    assert score(live, "gray", files, "&target_fpr=0.000001")[0] == 422
    status, answer = score(live, "gray", files, "&target_frp=0.5")
    assert (status, answer["error"]) == (400, "target_frp is no query parameter of /v1/score")
    body, headers = form_body([("a.png", encoded(blobs(1, SHAPE)[0].numpy()))])
    start, end = body[: body.index(b"\r\n")], body.rindex(b"\r\n--")
    field = b"\r\n" + start + b'\r\nContent-Disposition: form-data; name="target_fpr"\r\n\r\n0.5'
    status, answer = live.ask("POST", "/v1/score?model=gray", body[:end] + field + body[end:], headers)
    assert (status, json.loads(answer)["error"]) == (
        400, "field 'target_fpr' of the form is no file: options are query parameters",
    )  # fmt: skip
    for path in ("/v2/models/gray/infer", "/v2/models/gray/versions/1/infer"):
        status, answer = live.ask("POST", f"{path}?target_fpr=0.5", *infer_body(blobs(2, SHAPE).numpy()))
        assert (status, json.loads(answer)["error"]) == (400, f"target_fpr is no query parameter of {path}")
    strict = score(live, "gray", files, "&target_fpr=0.5")[1]
    assert all(image["is_outlier"] == (image["p_value"] <= 0.5) for image in strict["images"])


def test_further_values_of_all_files_are_computed_together(models, monkeypatch):
    images, rows = blobs(5, SHAPE).numpy(), np.random.default_rng(1).integers(0, 256, (3, *SHAPE), np.uint8)
    files = [(f"{number}.png", encoded(image)) for number, image in enumerate(images)]
    array = io.BytesIO()
    np.save(array, rows)
    files[2:2] = [("none.png", b"no image"), ("rows.npy", array.getvalue())]
    with served({"m": models["gray"]}) as live:
        options = "&include=reconstruction&include=position"
        alone = [each for file in files for each in score(live, "m", [file], options)[1]["images"]]
        model, sizes = type(live.service.slots["m"].model), []
        look = model.look
        monkeypatch.setattr(model, "look", lambda model, batch, rows, wanted: (
            sizes.append(len(rows)) or look(model, batch, rows, wanted)
        ))  # fmt: skip
        together = score(live, "m", files, options)[1]["images"]
    assert sizes == [8]
    assert [(each["file"], each["index"], each["input"] if not each["error"] else "") for each in together] == [
        (each["file"], each["index"], each["input"] if not each["error"] else "") for each in alone
    ]
    good = [(a["position"], b["position"]) for a, b in zip(together, alone, strict=True) if not a["error"]]
    np.testing.assert_allclose(*zip(*good, strict=True), rtol=1e-3, atol=1e-3)


def test_pictures_are_written_beside_the_event_loop(models, monkeypatch):
    threads, write = [], uploads.data_uri

    def watched(image):
        threads.append(threading.current_thread().name)
        return write(image)

    for module in (scoring, inspection):
        monkeypatch.setattr(module, "data_uri", watched)
    with served({"m": models["gray"]}) as live:
        file = ("a.png", encoded(blobs(1, SHAPE)[0].numpy()))
        assert score(live, "m", [file], "&include=reconstruction")[0] == 200
        assert live.ask("GET", "/v1/models/m/samples?count=2")[0] == 200
    assert [name.startswith("negvae-decode") for name in threads] == [True] * 4


def test_files_are_no_longer_decoded_once_their_request_has_ended(models, monkeypatch):
    may_go_on, names, read = threading.Event(), [], uploads._read

    def held(name, *given):
        names.append(name)
        assert may_go_on.wait(60)
        return read(name, *given)

    files = [(f"{number}.png", encoded(blobs(1, SHAPE)[0].numpy())) for number in range(5)]
    monkeypatch.setattr(uploads, "_read", held)
    with served({"m": models["gray-onnx"]}, timeout=0.5) as live:
        found, threads = [], [threading.Thread(target=lambda: found.append(score(live, "m", files)[0])) for _ in "ab"]
        for thread in threads:
            thread.start()
        while len(names) < 2:  # both threads decode
            time.sleep(0.01)
        live.service.settings.__dict__["timeout"] = 60.0  # of the requests that follow
        assert live.ask("POST", "/v2/repository/models/m/load")[0] == 200  # has a thread of its own
        for thread in threads:
            thread.join()
        may_go_on.set()
        assert score(live, "m", files)[0] == 200
    assert found == [503, 503]
    assert len(names) <= 2 + 5


def test_a_charset_other_than_utf_8_is_refused(live):
    for charset, status in (("undefined", 400), ("unicode_escape", 400), ("idna", 400), ("UTF-8", 200)):
        body, headers = form_body([("\\ud800.png", encoded(blobs(1, SHAPE)[0].numpy()))])
        headers["Content-Type"] += f"; charset={charset}"
        found, answer = live.ask("POST", "/v1/score?model=gray", body, headers)
        assert found == status, answer
        assert b"charset is" in answer or status == 200


def test_a_compressed_form_is_refused_by_its_encoding(live):
    body, headers = form_body([("a.png", encoded(blobs(1, SHAPE)[0].numpy()))])
    for encoding, content, status in (("gzip", gzip.compress(body), 400), ("identity", body, 200)):
        found, answer = live.ask("POST", "/v1/score?model=gray", content, {**headers, "Content-Encoding": encoding})
        assert found == status, answer
        assert b"content encoding is gzip" in answer or status == 200


def test_an_error_without_words_is_an_error_of_its_row(live, monkeypatch):
    def failing(content):
        raise MemoryError

    monkeypatch.setattr(uploads, "_array", failing)
    status, answer = score(live, "rows", [("a.npy", b"\x93NUMPY")])
    assert (status, answer["images"][0]["error"]) == (200, "MemoryError")


def test_pillow_s_warnings_are_not_shown_while_uploads_are_read(monkeypatch):
    read = uploads.from_memory

    def warning(*given):
        warnings.warn_explicit("mended", UserWarning, "Image.py", 1, module="PIL.Image")
        return read(*given)

    monkeypatch.setattr(uploads, "from_memory", warning)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        uploads.read_uploads([("a.png", b"no image")], InputSpec(SHAPE), 1, 1, lambda: False)
    assert seen == []


def test_heat_maps_are_those_of_the_run(models, monkeypatch):
    picture = {"files": [("a.png", encoded(blobs(1, SHAPE)[0].numpy()))], "options": "&include=heatmap"}
    with served({"gray": models["gray"]}) as live:
        assert score(live, "gray", *picture.values())[0] == 422  # it was trained without
    maps = lambda images: images[:, 0].numpy() / 255.0  # noqa: E731 - a stand-in
    monkeypatch.setattr(run_model, "load_artifact", lambda path: replace(load_artifact(path), heatmaps=maps))
    with served({"gray": models["gray"]}) as live:
        answer = score(live, "gray", *picture.values())[1]
        assert answer["images"][0]["heatmap"].startswith("data:image/png;base64,")
        other = ("b.png", encoded(255 - blobs(1, SHAPE)[0].numpy()))
        together = score(live, "gray", [other, *picture["files"]], picture["options"])[1]
    assert together["images"][1]["heatmap"] == answer["images"][0]["heatmap"]


def test_heat_maps_have_the_color_scale_of_all_maps():
    picture = base64.b64decode(uploads.heat_uri(np.array([[0.0, 3.0, 6.0, 9.0]])).partition(",")[2])
    assert np.asarray(Image.open(io.BytesIO(picture)))[0, :, 3].tolist() == [0, 128, 255, 255]
    assert uploads.HOTTEST == LARGEST


def test_what_is_certified_is_said_of_the_model(models):
    wanted = load_artifact(models["gray"]).calibration.certificate()
    with served({"gray": models["gray"]}) as live:
        status, answer = live.ask("GET", "/v1/models/gray")
    assert status == 200
    assert json.loads(answer)["certificate"] == wanted
    assert 0 < wanted["at_most"] <= 1


@pytest.mark.parametrize("seed", range(5))
def test_a_threshold_is_written_so_that_it_agrees_with_the_scores(seed):
    scores = np.random.default_rng(seed).normal(5, 1, 200).astype(np.float32)
    for threshold in [*scores[:20].astype(float), *np.random.default_rng(seed).normal(5, 1, 20)]:
        near = np.float32(threshold)
        near = np.array([np.nextafter(near, np.float32(0)), near, np.nextafter(near, np.float32(9))])
        for score in (*near, *scores):
            assert (protocol.plain(np.array([score]))[0] > protocol.as_score(threshold)) == (float(score) > threshold)


def test_metrics_count_what_was_scored_and_notice_a_change(models):
    with served({"gray": models["gray"]}) as live:
        for seed in range(4):
            body, headers = infer_body(255 - blobs(64, SHAPE, seed).numpy())
            assert live.ask("POST", "/v2/models/gray/infer", body, headers)[0] == 200
        score(live, "gray", [("a.png", b"no image")])
        text, until = "", time.monotonic() + 60  # the monitor learns of a batch after its answer
        while 'negvae_images_total{model="gray"} 256.0' not in text and time.monotonic() < until:
            text = live.ask("GET", "/metrics")[1].decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['negvae_images_total{model="gray"}']) == 256
    assert float(values['negvae_alarms_total{model="gray"}']) == 256
    assert float(values['negvae_alarm_share{model="gray"}']) == 1
    assert float(values['negvae_image_errors_total{model="gray"}']) == 1
    assert float(values['negvae_changes_total{model="gray"}']) >= 1
    assert float(values['negvae_p_value_bucket{le="+Inf",model="gray"}']) == 256
    assert float(values['negvae_p_value_bucket{le="0.05",model="gray"}']) == 256
    assert float(values['negvae_requests_total{route="/v2/models/{name}/infer",status="200"}']) == 4


def test_key_host_and_origin_are_checked(models):
    with served({"m": models["gray-onnx"]}, api_key="correct horse") as live:
        for path in ("/", "/v2/health/live"):
            assert live.ask("GET", path)[0] == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": "é"}, {"Authorization": "correct horse"}):
            assert live.ask("GET", "/v2/models/m", headers={k: v.encode() for k, v in headers.items()})[0] == 401
        good = {"Authorization": "Bearer correct horse"}
        assert live.ask("GET", "/v2/models/m", headers=good)[0] == 200
        assert live.ask("GET", "/v2/models/m", headers={"X-API-Key": "correct horse"})[0] == 200
        assert live.ask("GET", "/v2/models/m", headers={**good, "Origin": "http://elsewhere.example"})[0] == 403
        assert live.ask("GET", "/v2/models/m", headers={**good, "Host": "any.example"})[0] == 200
        assert live.ask("GET", "/v2/models/m", headers={"Host": "any.example"})[0] == 401
        assert live.ask("GET", "/v2/models/m", headers={**good, "Host": "127.0.0.9"})[0] == 200
        assert live.ask("GET", "/v2/models/m", headers={**good, "Host": "LocalHost:1"})[0] == 200
        assert live.ask("GET", "/v2/models/m", headers={**good, "Origin": f"http://127.0.0.1:{live.port}"})[0] == 200


@pytest.mark.parametrize(
    ("settings", "host", "origin", "status"),
    [
        ({}, "guard.example", None, 403),
        ({"allowed_hosts": "a.example, Guard.example"}, "GUARD.example:443", None, 200),
        ({"allowed_hosts": "https://guard.example:8443/"}, "guard.example:8443", "https://guard.example:8443", 200),
        ({"allowed_hosts": "guard.example"}, "guard.example", "https://guard.example", 200),  # passed on by a proxy
        ({"allowed_hosts": "guard.example"}, "127.0.0.1:8000", "https://guard.example", 200),  # rewritten by a proxy
        ({"allowed_hosts": "guard.example"}, "guard.example", "https://evil.example", 403),
        ({"allowed_hosts": "guard.example"}, "evil.example", "https://evil.example", 403),
        ({"allowed_hosts": "guard.example"}, "localhost", "null", 403),
        ({"host": "0.0.0.0"}, "evil.example", None, 403),
        ({"host": "0.0.0.0"}, "localhost:8000", "http://localhost:8000", 200),
        ({"host": "0.0.0.0"}, "10.1.2.3:8000", "http://10.1.2.3:8000", 200),
        ({"host": "0.0.0.0"}, "[fe80::1]:8000", None, 200),
        ({"host": "0.0.0.0", "allowed_hosts": "negvae"}, "negvae:8000", None, 200),
        ({}, "127.0.0.1:8000", "http://127.0.0.1:9000", 403),
        ({}, "10.1.2.3", None, 403),
        ({"host": "0.0.0.0", "api_key": "k" * 8}, "negvae:8000", None, 200),  # the key is asked for all the same
        ({"host": "0.0.0.0", "api_key": "k" * 8}, "negvae:8000", "http://evil.example", 403),
        ({}, "[::1]:8000", None, 200),
    ],
)
def test_a_request_names_an_address_or_an_allowed_host(settings, host, origin, status):
    guard = Guard(None, ServiceSettings(**settings), None, None)
    headers = {"host": host} if origin is None else {"host": host, "origin": origin}
    try:
        guard.check(headers, "/")
        found = 200
    except Refused as refused:
        found = refused.status
    assert found == status


def test_head_is_answered_where_get_is(live):
    for path in ("/", "/v2/health/live", "/v2/health/ready", "/metrics", "/v2/models/gray"):
        assert live.ask("HEAD", path) == (200, b"")
    assert live.ask("HEAD", "/v2/models/gray/infer")[0] == 405


def test_a_client_that_sends_too_much_reads_why(models):
    with served({"m": models["gray-onnx"]}, max_body=100_000) as live:
        for path in ("/v2/models/m/infer", "/v1/score"):
            status, answer = live.ask("POST", path, bytes(20_000_000))
            assert (status, b"20,000,000 bytes; at most 100,000" in answer) == (413, True)


def test_an_error_of_the_application_is_logged_once(models, monkeypatch, caplog):
    with served({"m": models["gray-onnx"]}) as live:
        monkeypatch.setattr(live.service.metrics, "text", lambda: 1 / 0)
        status, answer = live.ask("GET", "/metrics")
    assert (status, b"its log has the reason" in answer) == (500, True)
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_both_ways_log_the_address_of_the_connection_and_count_under_one_route(live, caplog):
    caplog.set_level("INFO", "negvae.service")
    live.service.log.on = True
    body, headers = infer_body(blobs(1, SHAPE).numpy())
    headers["X-Forwarded-For"] = "9.9.9.9"
    for more in ({}, {"Connection": "close"}):
        assert live.ask("POST", "/v2/models/gray/versions/1/infer", body, {**headers, **more})[0] == 200
    until = time.monotonic() + 60
    while len(lines := [line for record in caplog.records for line in getattr(record, "lines", ())]) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    live.service.log.on = False
    assert {json.loads(line)["client"] for line in lines} == {"127.0.0.1"}
    text = live.ask("GET", "/metrics")[1].decode()
    assert 'route="/v2/models/{name}/versions/{version}/infer",status="200"} 2.0' in text


def test_limits_of_body_pixels_and_batch(models):
    with served({"m": models["gray-onnx"]}, max_body=20_000, max_pixels=2_000, max_batch=4) as live:
        assert live.ask("POST", "/v2/models/m/infer", b"x" * 20_001)[0] == 413
        image = encoded(blobs(1, SHAPE)[0].numpy())
        assert score(live, "m", [("a.png", image)] * 4)[0] == 200
        assert score(live, "m", [("a.png", image)] * 5)[0] == 400
        large = encoded(np.zeros((1, 50, 50), np.uint8))
        assert (
            "at most 2,000 are accepted"
            in score(live, "m", [("a.png", large)], "&resize=true")[1]["images"][0]["error"]
        )
        with socket.create_connection(("127.0.0.1", live.port)) as endless:
            endless.sendall(
                b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            endless.sendall(b"4000\r\n" + b"x" * 0x4000 + b"\r\n" + b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
            assert endless.recv(1000).startswith(b"HTTP/1.1 413")


def test_large_and_compressed_bodies_are_read_beside_the_event_loop(models, monkeypatch):
    threads, read = [], inference.read

    def watched(*given):
        threads.append(threading.current_thread().name)
        return read(*given)

    monkeypatch.setattr(inference, "read", watched)
    with served({"m": models["gray-onnx"]}, max_batch=4) as live:
        url, (body, headers) = "/v2/models/m/infer", infer_body(blobs(2, SHAPE).numpy())
        packed = {**headers, "Content-Encoding": "gzip"}
        wanted = live.ask("POST", url, body, {**headers, "Connection": "close"})
        assert wanted[0] == 200
        assert live.ask("POST", url, gzip.compress(body), packed) == wanted
        assert live.ask("POST", url, b" " * 1_000_001 + b"{}")[0] == 400
        for bomb, more in ((gzip.compress(b" " * 5_000_000), packed), (b" " * 5_000_000, {})):
            status, answer = live.ask("POST", url, bomb, more)
            assert (status, b"which no request to this model needs" in answer) == (413, True)
    assert not threads[0].startswith("negvae-decode")
    assert [name.startswith("negvae-decode") for name in threads[1:]] == [True] * 4


@pytest.mark.parametrize(
    ("part", "what"),
    [
        (b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\nhalf", b"the body took"),
        (b"GET /v2/health/live HTTP/1.1\r\nHost: loc", b"the headers took"),
        (b"POST /v2/models/m/infer HTTP/1.1\r\nHost: loc", b"the headers took"),
        (b"GE", b"the headers took"),
    ],
)
def test_a_request_that_does_not_come_in_time_is_408(models, part, what):
    late = served({"m": models["gray-onnx"]}, timeout=0.5)
    with late as live, socket.create_connection(("127.0.0.1", live.port), 30) as slow:
        slow.sendall(part)
        answer = b""
        while more := slow.recv(1000):
            answer += more
    assert answer.startswith(b"HTTP/1.1 408")
    assert what in answer


def test_a_full_queue_answers_503_and_when_to_try_again(models):
    with served({"m": models["gray-onnx"]}, max_queue=2) as live:
        body, headers = infer_body(blobs(2, SHAPE).numpy())
        import http.client

        live.service.batcher.waiting = 1
        connection = http.client.HTTPConnection("127.0.0.1", live.port)
        connection.request("POST", "/v2/models/m/infer", body, headers)
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Retry-After")) == (503, "1")
        assert b"wait already" in answer.read()
        connection.close()
        live.service.batcher.waiting = 0
        assert live.ask("POST", "/v2/models/m/infer", body, headers)[0] == 200


def test_a_request_that_no_queue_would_hold_is_refused_for_good(models):
    with served({"m": models["gray"]}, max_queue=2) as live:
        status, answer = live.ask("POST", "/v2/models/m/infer", *infer_body(blobs(3, SHAPE).numpy()))
        assert (status, json.loads(answer)["error"]) == (413, "at most 2 images may wait (max_queue), and 3 came")
        assert score(live, "m", [("a.png", encoded(blobs(1, SHAPE)[0].numpy()))] * 3)[0] == 413
        assert live.ask("GET", "/v1/models/m/samples?count=3")[0] == 413
        assert live.ask("GET", "/v1/models/m/samples?count=2")[0] == 200


def test_rude_clients_and_malformed_requests_do_no_harm(live):
    live.name = "gray-onnx"
    counts = fuzz(live, 240)
    assert counts.wrong == []
    assert counts.statuses[400] > 20
    assert live.ask("GET", "/v2/health/ready")[0] == 200


def test_a_service_draws_nothing_and_loads_nothing_that_draws():
    """In a container, whose user has no home, matplotlib would complain in the log at every start."""
    code = "import sys, negvae.service.run, negvae.service.run_model; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "sklearn", "matplotlib", "onnx", "pyarrow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from negvae.cli import main
from negvae.data.batches import InputSpec
from negvae.decoding import Decoding
main()
"""


def test_an_exported_file_is_served_without_torch_and_stopped_in_order(models):
    command = [
        sys.executable,
        "-c",
        WITHOUT_TORCH,
        "serve",
        f"m={models['gray-onnx']}",
        "--port",
        "0",
        "--log-level",
        "info",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = json.loads(process.stderr.readline())
        port = int(line["url"].rstrip("/").rpartition(":")[2])
        image = encoded(blobs(1, SHAPE)[0].numpy())
        body, headers = form_body([("a.png", image)])
        with socket.create_connection(("127.0.0.1", port)) as late:
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            start = "POST /v1/score HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: mine\r\n"
            late.sendall(f"{start}Content-Length: {len(body)}\r\nExpect: 100-continue\r\n{head}\r\n".encode())
            assert late.recv(100).startswith(b"HTTP/1.1 100")  # the request is in progress
            late.sendall(body[:50])
            process.terminate()
            time.sleep(0.3)
            late.sendall(body[50:])
            answer = late.recv(100_000)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert process.wait(60) == 0
        log = [json.loads(text) for text in process.stderr]
    finally:
        process.kill()
        process.stderr.close()
    (request,) = [record for record in log if record["event"] == "request"]
    assert (request["request_id"], request["path"], request["status"]) == ("mine", "/v1/score", 200)
    assert log[-1]["event"] == "stopped"
    command[-1:] = ["info"]
    refused = subprocess.run([*command[:4], str(models["gray"])], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "negvae[serve]" in refused.stderr
