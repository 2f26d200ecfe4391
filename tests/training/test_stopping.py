"""Signals, budgets and callers that end training early."""

import os
import signal
import threading

import pytest

from negvae.training.stopping import StopConditions


def going_on():
    return ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_reason_and_a_second_one_ends_the_program_as_usual(number):
    heard = []
    before = signal.signal(number, lambda *_: heard.append("as usual"))
    try:
        mine = signal.getsignal(number)
        with StopConditions(going_on, None) as conditions:
            assert conditions.reason() == ""
            os.kill(os.getpid(), number)
            assert conditions.reason() == number.name
            assert not heard
            os.kill(os.getpid(), number)
            assert heard == ["as usual"]
            assert conditions.reason() == number.name
        assert signal.getsignal(number) is mine
    finally:
        signal.signal(number, before)


def test_signals_are_given_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(MemoryError), StopConditions(going_on, None):
        raise MemoryError
    assert signal.getsignal(signal.SIGINT) is before


def test_what_a_caller_has_said_once_is_not_forgotten():
    answers = iter(["", "enough", "", "more than enough"])
    conditions = StopConditions(lambda: next(answers), budget=0.0)
    assert [conditions.reason() for _ in range(4)] == ["budget", "enough", "enough", "enough"]


def test_a_budget_is_spent_when_its_time_has_passed(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    conditions = StopConditions(going_on, budget=5.0)
    now[0] = 104.9
    assert conditions.reason() == ""
    now[0] = 105.0
    assert conditions.reason() == "budget"


def test_other_threads_leave_the_signals_alone():
    before, inside = signal.getsignal(signal.SIGINT), []

    def elsewhere():
        with StopConditions(going_on, None):
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert inside == [before]
