"""Headers without end: they are refused before they fill the memory, and a large body is not taken for them."""

from contextlib import suppress

import pytest
import uvicorn

from negvae.service import guard
from tests.service.conftest import served
from tests.service.test_direct import connected, read

CHUNKED = b"POST /v1/score?model=m HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def empty():
    with served({}) as running:
        yield running


@pytest.mark.parametrize("fields", [b"X-A: " + b"a" * 70_000, b"X-A: a\r\n" * 9_000])
def test_headers_without_end_are_refused(empty, fields):
    with connected(empty) as connection:
        connection.settimeout(10)
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n" + fields)
        status, head, body = read(connection)
        assert (status, "connection: close" in head, b"more than 65,536 bytes" in body) == (431, True, True)
        assert connection.recv(1) == b""


def test_trailers_without_end_close_the_connection(empty):
    with connected(empty) as connection, suppress(ConnectionError):
        connection.settimeout(10)
        connection.sendall(CHUNKED + b"1\r\na\r\n0\r\n" + b"X-A: a\r\n" * 60_000)
        while connection.recv(1000):
            pass


def test_a_large_body_is_not_taken_for_headers(empty):
    with connected(empty) as connection:
        connection.sendall(CHUNKED + b"61a80\r\n" + b"a" * 400_000 + b"\r\n0\r\n\r\nGET /v2 HTTP/1.1\r\n\r\n")
        assert read(connection)[0] == 404
        assert read(connection)[0] == 200


def test_headers_that_come_with_their_end_are_counted_too(empty):
    with connected(empty) as connection:
        connection.settimeout(10)
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 70_000 + b"\r\n\r\n")
        status, _, body = read(connection)
        assert (status, b"more than 65,536 bytes" in body) == (431, True)
        assert connection.recv(1) == b""


@pytest.mark.parametrize("start", [
    b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n",
    b"POST /v1/score?model=m HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n",
    CHUNKED,
])  # fmt: skip
def test_a_body_that_nobody_waits_for_is_read_for_a_while_and_the_connection_closed(empty, start, monkeypatch):
    monkeypatch.setattr(guard, "LINGER", 0.5)
    with connected(empty) as connection:
        connection.settimeout(10)
        connection.sendall(start)
        status, head, _ = read(connection)
        assert (status, "connection: close" in head) == (200 if start.startswith(b"GET") else 404, True)
        with suppress(ConnectionError):
            assert connection.recv(1) == b""


def test_an_empty_line_does_not_keep_a_connection_open(monkeypatch):
    of_uvicorn = uvicorn.Config
    monkeypatch.setattr(uvicorn, "Config", lambda *a, **k: of_uvicorn(*a, **{**k, "timeout_keep_alive": 1}))
    with served({}) as running, connected(running) as connection:
        connection.settimeout(30)
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read(connection)[0] == 200
        connection.sendall(b"\r\n")
        assert connection.recv(1) == b""  # and not a timeout
