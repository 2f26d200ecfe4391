import io

from rich.console import Console

from negvae.paper.board import Board, Event, runs_progress
from negvae.paper.published import settings
from negvae.training.reporting import ProgressUpdate

GRAY, OTHER, COLOR = (
    settings()[name] for name in ("fashion-mnist-bernoulli-none", "mnist-bernoulli-none", "cifar10-bernoulli-none")
)
RUNS = {"gray0": GRAY, "gray1": GRAY, "other0": OTHER, "color0": COLOR}


def update(seconds_left, step=50):
    return ProgressUpdate(1, 1, step, 100, {}, 1000.0, seconds_left)


def test_time_left_is_that_of_runs_alike():
    board = Board(RUNS, {}, jobs=1)
    assert board.seconds_left() is None
    board.hear(Event("started", "gray0"))
    board.hear(Event("progress", "gray0", update(10)))
    assert board.seconds_left() == 10 + 3 * 20  # nothing else is known than the run under way
    board.hear(Event("finished", "gray0", text="30"))
    assert board.seconds_left() == 30 + 30 + 30
    board.hear(Event("finished", "color0", text="100"))
    board.hear(Event("finished", "gray1", text="50"))
    assert board.seconds_left() == 40  # the mean of the gray ones
    board.hear(Event("diverged", "other0", text="5"))
    assert board.seconds_left() == 0
    assert board.summary() == "4/4 runs, 0:00:00 left"


def test_workers_share_the_time():
    assert Board(RUNS, {"gray0": 30.0}, jobs=2).seconds_left() == 45
    assert Board(RUNS, {"gray0": 30.0}, jobs=8).seconds_left() == 30  # no more than there are runs


def test_a_finished_run_of_unknown_seconds_needs_no_time_and_gives_no_estimate():
    board = Board(RUNS, {"gray0": None}, jobs=1)
    assert (board.ended, board.seconds_left()) == ({"gray0"}, None)
    assert Board(RUNS, {"gray0": None, "gray1": 30.0}, jobs=1).seconds_left() == 30 * (len(RUNS) - 2)


def test_failed_and_stopped():
    board = Board(RUNS, {"gray0": 30.0}, jobs=1)
    board.hear(Event("failed", "color0", text="no data"))
    board.hear(Event("busy", "gray1"))
    board.hear(Event("stopped", "other0", text="budget"))
    assert board.ended == {"gray0", "color0"}


def test_plain_lines():
    console = Console(file=io.StringIO(), width=160)
    with runs_progress(console, RUNS, {}, 1) as show:
        show(Event("say", "", text="data [x]"))
        show(Event("say", "", text="data [x]"))
        show(Event("progress", "gray0", update(10)))
        show(Event("progress", "gray0", update(5, 75)))  # too soon for another line
        show(Event("finished", "gray0", text="12.3"))
        show(Event("failed", "other0", text="no data"))
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "data [x]",
        "0/4 runs, 0:01:10 left: gray0 epoch 1/1 step 50/100, 1000 images/s",
        "gray0: finished in 12 s (1/4 runs, 0:00:36 left)",
        "other0: failed: no data (2/4 runs, 0:00:24 left)",
    ]


def test_bars_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with runs_progress(console, RUNS, {}, 1) as show:
        show(Event("started", "gray0"))
        show(Event("progress", "gray0", update(10)))
        show(Event("finished", "gray0", text="12.3"))
    text = console.file.getvalue()
    assert "all runs" in text
    assert "gray0: finished in 12 s (1/4 runs, 0:00:36 left)" in text
