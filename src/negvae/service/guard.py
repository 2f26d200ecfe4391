"""What every request passes first and last: limits, key, time, request id, log line and counts."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import itertools
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect

from negvae.service.logs import LOGGER as LOGGER
from negvae.service.logs import RequestLog
from negvae.service.metrics import ServiceMetrics
from negvae.service.settings import ServiceSettings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = ("/", "/v2/health/live", "/v2/health/ready")
"""Paths that need no key: the page asks for the key itself, and health checks carry none."""
LINGER = 5.0
"""Seconds for which the rest of a body that is not needed is read, since many clients look for an answer only once they
have sent all."""
MOMENT = 0.1
"""Seconds within which a body that is not needed must have come for its connection to stay open."""
RETRY = {"retry-after": "1"}
CLOSED = 499
"""Status in the log where the client had gone before its answer."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
SAFE = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"), (b"referrer-policy", b"no-referrer"))
_PREFIX, _NUMBERS = secrets.token_hex(4), itertools.count()


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

    def body(self) -> bytes:
        """Return the body of the answer."""
        return json.dumps({"error": str(self)}).encode()


def _is_address(host: str, loopback: bool) -> bool:
    """Return whether a host is localhost or an address, where wanted one of this machine itself.

    A page from elsewhere can make a browser take its own name for this machine, but not an address.

    >>> _is_address("127.0.0.2", True), _is_address("10.0.0.1", True), _is_address("10.0.0.1", False)
    (True, False, True)
    """
    try:
        return ipaddress.ip_address(host).is_loopback or not loopback
    except ValueError:
        return host == "localhost"


async def _read_rest(exchange: Exchange, receive: Receive, seconds: float) -> None:
    """Read what has not come of a body for a while, and throw it away."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not exchange.complete and (await receive())["type"] == "http.request":
                pass


def _name(host: str) -> str:
    """Return the name or address in a host with a port.

    >>> _name("[::1]:8000"), _name("guard.example:443"), _name("guard.example")
    ('::1', 'guard.example', 'guard.example')
    """
    return host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]


def request_id(headers: Mapping[str, str]) -> str:
    """Return the id that a request carries, or a new one."""
    given = headers.get("x-request-id")
    return given if given is not None and _ID.fullmatch(given) else f"{_PREFIX}{next(_NUMBERS):08x}"


@dataclass(slots=True)
class Exchange:
    """One request and what has become of it.

    Attributes:
        method: method of the request.
        path: path of the request.
        client: address of the client; empty if it is not known.
        id: request id.
        route: path of the route, for the metrics.
        received: bytes of the body so far.
        complete: whether the whole body was received.
        status: status of the answer; `CLOSED` before there is one.
        begun: whether the answer has begun.
        is_refused: whether the guard itself answers.
        held: whether the application has ended the answer, and the end is held back until the body has come.
        may_end: whether the answer may end although the body has not come completely.
        started: when the request came.
    """

    method: str
    path: str
    client: str
    id: str
    route: str = "other"
    received: int = 0
    complete: bool = False
    status: int = CLOSED
    begun: bool = False
    is_refused: bool = False
    held: bool = False
    may_end: bool = False
    started: float = field(default_factory=time.perf_counter)


class Guard:
    """The outermost part of the service, around the application.

    Args:
        app: ASGI application.
        settings: limits and key.
        metrics: counts of requests.
        log: lines of requests.

    Attributes:
        active: number of requests in progress.
    """

    def __init__(self, app: App, settings: ServiceSettings, metrics: ServiceMetrics, log: RequestLog) -> None:
        self.app, self.settings, self.metrics, self.log = app, settings, metrics, log
        self.active = 0
        key = settings.api_key
        self._key = key.get_secret_value().encode() if key is not None else b""
        self._is_local = _is_address(settings.host.lower(), True)
        entries = (entry.strip().lower() for entry in settings.allowed_hosts.split(","))
        # As they stand in an address bar, with scheme and port.
        self._allowed = {_name(entry.rpartition("://")[2].rstrip("/")) for entry in entries} - {""}
        self._hosts = self._allowed | {settings.host.lower()}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method = scope["method"]
        scope = {**scope, "method": "GET"} if method == "HEAD" else scope  # the server sends no body
        client = scope.get("client")
        exchange = Exchange(method, scope["path"], client[0] if client else "", request_id(headers))
        exchange.complete = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        scope["request_id"] = exchange.id
        self.active += 1
        receive = self._counted(exchange, receive)
        try:
            await self._answer(scope, headers, exchange, receive, self._marked(exchange, receive, send))
        finally:
            self.active -= 1
            exchange.route = getattr(scope.get("route"), "path", "other")
            self.record(exchange)

    async def _answer(
        self, scope: Message, headers: Mapping[str, str], exchange: Exchange, receive: Receive, send: Send
    ) -> None:
        try:
            self._check_room(exchange.path)
            self.check(headers, exchange.path)
            async with asyncio.timeout(self.settings.timeout):
                await self.app(scope, receive, send)
            if exchange.held:
                await self._end(exchange, receive, send)
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
        except Exception:
            if not exchange.begun:
                raise
            if exchange.held:  # the application has logged and answered it
                await self._end(exchange, receive, send)
            return
        if not exchange.begun:
            await self._refuse(error, exchange, receive, send)

    async def _refuse(self, error: Refused, exchange: Exchange, receive: Receive, send: Send) -> None:
        """Answer with an error; what has not come of the body is read for a while and thrown away."""
        exchange.is_refused, body = True, error.body()
        answer = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
        pairs = [(name.encode(), value.encode()) for name, value in answer.items()]
        await send({"type": "http.response.start", "status": error.status, "headers": pairs})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        # If not, the body is late already, or there is no room to wait for it.
        await self._end(exchange, receive, send, lingers=error.status not in (408, 503))

    async def _end(self, exchange: Exchange, receive: Receive, send: Send, lingers: bool = True) -> None:
        """End an answer; what has not come of the body is read for a while and thrown away."""
        if lingers:
            await _read_rest(exchange, receive, LINGER)
        exchange.may_end = True
        await send({"type": "http.response.body"})

    def _check_room(self, path: str) -> None:
        if self.active > self.settings.max_connections and path not in OPEN:
            raise Refused(503, f"{self.settings.max_connections} requests are in progress: try again", RETRY)

    def check(self, headers: Mapping[str, str], path: str) -> None:
        """Refuse a request by its headers alone.

        Args:
            headers: headers of the request; names in lower case.
            path: path of the request.

        Raises:
            Refused: if the request is refused.
        """
        settings = self.settings
        host = headers.get("host", "").rsplit("@", 1)[-1].lower()
        name = _name(host)
        known = not name or name in self._hosts or _is_address(name, self._is_local)
        if not known and not self._key:  # with a key, a page from elsewhere gets nowhere: it does not know the key
            raise Refused(403, f"the request names the host {name[:80]!r}, which is not in allowed_hosts")
        origin = headers.get("origin")
        if origin is not None and (at := origin.partition("://")[2].lower()) != host and _name(at) not in self._allowed:
            raise Refused(403, "requests of pages from elsewhere are refused")
        if self._key and path not in OPEN and not self._knows_key(headers):
            raise Refused(401, "a key is needed: Authorization: Bearer KEY", {"www-authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > settings.max_body:
            raise Refused(413, f"the body has {int(length):,} bytes; at most {settings.max_body:,} are accepted")

    def _knows_key(self, headers: Mapping[str, str]) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        raw = given.encode("latin-1", "replace")  # the bytes that came, as ASGI decodes them
        return hmac.compare_digest(raw, self._key)

    def _counted(self, exchange: Exchange, receive: Receive) -> Receive:
        """Return `receive` with a bound on the body, for one that does not say its length."""

        async def counted() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                exchange.received += len(message.get("body", b""))
                exchange.complete = not message.get("more_body", False)
                if exchange.received > self.settings.max_body and not exchange.begun:
                    raise Refused(413, f"the body has more than {self.settings.max_body:,} bytes")
            return message

        return counted

    def _marked(self, exchange: Exchange, receive: Receive, send: Send) -> Send:
        """Return `send` with the request id and safe defaults in the headers of the answer."""

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status, exchange.begun = message["status"], True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", exchange.id.encode()), *SAFE]
                if not exchange.complete and not exchange.is_refused:
                    await _read_rest(exchange, receive, MOMENT)  # as of a body that came with its headers
                if not exchange.complete:
                    message["headers"].append((b"connection", b"close"))
            elif message["type"] == "http.response.body" and not (exchange.complete or exchange.may_end):
                # The server would read what comes after the end without a bound.
                exchange.held = not message.get("more_body", False)
                message = {**message, "more_body": True}
            await send(message)

        return marked

    def record(self, exchange: Exchange) -> None:
        """Count a request, and log it."""
        seconds = time.perf_counter() - exchange.started
        self.metrics.on_request(exchange.route, exchange.status, seconds)
        if self.log.on:
            self.log.add(
                exchange.id, exchange.method, exchange.path, exchange.status, seconds, exchange.received,
                exchange.client,
            )  # fmt: skip
