"""Files written whole or not at all, locks between processes, and packages of extras."""

import errno
import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest

from negvae.files import locked, replacing, temporary_folder, write_text

HOLD = """
import sys
from pathlib import Path
from negvae.files import locked
with locked(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_held_by_one_process_and_freed_by_its_death(tmp_path):
    path = tmp_path / "below" / "run.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "True\n"
        with locked(path) as mine:
            assert not mine
        other.kill()
    for _ in range(2):
        with locked(path) as mine:
            assert mine
            with locked(path) as again:
                assert not again


def test_permissions_are_the_umask_s_or_those_of_the_old_file(tmp_path):
    path = tmp_path / "a"
    before = os.umask(0o027)
    try:
        with replacing(path) as temporary:
            temporary.write_text("1")
            temporary.chmod(0o600)  # as safetensors writes
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    write_text(path, "2")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("2", 0o604)


def test_links_are_followed_and_pipes_written_through(tmp_path):
    (tmp_path / "old").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "old")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "old").read_text() == "new"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    heard = []
    reader = threading.Thread(target=lambda: heard.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through")
    reader.join(timeout=20)
    assert heard == ["through"]
    assert pipe.is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {"old", "link", "pipe"}
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "x")


def test_threads_do_not_meet_on_a_temporary_name(tmp_path):
    def work(number):
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text(str(number) * 1000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(64)))
    content = (tmp_path / "a").read_text()
    assert len(content) in (1000, 2000)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_block_leaves_what_was_there(tmp_path):
    (tmp_path / "a").write_text("old")

    def die():
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        die()
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    write = "import sys, os, signal; from pathlib import Path; from negvae.files import replacing, temporary_folder\n"
    die = "os.kill(os.getpid(), signal.SIGKILL)"
    for block in ("replacing(Path(sys.argv[1]) / 'a')", "temporary_folder(Path(sys.argv[1]), 'b')"):
        code = f"{write}with {block} as path:\n (path / 'x' if path.is_dir() else path).write_text('half')\n {die}"
        assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert len(os.listdir(tmp_path)) == 2
    (tmp_path / ".a.theirs.tmp").write_text("theirs")
    with replacing(tmp_path / "other") as alive:
        write_text(tmp_path / "a", "whole")
        assert alive.exists()
    with temporary_folder(tmp_path, "b") as place:
        assert place.is_dir()
    assert sorted(os.listdir(tmp_path)) == [".a.theirs.tmp", "a", "other"]


def test_a_full_disk_is_named_with_the_file(tmp_path):
    def full(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(OSError, match=r"No space left on device: '.*out\.txt'"),
        replacing(tmp_path / "out.txt") as file,
    ):
        full(file)
    assert not list(tmp_path.glob("*"))


NEEDED = """
import os
from negvae.files import need
need("onnxruntime", "onnx")
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
@pytest.mark.parametrize("chosen", [{}, {"ORT_DISABLE_TELEMETRY": "0"}])
def test_packages_of_extras_keep_no_figures_for_their_makers(tmp_path, chosen):
    """The import itself writes an identifier of the machine below the cache, unless the user wants it to."""
    given = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"} | chosen
    given |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", NEEDED], env=given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == chosen.get("ORT_DISABLE_TELEMETRY", "1")
    assert chosen or not list(tmp_path.iterdir())
