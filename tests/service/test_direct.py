"""The short way of small requests: it answers as the long way does, and gives up nothing of limits, order and time."""

import re
import socket
import threading
import time

import numpy as np
import pytest
from benchmarks.serve import infer_body

from negvae.service import direct
from tests.conftest import blobs
from tests.service.conftest import SHAPE, served

NAME = "gray-onnx"


@pytest.fixture
def short(monkeypatch):
    """The requests that go the short way."""
    gone, ask = [], direct.DirectProtocol._ask

    def counted(connection, head, body):
        done = ask(connection, head, body)
        gone.append(head.path) if done else None
        return done

    monkeypatch.setattr(direct.DirectProtocol, "_ask", counted)
    return gone


def request(count=1, seed=0, more="", name=NAME):
    body, headers = infer_body(blobs(count, SHAPE, seed).numpy())
    fields = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    head = (
        f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: localhost\r\n{fields}{more}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def read(connection):
    """Return status, headers and body of the next answer."""
    text = b""
    while b"\r\n\r\n" not in text:
        part = connection.recv(1)
        assert part, text
        text += part
    head = text.decode().lower()
    body, length = b"", int(re.search(r"\ncontent-length: (\d+)", head)[1])
    while len(body) < length:
        body += connection.recv(length - len(body))
    return int(head.split()[1]), head, body


def connected(live):
    connection = socket.create_connection(("127.0.0.1", live.port), 30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def test_both_ways_give_one_answer(live, short):
    whole = request(3)
    with connected(live) as connection:
        connection.sendall(whole)
        status, head, body = read(connection)
        assert (status, len(short)) == (200, 1)
        assert "x-content-type-options: nosniff" in head
        for cut in (1, 30, whole.index(b"\r\n\r\n") + 2, whole.index(b"\r\n\r\n") + 4, len(whole) - 1):
            connection.sendall(whole[:cut])
            time.sleep(0.02)
            connection.sendall(whole[cut:])
            assert read(connection)[::2] == (200, body), cut
        assert len(short) >= 3  # those whose headers came whole
        before = len(short)
        for more in ("Connection: close\r\n", "X: \u00e9\r\n", "X: 1\r\nX: 2\r\n", "Expect: 100-continue\r\n"):
            with connected(live) as other:
                other.sendall(request(3, more=more))
                answer = read(other) if "Expect" not in more else (200, "", body)
                assert answer[::2] == (200, body), more
        assert len(short) == before
        connection.sendall(request(3, more="X-Request-Id: mine.1\r\n"))
        status, head, again = read(connection)
        assert ("x-request-id: mine.1" in head, again) == (True, body)


def test_requests_of_a_client_that_does_not_wait_are_answered_in_order(live, short):
    parts = [request(1 + number, number) for number in range(5)]
    wanted = []
    with connected(live) as connection:
        for part in parts:
            connection.sendall(part)
            wanted.append(read(connection)[2])
        connection.sendall(b"".join(parts))
        assert [read(connection)[2] for _ in parts] == wanted
        for part in parts:
            connection.sendall(part)
            time.sleep(0.001)
        assert [read(connection)[2] for _ in parts] == wanted
        connection.sendall(parts[0] + b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n" + parts[1])
        assert [read(connection)[2] for _ in range(3)] == [wanted[0], b'{"live":true}', wanted[1]]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ((b"UINT8", b"INT16"), 400), ((b"[1, 1, 28, 28]", b"[1, 1, 28, 29]"), 400), ((NAME.encode(), b"no-onnx"), 404),
        ((b"Host: localhost", b"Host: elsewhere"), 403), ((b"Host", b"Origin: http://a.example\r\nHost"), 403),
        ((b"infer HTTP", b"infer? HTTP"), 200), ((b"infer HTTP", b"infer?target_fpr=.5 HTTP"), 400),
        ((b"/models/", b"/models/%00"), 404),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused(live, short, change, status):
    with connected(live) as connection:
        connection.sendall(request().replace(*change))
        found, head, body = read(connection)
        assert found == status, body
        assert "x-request-id: " in head
    assert not short


def test_a_late_answer_is_503_and_the_connection_goes_on(models, short, monkeypatch):
    with served({NAME: models["gray"]}, timeout=0.4) as live:
        model, may_go_on = live.service.slots[NAME].model, threading.Event()
        scores = type(model).scores
        monkeypatch.setattr(
            type(model), "scores", lambda model, inputs: scores(model, inputs) if may_go_on.wait(20) else None
        )
        with connected(live) as connection, connected(live) as gone, connected(live) as half:
            half.sendall(request()[:-10])
            gone.sendall(request(2))
            time.sleep(0.1)
            gone.close()
            connection.sendall(request())
            status, head, body = read(connection)
            assert (status, "retry-after: 1" in head, b"took longer than 0.4 s" in body) == (503, True, True)
            assert read(half)[0] == 408
            may_go_on.set()
            found = []
            while 200 not in found and len(found) < 50:  # a busy machine may be late once more
                connection.sendall(request())
                found.append(read(connection)[0])
            assert found[-1] == 200
        text = live.ask("GET", "/metrics")[1].decode()
        assert f'status="503"}} {len(found)}.0' in text
        assert live.service.batcher.waiting == 0
    assert len(short) == 2 + len(found)


@pytest.mark.parametrize("start", [b"", b"\r\n"])
def test_a_connection_on_which_no_request_begins_is_closed(models, monkeypatch, start):
    made = direct.DirectProtocol.connection_made

    def impatient(connection, transport):
        made(connection, transport)
        connection.timeout_keep_alive = 0.1

    monkeypatch.setattr(direct.DirectProtocol, "connection_made", impatient)
    with served({NAME: models["gray-onnx"]}) as live, connected(live) as idle:
        idle.sendall(start)
        assert idle.recv(1) == b""


def test_a_request_in_progress_is_answered_before_the_end(models, short, monkeypatch):
    has_begun, may_go_on, found = threading.Event(), threading.Event(), []
    with served({NAME: models["gray"]}) as live:
        model = live.service.slots[NAME].model
        scores = type(model).scores

        def held(model, inputs):
            has_begun.set()
            return scores(model, inputs) if may_go_on.wait(20) else None

        monkeypatch.setattr(type(model), "scores", held)
        half, whole = connected(live), connected(live)
        half.sendall(request(seed=1)[:-10])
        whole.sendall(request())
        assert has_begun.wait(20)  # the half that came before has been read as well
        live.stop()
        time.sleep(0.3)
        half.sendall(request(seed=1)[-10:])
        may_go_on.set()
        for connection in (whole, half):
            found.append(read(connection))
            assert connection.recv(1) == b""
            connection.close()
    assert [status for status, *_ in found] == [200, 200]
    assert all("connection: close" in head for _, head, _ in found)
    assert short


def test_a_key_is_asked_for(models, short):
    with served({NAME: models["gray-onnx"]}, api_key="correct horse") as live:
        for more, status in (("", 401), ("X-API-Key: correct hors\r\n", 401), ("X-API-Key: correct horse\r\n", 200)):
            with connected(live) as connection:
                connection.sendall(request(more=more))
                assert read(connection)[0] == status
    assert len(short) == 1


def test_requests_beyond_the_most_in_progress_are_503(models, short):
    with served({NAME: models["gray-onnx"]}, max_connections=1) as live:
        with connected(live) as half, connected(live) as connection:
            half.sendall(
                b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            )
            half.sendall(b"Content-Length: 900\r\n\r\n--x\r\n")
            while not live.guard.active:
                time.sleep(0.01)
            connection.sendall(request())
            status, head, _ = read(connection)
            assert (status, "retry-after: 1" in head, len(short)) == (503, True, 0)
            assert live.ask("GET", "/v2/health/live")[0] == 200
        with connected(live) as connection:
            while live.guard.active:
                time.sleep(0.01)
            connection.sendall(request())
            assert (read(connection)[0], len(short)) == (200, 1)


def test_a_model_that_fails_is_an_error_of_the_service_alone(models, short, monkeypatch, caplog):
    with served({NAME: models["gray"]}) as live, connected(live) as connection:
        model = live.service.slots[NAME].model
        with monkeypatch.context() as patch:
            patch.setattr(type(model), "scores", lambda model, inputs: np.zeros(0)[1])
            connection.sendall(request())
            status, _, body = read(connection)
        assert (status, b"its log has the reason" in body) == (500, True)
        connection.sendall(request())
        assert read(connection)[0] == 200
