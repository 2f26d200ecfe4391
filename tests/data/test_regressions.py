"""Regressions: folders as people have them, and files that are not what their name says."""

import os
import socket
import subprocess
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, features

from negvae.data import load
from negvae.data.batches import InputSpec
from negvae.data.formats.folder import IMAGE_ENDINGS, LeftOut, walk
from negvae.data.spans import spans
from negvae.data.streams import stream
from tests.data.conftest import one_line

SPEC = InputSpec((1, 28, 28))


def rows(*inputs, **options):
    """Path, index and error of every row."""
    return [
        row
        for batch in stream([str(path) for path in inputs], SPEC, **options)
        for row in zip(batch.paths, batch.indices, batch.errors, strict=True)
    ]


def within_seconds(function, seconds=20):
    """What a function returns; a test failure where it hangs."""
    result = []
    thread = threading.Thread(target=lambda: result.append(function()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert result, "it hangs"
    return result[0]


@pytest.mark.parametrize("name", ["x.png", "x.npy", "x.npz", "x.parquet"])
def test_a_pipe_by_any_name_is_an_error_and_not_waited_for(make, name):
    make.image("in/a.png", make.pixels(0, 1)[0])
    os.mkfifo(make.root / "in" / name)
    found = within_seconds(lambda: rows(make.root / "in"))
    assert found[0][2] == ""
    assert "not a regular file" in found[1][2].lower()
    with pytest.raises((OSError, ValueError)) as caught:
        within_seconds_error(lambda: load(make.root / "in" / name if name != "x.png" else make.root / "in"))
    assert one_line(caught.value)


def within_seconds_error(function):
    """The same for functions that raise."""
    caught = []

    def call():
        try:
            return function()
        except Exception as error:
            caught.append(error)
            return True

    within_seconds(call)
    if caught:
        raise caught[0]


def test_devices_and_sockets_are_errors(make):
    make.image("in/a.png", make.pixels(0, 1)[0])
    (make.root / "in" / "b.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(make.root / "in" / "c.png"))
        found = within_seconds(lambda: rows(make.root / "in"))
    assert [bool(error) for *_, error in found] == [False, True, True]


def test_linked_folders_are_read_once_and_circles_end(make):
    image = make.pixels(0, 1)[0]
    for name in ("in/a/1.png", "in/.store/2.png", "outside/3.png", "outside/below/4.png"):
        make.image(name, image)
    inside = make.root / "in"
    (inside / "again").symlink_to(inside / "a")
    (inside / "here").symlink_to(inside)
    (inside / "self").symlink_to(inside / "self")
    (inside / "stored").symlink_to(inside / ".store")
    (inside / "there").symlink_to(make.root / "outside")
    (inside / "there too").symlink_to(make.root / "outside" / "below")
    (make.root / "outside" / "back").symlink_to(inside)
    (inside / "up").symlink_to(make.root)
    left_out = LeftOut()
    found = [os.path.relpath(path, inside) for path in walk(str(inside), IMAGE_ENDINGS, left_out)]
    assert found == ["a/1.png", "stored/2.png", "there too/4.png", "there/3.png"]
    assert left_out.counts == {"hidden": 1, "no ending": 1, "link to a folder around it": 1}
    assert len(load(inside).images) == 4


def test_a_linked_file_is_read_and_a_dangling_one_is_an_error(make):
    make.image("elsewhere/a.png", make.pixels(0, 1)[0])
    make.path("in/x").parent.mkdir(exist_ok=True)
    (make.root / "in" / "a.png").symlink_to(make.root / "elsewhere" / "a.png")
    (make.root / "in" / "b.png").symlink_to(make.root / "gone.png")
    assert [bool(error) for *_, error in rows(make.root / "in")] == [False, True]


def test_very_deep_folders_end_in_an_error_and_not_in_a_crash(make):
    make.image("in/a.png", make.pixels(0, 1)[0])
    here = os.getcwd()
    try:
        os.chdir(make.root / "in")
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    try:
        found = rows(make.root / "in")
    finally:  # Python's own rmtree takes a level of recursion for each
        subprocess.run(["rm", "-rf", str(make.root / "in" / "d")], check=True)
    assert [bool(error) for *_, error in found] in ([False], [False, True])


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".avif", ".jp2", ".qoi", ".apng", ".pbm"])
def test_what_pillow_reads_is_read(make, ending):
    if ending == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = Image.fromarray(make.pixels(0, 1, 3)[0].transpose(1, 2, 0))
    kinds = {".jfif": "JPEG", ".jpe": "JPEG", ".avif": "AVIF", ".jp2": "JPEG2000", ".qoi": "QOI", ".apng": "PNG"}
    path = make.path(f"in/a{ending}")
    (image.convert("1") if ending == ".pbm" else image).save(path, kinds.get(ending, "PPM"))
    assert load(make.root / "in").images.shape[0] == 1
    assert [error for *_, error in rows(make.root / "in")] == [""]


def test_heic_images_are_errors_that_say_what_is_missing(make):
    make.image("in/a.png", make.pixels(0, 1)[0])
    make.path("in/b.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    found = rows(make.root / "in")
    assert [bool(error) for *_, error in found] == [False, True]


def test_what_is_left_out_is_counted_and_named(make):
    make.image("in/a.png", make.pixels(0, 1)[0])
    for name in ("in/notes.txt", "in/film.mp4", "in/more/film.mp4", "in/.hidden.png", "in/README"):
        make.path(name).write_text("x")
    left_out = LeftOut()
    assert len(rows(make.root / "in", left_out=left_out)) == 1
    assert left_out.counts == {".txt": 1, ".mp4": 2, "hidden": 1, "no ending": 1}
    assert "5 left out (.mp4 2, .txt 1, hidden 1, no ending 1: " in left_out.describe()
    assert any("5 left out" in note for note in load(make.root / "in").notes)


@pytest.fixture
def unprivileged():
    """Whoever may not read everything: root becomes another user for as long as a test runs."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


def test_an_unreadable_subfolder_is_a_row_when_scoring_and_refused_by_name_in_training(make, request):
    for name in ("in/a.png", "in/b/c.png", "in/d.png"):
        make.image(name, make.pixels(0, 1)[0])
    for folder in make.root.parents:
        if folder.stat().st_uid == os.geteuid() and folder != folder.parent:
            folder.chmod(folder.stat().st_mode | 0o055)
    make.root.chmod(0o755)
    closed = make.root / "in" / "b"
    closed.chmod(0)
    try:
        request.getfixturevalue("unprivileged")
        found = rows(make.root / "in")
        assert [os.path.basename(path) for path, *_ in found] == ["a.png", "b", "d.png"]
        assert [bool(error) for *_, error in found] == [False, True, False]
        assert "cannot be read" in found[1][2]
        with pytest.raises(PermissionError, match="b"):
            load(make.root / "in")
    finally:
        if os.geteuid() != 0:
            os.seteuid(os.getuid())
        closed.chmod(0o755)


def test_names_that_are_not_utf8_are_read(make):
    make.image("in/a.png", make.pixels(0, 1)[0])
    os.rename(make.root / "in" / "a.png", os.fsencode(make.root / "in") + b"/caf\xe9.png")
    assert [(os.fsencode(os.path.basename(p)), e) for p, _, e in rows(make.root / "in")] == [(b"caf\xe9.png", "")]
    assert len(load(make.root / "in").images) == 1


@pytest.mark.parametrize("labels", [[0, None, 1], [None] * 3, ["a", None, "b"], [[1], [2], [3]], [0.5, 1.5, 2.5]])
def test_labels_that_are_none_do_not_stop_images_from_loading(make, labels):
    images = make.pixels(0, 3)
    encoded = [make.encode(image) for image in images]
    path = make.path("a.parquet")
    pq.write_table(pa.table({"image": encoded, "label": labels}), path)
    found = load(path)
    np.testing.assert_array_equal(found.images, images)
    assert found.labels is None


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_pixels_beyond_one_by_rounding_are_one(make, kind):
    images = make.pixels(0, 3).astype(kind) / 255
    images[0, 0, 0, 0], images[1, 0, 0, 0] = 1 + 2 * np.finfo(kind).eps, -np.finfo(kind).eps
    path = make.path("a.npy")
    np.save(path, images)
    assert load(path).images[0, 0, 0, 0] == 255
    assert load(path).images[1, 0, 0, 0] == 0
    assert [error for *_, error in rows(path)] == ["", "", ""]
    images[2, 0, 0, 0] = 1.01
    np.save(path, images)
    with pytest.raises(ValueError, match=r"to 1\.0"):
        load(path)
    assert [bool(error) for *_, error in rows(path)] == [False, False, True]


def test_the_output_in_an_input_folder_is_not_an_input(make):
    make.image("in/a.png", make.pixels(0, 1)[0])
    make.path("in/scores.parquet").write_bytes(b"PAR1")
    make.path("in/parts/part-0.parquet").write_bytes(b"PAR1")
    folder = make.root / "in"
    assert len(rows(folder)) == 3
    assert [p for p, *_ in rows(folder, without=[folder / "scores.parquet", folder / "parts"])] == [
        str(folder / "a.png")
    ]
    assert len(list(spans([str(folder)]))) == 3
