"""Turns, spreads and halted commands, with subjects that do nothing."""

import sys
from pathlib import Path

import pytest
from benchmarks.bench import commands, peers, rounds
from benchmarks.bench.commands import Start, Streaming
from benchmarks.bench.rounds import Interval, SubjectError, Worker, interleave, spread

SUBJECT = """
import sys
from peers.protocol import Turns, specification
spec = specification()
turns = Turns(name=spec["name"])
print("a library that talks")
done = 0
def work():
    global done
    done += 1
    if done > spec.get("most", 99):
        raise MemoryError("no more")
    return done
turns.serve(work)
"""


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(rounds, "PAUSE", 0.0)


def fake(tmp_path, name="fake", **spec):
    start = f"import sys; sys.path.append({str(Path(peers.__file__).parents[1])!r})\n{SUBJECT}"
    return Worker([sys.executable, "-P", "-c", start], {"name": name, **spec}, tmp_path)


def test_spread():
    assert spread([3.0]) == Interval(3, 3, 3)
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0]) == Interval(3, 2, 4)


def test_a_worker_takes_turns(tmp_path):
    worker = fake(tmp_path, name="one")
    try:
        assert worker.facts == {"name": "one"}
        assert worker.round() > 0
        # The rate is units over seconds: the units grow by one in each round.
        assert worker._ask("round", "units")["units"] == 3
    finally:
        worker.close()
    assert worker._process.returncode == 0


def test_a_worker_that_ends_says_why(tmp_path):
    with pytest.raises(SubjectError, match="MemoryError: no more"):
        fake(tmp_path, most=0)
    worker = fake(tmp_path, most=2)
    worker.round()
    with pytest.raises(SubjectError, match=r"ended with code 1: MemoryError: no more"):
        worker.round()
    worker.close()  # a second time does no harm
    with pytest.raises(SubjectError, match="ended with code"):
        Worker([sys.executable, "-c", "print('hello')"], {}, tmp_path)


def test_rounds_alternate():
    order = []

    class Noting:
        facts = {}  # noqa: RUF012 - never written

        def __init__(self, name):
            self.name = name

        def round(self):
            order.append(self.name)
            return len(order)

        def close(self):
            """Nothing to end."""

    values = interleave({"a": Noting("a"), "b": Noting("b")}, 3)
    assert order == ["a", "b"] * 3
    assert values == {"a": [1, 3, 5], "b": [2, 4, 6]}


@pytest.mark.parametrize("header", ["path,kl\\n", ""])
def test_streaming_counts_rows(header):
    row = "a,1\\n" if header else '{"kl": 1}\\n'
    script = f"import sys; sys.stdout.write('{header}' + '{row}' * 50001)"
    streaming = Streaming([sys.executable, "-c", script], 50001, 5)
    assert all(streaming.round() > 0 for _ in range(5))
    assert streaming._running._surplus == 0
    peaks = streaming.finish()
    assert peaks["peak_rss"] > 1
    streaming.close()
    short = Streaming([sys.executable, "-c", script], 60002, 1)
    with pytest.raises(SubjectError, match="of 60001 rows"):
        short.round()
    short.close()


def test_start_reads_the_first_row_or_the_end(tmp_path):
    slow = "import time; print('path,kl'); print('a,1', flush=True); time.sleep(60)"
    assert 0 < Start([sys.executable, "-c", slow], first_row=True).round() < 30
    with pytest.raises(SubjectError, match="no such thing"):
        Start([sys.executable, "-c", "import sys; sys.exit('no such thing')"])
    with pytest.raises(SubjectError, match="printed 0 of 1 rows: no such thing"):
        Start([sys.executable, "-c", "import sys; sys.exit('no such thing')"], first_row=True)


def test_own_memory_is_told():
    import os

    assert commands._own_memory(os.getpid()) > 1
