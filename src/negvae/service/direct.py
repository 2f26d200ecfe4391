"""The short way of small requests for scores, from the socket to the queue and back, for the rate of single images.

A task, an ASGI message and a match of routes for each request take longer than the score of an image. A request for
scores that comes whole, with headers that say nothing unusual, is read here from the connection, put into the queue,
and answered when its batch is done. Everything else, and each request that would be answered with an error before it is
in the queue, goes to uvicorn's protocol and the application unchanged, so this module knows no rule of its own: limits,
key and counts are those of `negvae.service.guard`, and the request is read and answered by `negvae.service.protocol`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from negvae.service.batching import Job, QueueFull
from negvae.service.guard import RETRY, SAFE, Exchange, Guard, Refused, request_id
from negvae.service.inference import INFER, INFER_VERSION, failure, read, written
from negvae.service.models import Inputs
from negvae.service.protocol import HEADER, SMALL, InferRequest

if TYPE_CHECKING:
    from negvae.service.app import Service

START = b"POST /v2/models/"
LARGEST_HEAD, LARGEST_BODY = 4_096, SMALL
"""Bytes of headers, and of a body, that are read here at most."""
MOST_FIELDS = 65_536
"""Bytes of headers or trailers, which uvicorn's parser keeps without a bound, or between parts of a body, at most."""
HELD = 1.0
"""Seconds for which an incomplete request is kept here at most; then the application waits for its end."""
_LINE = re.compile(rb"POST /v2/models/([A-Za-z0-9._-]+)(/versions/1)?/infer HTTP/1\.1")
_FIELD = re.compile(rb"([A-Za-z0-9-]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)?[ \t]*")
_UNUSUAL = {"transfer-encoding", "expect", "upgrade", "content-encoding", "te", "trailer"}
_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_SAFE = b"".join(name + b": " + value + b"\r\n" for name, value in SAFE)


@dataclass(frozen=True)
class Head:
    """The headers of a request that may go the short way.

    Attributes:
        model: name of the model.
        path: path of the request.
        headers: headers; names in lower case.
        length: number of bytes of the body.
        route: path of the route, for the metrics.
    """

    model: str
    path: str
    headers: Mapping[str, str]
    length: int
    route: str


class ShortWay:
    """What the connections share.

    Args:
        service: what the routes share.
        guard: limits, key and counts.
    """

    def __init__(self, service: Service, guard: Guard) -> None:
        self.service, self.guard = service, guard
        self.connections: set[DirectProtocol] = set()
        self._timer: asyncio.TimerHandle | None = None
        # The clients of a connection repeat themselves, so that most heads were seen before.
        self.head = lru_cache(512)(self._head)

    def add(self, connection: DirectProtocol) -> None:
        """Look after a connection until it is discarded."""
        self.connections.add(connection)
        if self._timer is None:
            self._look()

    def _look(self) -> None:
        """End what takes too long, on all connections: a timer for each request would take a tenth of its time."""
        now = time.perf_counter()
        for connection in list(self.connections):
            connection.look(now, self.guard.settings.timeout)
        every = min(HELD, self.guard.settings.timeout / 4)
        self._timer = asyncio.get_running_loop().call_later(every, self._look) if self.connections else None

    def _head(self, text: bytes) -> Head | None:
        """Read the request line and the headers; return None unless the guard lets the request pass."""
        line, *fields = text.split(b"\r\n")
        named = _LINE.fullmatch(line)
        found = [_FIELD.fullmatch(field) for field in fields]
        if named is None or not all(found):
            return None
        headers = {each[1].decode().lower(): (each[2] or b"").decode() for each in found if each is not None}
        length = headers.get("content-length", "")
        if len(headers) < len(fields) or not headers.keys().isdisjoint(_UNUSUAL) or not length.isdigit():
            return None
        if headers.get("connection", "keep-alive").lower() != "keep-alive" or len(length) > 9:
            return None
        path = line.split(b" ")[1].decode()
        try:
            self.guard.check(headers, path)
        except Refused:
            return None
        if int(length) > LARGEST_BODY:
            return None
        return Head(named[1].decode(), path, headers, int(length), INFER_VERSION if named[2] else INFER)


@dataclass(eq=False, slots=True)
class _Asked:
    """A request in the queue.

    Attributes:
        exchange: the request and what has become of it.
        head: its headers.
        request: what it asks for.
        job: its place in the queue.
    """

    exchange: Exchange
    head: Head
    request: InferRequest
    job: Job


class DirectProtocol(HttpToolsProtocol):
    """A connection of uvicorn with a short way for small requests for scores.

    Further arguments are those of uvicorn's protocol.

    Args:
        way: what the connections share.
    """

    def __init__(self, way: ShortWay, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._way = way
        self._inside = False  # whether uvicorn's parser has seen part of a request
        self._held = b""
        self._since: float | None = None  # when the connection began to hold data, or to wait for a request
        self._head_since: float | None = None  # when headers that uvicorn reads began
        self._fields = 0  # bytes that uvicorn's parser has got since the last that was body
        self._asked: _Asked | None = None
        self._closing = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        self._since = time.perf_counter()
        self._way.add(self)

    def look(self, now: float, timeout: float) -> None:
        """End what takes too long: a request, one that is not complete, or waiting for the next one.

        Args:
            now: time by `time.perf_counter`, in seconds.
            timeout: time for a request, in seconds.
        """
        if self._asked is not None:
            if now - self._asked.exchange.started > timeout:
                self._fail(Refused(503, f"the request took longer than {timeout:g} s", RETRY))
        elif self._since is not None:
            if self._held and now - self._since > min(HELD, timeout / 4):
                self._let_go()
            elif not self._held and now - self._since > self.timeout_keep_alive:
                self.transport.close()
        elif self._head_since is not None and now - self._head_since > timeout and not self._is_answering:
            self._end_head(Refused(408, f"the headers took longer than {timeout:g} s"))

    def _end_head(self, refused: Refused) -> None:
        """End a request whose headers uvicorn would go on reading without end; answer it if no other is in progress."""
        if self._head_since is not None and not self._is_answering:
            self._write(refused.status, refused.body(), b"content-type: application/json\r\nconnection: close\r\n")
            self._way.guard.metrics.on_request("other", refused.status, time.perf_counter() - self._head_since)
        self._head_since = None
        self.transport.close()

    def on_message_begin(self) -> None:
        """Note that uvicorn's parser has begun to read a request."""
        self._inside, self._head_since = True, time.perf_counter()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note that uvicorn's parser has read all headers of a request; from now on the guard looks at the time."""
        self._head_since, self._fields = None, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Note that uvicorn's parser has read part of a body, whose size the guard looks at."""
        self._fields = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that uvicorn's parser has read a whole request."""
        self._inside, self._fields = False, 0
        super().on_message_complete()

    @property
    def _is_answering(self) -> bool:
        """Whether uvicorn's side has not yet answered a request completely."""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Take a request for scores the short way, and leave everything else to uvicorn."""
        if self._asked is not None:  # the client does not wait for its answer
            self._held += data
            self.transport.pause_reading()
            return
        whole = self._held + data if self._held else data
        if self._inside or self.flow.write_paused or self._is_answering:
            self._leave(whole)
            return
        end = whole.find(b"\r\n\r\n", 0, LARGEST_HEAD) if whole.startswith(START) else -1
        head = self._way.head(whole[:end]) if end >= 0 else None
        missing = 0 if head is None else end + 4 + head.length - len(whole)
        if head is not None and missing > 0:
            self._since = self._since if self._held else time.perf_counter()
            self._held = whole
            return
        self._held, self._since = b"", None
        if head is None or missing < 0 or not self._ask(head, whole[end + 4 :]):
            self._leave(whole)

    def _let_go(self) -> None:
        """Give uvicorn the beginning of a request whose end has not come."""
        if self._held and not self.transport.is_closing():
            self._leave(self._held)
        self._held, self._since = b"", None

    def _leave(self, data: bytes) -> None:
        """Leave data to uvicorn, which looks at the time only once it has read the headers of a request."""
        self._held, self._since = b"", None
        if not self._inside or self._head_since is not None:  # otherwise it is of a body
            end = data.find(b"\r\n\r\n")
            if self._fields + (len(data) if end < 0 else end) > MOST_FIELDS:
                self._head_since = self._head_since or time.perf_counter()
                self._end_head(Refused(431, f"the headers have more than {MOST_FIELDS:,} bytes"))
                return
        self._fields += len(data)
        super().data_received(data)
        if self._fields > MOST_FIELDS and not self.transport.is_closing():  # of what follows a body in chunks
            self._end_head(Refused(431, f"the headers have more than {MOST_FIELDS:,} bytes"))
        if not self._inside and not self._is_answering and not self.transport.is_closing():
            self._since = time.perf_counter()  # an empty line before a request, which ends uvicorn's own clock

    def _ask(self, head: Head, body: bytes) -> bool:
        """Put a request into the queue; return False if it has to go the long way."""
        service, guard = self._way.service, self._way.guard
        try:
            slot, model = service.ready(head.model)
            if model.spec.tiled or guard.active >= guard.settings.max_connections:
                return False
            request = read(service, model, body, head.headers)
            inputs = Inputs(request.stored)
            job = Job(slot, model, inputs, None, inputs.size, self._answer)
            service.batcher.put(job)
        except (Refused, ValueError, QueueFull):
            return False
        self._unset_keepalive_if_required()
        exchange = Exchange(
            "POST", head.path, self.client[0] if self.client else "", request_id(head.headers), head.route
        )
        exchange.received, exchange.complete = len(body), True
        self._asked = _Asked(exchange, head, request, job)
        guard.active += 1
        return True

    def _answer(self, result: Any) -> None:
        """Answer the request when its batch is done."""
        asked = self._asked
        if asked is None or asked.job.gone:
            return
        try:
            if isinstance(result, Exception):
                raise result
            content, size = written(asked.head.model, asked.job.model, asked.request, result)
        except Refused as refused:
            self._fail(refused)
            return
        except Exception as error:
            self._fail(failure(error, asked.exchange.id, asked.exchange.path))
            return
        if size is None:
            self._send(200, content, b"content-type: application/json\r\n")
        else:
            self._send(200, content, b"content-type: application/octet-stream\r\n%s: %d\r\n" % (HEADER.encode(), size))

    def _fail(self, refused: Refused) -> None:
        more = b"".join(f"{name}: {value}\r\n".encode() for name, value in refused.headers.items())
        self._send(refused.status, refused.body(), b"content-type: application/json\r\n" + more)

    def _send(self, status: int, content: bytes, fields: bytes) -> None:
        """Write the answer, and go on with what came meanwhile."""
        asked = self._done(status)
        close = b"connection: close\r\n" if self._closing else b""
        self._write(status, content, b"%sx-request-id: %s\r\n%s" % (fields, asked.exchange.id.encode(), close))
        if self._closing:
            self.transport.close()
            return
        self.server_state.total_requests += 1
        self._since = time.perf_counter()
        if self._held:
            self.transport.resume_reading()
            self.loop.call_soon(self._go_on)

    def _write(self, status: int, content: bytes, fields: bytes) -> None:
        """Write an answer, with the headers that all have."""
        default = b"".join(name + b": " + value + b"\r\n" for name, value in self.server_state.default_headers)
        self.transport.write(
            b"%s%s%scontent-length: %d\r\n%s\r\n%s" % (_STATUS[status], default, fields, len(content), _SAFE, content)
        )

    def _go_on(self) -> None:
        """Read what came before the answer, unless it was read with what came after."""
        if self._held and self._asked is None and not self.transport.is_closing():
            self.data_received(b"")

    def _done(self, status: int) -> _Asked:
        """Take the request off the connection, and record it."""
        asked = self._asked
        assert asked is not None
        self._asked = None
        asked.job.gone = True
        asked.exchange.status = status
        self._way.guard.active -= 1
        self._way.guard.record(asked.exchange)
        return asked

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop the request of a client that has gone."""
        self._way.connections.discard(self)
        if self._asked is not None:
            self._done(self._asked.exchange.status)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close the connection, after the answer if a request is in progress."""
        if self._asked is not None:
            self._closing = True
            return
        self._let_go()
        super().shutdown()


def protocol_of(service: Service, guard: Guard) -> Callable[..., DirectProtocol]:
    """Return what makes a connection's protocol, for `uvicorn.Config(http=...)`.

    Args:
        service: what the routes share.
        guard: limits, key and counts.

    Returns:
        A function of uvicorn's arguments.
    """
    way = ShortWay(service, guard)
    return lambda **arguments: DirectProtocol(way, **arguments)
