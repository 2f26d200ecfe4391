"""Run the service until it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import uvicorn

from negvae.service.app import Service, create_app
from negvae.service.guard import LOGGER, JsonLines
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
        config = uvicorn.Config(
            create_app(service), log_config=None, access_log=False, server_header=False, backlog=BACKLOG,
            timeout_graceful_shutdown=int(settings.timeout) + 1, timeout_keep_alive=30, ws="none",
        )  # fmt: skip
        # uvicorn repeats the signal when it has stopped, for whoever handled it before: this is its ordinary end.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        LOGGER.warning("listening", extra={"fields": {**fields, "process": os.getpid()}})
        uvicorn.Server(config).run(sockets=[listener])
    LOGGER.warning("stopped")


def _log_to_stderr(settings: ServiceSettings) -> None:
    """Send the service's log and uvicorn's messages about connections to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in (("negvae.service", settings.log_level.upper()), ("uvicorn.error", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
