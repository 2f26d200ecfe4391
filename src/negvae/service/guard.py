"""What every request passes first and last: limits, key, time, request id, log line and counts."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect

from negvae.service.metrics import ServiceMetrics
from negvae.service.settings import ServiceSettings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = ("/", "/v2/health/live", "/v2/health/ready")
"""Paths that need no key: the page asks for the key itself, and health checks carry none."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
RETRY = {"retry-after": "1"}
CLOSED = 499
"""Status in the log where the client had gone before its answer."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SAFE = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"), (b"referrer-policy", b"no-referrer"))

LOGGER = logging.getLogger("negvae.service")


class Refused(Exception):
    """The exception of a request that is answered with an error.

    Args:
        status: HTTP status.
        text: what is wrong, for the client.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.headers = status, headers or {}


@dataclass
class _Exchange:
    """One request and what has become of it.

    Attributes:
        scope: ASGI scope of the request.
        headers: headers of the request; names in lower case.
        id: request id.
        received: bytes of the body so far.
        complete: whether the whole body was received.
        status: status of the answer; `CLOSED` before there is one.
        begun: whether the answer has begun.
    """

    scope: Message
    headers: dict[str, str]
    id: str = ""
    received: int = 0
    complete: bool = False
    status: int = CLOSED
    begun: bool = False
    started: float = field(default_factory=time.perf_counter)


class Guard:
    """The outermost part of the service, around the application.

    Args:
        app: ASGI application.
        settings: limits and key.
        metrics: counts of requests.
    """

    def __init__(self, app: App, settings: ServiceSettings, metrics: ServiceMetrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.active = 0
        key = settings.api_key
        self._key = key.get_secret_value().encode() if key is not None else None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        exchange = _Exchange(scope, headers, given if _ID.fullmatch(given) else secrets.token_hex(8))
        exchange.complete = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        scope["request_id"], scope["negvae.headers"] = exchange.id, headers
        self.active += 1
        try:
            await self._answer(exchange, self._counted(exchange, receive), self._marked(exchange, send))
        finally:
            self.active -= 1
            self._record(exchange)

    async def _answer(self, exchange: _Exchange, receive: Receive, send: Send) -> None:
        try:
            self._check(exchange)
            async with asyncio.timeout(self.settings.timeout):
                await self.app(exchange.scope, receive, send)
            return
        except Refused as refused:
            error = refused
        except TimeoutError:
            late = f"took longer than {self.settings.timeout:g} s"
            error = (
                Refused(503, f"the request {late}", RETRY) if exchange.complete else Refused(408, f"the body {late}")
            )
        except (ClientDisconnect, ConnectionError):
            return
        if not exchange.begun:
            body = json.dumps({"error": str(error)}).encode()
            answer = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
            if not exchange.complete:  # the rest of the body is not read
                answer["connection"] = "close"
            pairs = [(name.encode(), value.encode()) for name, value in answer.items()]
            await send({"type": "http.response.start", "status": error.status, "headers": pairs})
            await send({"type": "http.response.body", "body": body})

    def _check(self, exchange: _Exchange) -> None:
        """Refuse a request by its headers alone.

        Raises:
            Refused: if the request is refused.
        """
        settings, headers = self.settings, exchange.headers
        path = exchange.scope["path"]
        if self.active > settings.max_connections and path not in OPEN:
            raise Refused(503, f"{settings.max_connections} requests are in progress: try again", RETRY)
        host = headers.get("host", "").rsplit("@", 1)[-1]
        name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        if settings.host in LOOPBACK and name not in (*LOOPBACK, ""):
            raise Refused(403, f"this service is for this machine alone, and the request names the host {name[:80]!r}")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Refused(403, "requests of pages from elsewhere are refused")
        if self._key is not None and path not in OPEN and not self._knows_key(headers):
            raise Refused(401, "a key is needed: Authorization: Bearer KEY", {"www-authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > settings.max_body:
            raise Refused(413, f"the body has {int(length):,} bytes; at most {settings.max_body:,} are accepted")

    def _knows_key(self, headers: dict[str, str]) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        assert self._key is not None
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._key)

    def _counted(self, exchange: _Exchange, receive: Receive) -> Receive:
        """Return `receive` with a bound on the body, for one that does not say its length."""

        async def counted() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                exchange.received += len(message.get("body", b""))
                exchange.complete = not message.get("more_body", False)
                if exchange.received > self.settings.max_body:
                    raise Refused(413, f"the body has more than {self.settings.max_body:,} bytes")
            return message

        return counted

    def _marked(self, exchange: _Exchange, send: Send) -> Send:
        """Return `send` with the request id and safe defaults in the headers of the answer."""

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status, exchange.begun = message["status"], True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", exchange.id.encode()), *_SAFE]
            await send(message)

        return marked

    def _record(self, exchange: _Exchange) -> None:
        """Count the request, and log it."""
        seconds = time.perf_counter() - exchange.started
        route = getattr(exchange.scope.get("route"), "path", "other")
        self.metrics.on_request(route, exchange.status, seconds)
        if LOGGER.isEnabledFor(logging.INFO):
            client = exchange.scope.get("client")
            LOGGER.info(
                "request",
                extra={
                    "fields": {
                        "request_id": exchange.id, "method": exchange.scope["method"], "path": exchange.scope["path"],
                        "status": exchange.status, "seconds": round(seconds, 6), "bytes": exchange.received,
                        "client": client[0] if client else None,
                    }
                },
            )  # fmt: skip


class JsonLines(logging.Formatter):
    """A format of log records: one JSON object a line, with the fields that the record carries."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        content: dict[str, Any] = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=True, default=str)
