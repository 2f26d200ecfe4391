"""Run the service until it is told to stop."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn

from negvae.service.app import Service, create_app
from negvae.service.direct import protocol_of
from negvae.service.logs import LOGGER, JsonLines
from negvae.service.settings import ServiceSettings

BACKLOG = 2048


def serve(paths: Mapping[str, Path], settings: ServiceSettings) -> None:
    """Serve models until SIGTERM or Ctrl-C; requests that were accepted are finished first.

    The log goes to standard error, one JSON object a line; the line "listening" has the address.

    Args:
        paths: folders of runs, or exported files, by the models' names.
        settings: settings of the service.

    Raises:
        OSError: if a model does not exist, or the port is taken.
        ValueError: if a model cannot be loaded.
    """
    _log_to_stderr(settings)
    service = Service.of(settings, paths)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG) as listener:
        address, port = listener.getsockname()[:2]
        host = f"[{address}]" if family == socket.AF_INET6 else address
        fields = {"url": f"http://{host}:{port}/", "models": {name: str(path) for name, path in paths.items()}}
        server = uvicorn.Server(configuration(service))
        # uvicorn repeats the signal when it has stopped, for whoever handled it before: this is its ordinary end. A
        # signal that comes before uvicorn listens to signals ends it as well.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        gc.collect()
        gc.freeze()  # what a model consists of stays, and looking through it again would stop all requests for a while
        LOGGER.warning("listening", extra={"fields": {**fields, "process": os.getpid()}})
        server.run(sockets=[listener])
    LOGGER.warning("stopped")


def configuration(service: Service) -> uvicorn.Config:
    """Return the configuration of the server.

    Args:
        service: what the routes share.

    Returns:
        Settings of uvicorn, for a socket that is given to it or for a free port.
    """
    settings, guard = service.settings, create_app(service)
    protocol: Any = protocol_of(service, guard)
    return uvicorn.Config(
        guard, port=0, http=protocol, log_config=None, access_log=False, server_header=False, backlog=BACKLOG,
        timeout_graceful_shutdown=int(settings.timeout) + 1, timeout_keep_alive=30, ws="none", lifespan="on",
        proxy_headers=False,
    )  # fmt: skip


def _log_to_stderr(settings: ServiceSettings) -> None:
    """Send the service's log, and what libraries log or warn of, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel("WARNING")
    LOGGER.setLevel(settings.log_level.upper())
    logging.captureWarnings(True)
