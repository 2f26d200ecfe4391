"""From the start of the service to its end: signals, and the log."""

import json
import logging
import signal
import sys
import threading
import warnings

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


@pytest.fixture
def untouched():
    """Put back what the log of a service changes."""
    root, own, shown = logging.getLogger(), logging.getLogger("negvae.service"), warnings.showwarning
    handlers, levels = root.handlers, (root.level, own.level)
    yield
    logging.captureWarnings(False)
    warnings.showwarning = shown
    root.handlers = handlers
    root.setLevel(levels[0])
    own.setLevel(levels[1])


@pytest.mark.filterwarnings("default")
def test_what_libraries_log_or_warn_of_is_a_json_object_a_line(untouched, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    run._log_to_stderr(ServiceSettings(log_level="info"))
    logging.getLogger("python_multipart.multipart").warning("Expected boundary")
    logging.getLogger("asyncio").error("out of files")
    logging.getLogger("asyncio").info("no line")
    warnings.warn("two\nlines", UserWarning, stacklevel=1)
    run.LOGGER.info("loaded")
    events = [json.loads(line)["event"] for line in capfd.readouterr().err.splitlines()]
    assert events[:2] == ["Expected boundary", "out of files"]
    assert "two\nlines" in events[2]
    assert events[3:] == ["loaded"]
