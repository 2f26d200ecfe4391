"""From the start of the service to its end: signals."""

import signal
import threading

import pytest

pytest.importorskip("fastapi")
import uvicorn

from negvae.service import run
from negvae.service.settings import ServiceSettings


def test_a_signal_right_after_the_service_listens_ends_it(monkeypatch):
    ordinary, again = uvicorn.Server.run, []

    def signaled(server, sockets):
        signal.raise_signal(signal.SIGTERM)  # uvicorn does not listen to signals yet
        late = threading.Timer(2, lambda: (again.append("again"), setattr(server, "should_exit", True)))
        late.start()
        ordinary(server, sockets)
        late.cancel()

    monkeypatch.setattr(uvicorn.Server, "run", signaled)
    monkeypatch.setattr(run, "_log_to_stderr", lambda settings: None)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        run.serve({}, ServiceSettings(port=0))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert again == []
