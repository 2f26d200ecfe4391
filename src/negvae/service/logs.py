"""The service's log on standard error: one JSON object a line."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from functools import lru_cache
from typing import Any

LOGGER = logging.getLogger("negvae.service")
DELAY, MOST = 0.2, 500
"""Seconds and number of lines of requests that are collected before they are written."""


_quoted = lru_cache(1024)(json.dumps)


class JsonLines(logging.Formatter):
    """A format of log records: one JSON object a line, with the fields that the record carries."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, or the lines of requests that it carries."""
        if (lines := getattr(record, "lines", None)) is not None:
            return "\n".join(lines)
        content: dict[str, Any] = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=True, default=str)


class RequestLog:
    """The lines of requests, which are written together: a line by itself would take longer than much of its request.

    Attributes:
        on: whether requests are logged.
    """

    def __init__(self) -> None:
        self.on = LOGGER.isEnabledFor(logging.INFO)
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._second, self._text = -1, ""

    def add(self, identifier: str, method: str, path: str, status: int, seconds: float, size: int, client: str) -> None:
        """Add a line; called in the event loop.

        Args:
            identifier: request id, of letters, digits, dots, dashes and underscores.
            method: method of the request.
            path: path of the request.
            status: status of the answer.
            seconds: time from the request to its answer, in seconds.
            size: number of bytes of the body.
            client: address of the client; empty if it is not known.
        """
        now = time.time()
        if int(now) != self._second:
            self._second, self._text = int(now), time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now))
        self._lines.append(
            f'{{"time": "{self._text}.{int(now % 1 * 1000):03d}", "level": "info", "event": "request",'
            f' "request_id": "{identifier}", "method": {_quoted(method)}, "path": {_quoted(path)},'
            f' "status": {status}, "seconds": {seconds:.6f}, "bytes": {size}, "client": {_quoted(client or None)}}}'
        )
        if len(self._lines) >= MOST:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY, self.flush)

    def flush(self) -> None:
        """Write the lines that were collected."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lines:
            lines, self._lines = self._lines, []
            LOGGER.info("requests", extra={"lines": lines})
