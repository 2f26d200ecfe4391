"""The rows of metrics.jsonl."""

import pytest

from negvae.model import build_vae
from negvae.training.checkpoint import Progress
from negvae.training.history import METRICS, History, epoch_row, read_metrics, write_metrics
from tests.conftest import small_run

ROWS = [{"epoch": n, "nats_per_dim": 0.5 / n, "seconds": 1.25 * n} for n in (1, 2, 3)]


def test_rows_are_read_as_they_were_appended(tmp_path):
    history = History(ROWS[:1], tmp_path)
    for row in ROWS[1:]:
        history.append(row)
        assert read_metrics(tmp_path) == history.rows
    assert history.rows == ROWS


def test_a_history_without_a_folder_stays_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    history = History()
    history.append(ROWS[0])
    assert history.rows == ROWS[:1]
    assert not list(tmp_path.iterdir())


def test_a_history_begins_the_file_anew(tmp_path):
    write_metrics(tmp_path, ROWS)
    History(ROWS[:2], tmp_path)
    assert read_metrics(tmp_path) == ROWS[:2]
    assert read_metrics(tmp_path / "nowhere") == []


@pytest.mark.parametrize("damage", ['{"epoch": 3, "nats', '{"epoch": 3}', "[3]"])
def test_rows_are_read_up_to_the_first_that_is_not_whole(tmp_path, damage):
    write_metrics(tmp_path, ROWS[:2])
    with (tmp_path / METRICS).open("a") as file:
        file.write(damage + "\n")
    assert read_metrics(tmp_path) == ROWS[:2]


def test_an_epoch_shorter_than_the_clock_s_ticks_has_a_row():
    progress = Progress(step=1, sums={"reconstruction": 1.0, "kl": 1.0}, epoch_seconds=0.0)
    config = small_run("mlp", likelihood="gaussian")
    assert epoch_row(progress, config, 8, build_vae(config, (4, 1, 1)))["images_per_second"] > 0
