"""The service under load: its rate beside the library's, memory over minutes, and malformed requests.

    python benchmarks/serve.py rate MODEL           # needs wrk
    python benchmarks/serve.py load MODEL --minutes 30
    python benchmarks/serve.py fuzz MODEL --requests 10000

MODEL is the folder of a calibrated run that takes images. Each prints what it measured as one JSON object, and ends
with an error if something that must not happen happened: a status of 500 or above other than 503, a crash, or memory
that grows.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

GROWTH = 24_000_000
"""Bytes by which resident memory may grow after the warm-up: caches of the allocator, not a leak for each request."""


@dataclass
class Running:
    """A service in a process of its own.

    Attributes:
        host: Address.
        port: Port.
        process: Its process.
        name: Name of its model.
        shape: Shape (C, H, W) of the model's images.
    """

    port: int
    process: subprocess.Popen[bytes]
    name: str
    shape: tuple[int, int, int]
    host: str = "127.0.0.1"

    def memory(self) -> int:
        """Return the resident memory in bytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", text).group(1))

    def processor_seconds(self) -> float:
        """Return the processor time of the service so far, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Send one request over a new connection, and return status and body."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@contextmanager
def running(model: Path, *flags: str) -> Iterator[Running]:
    """Run `negvae serve` on a free port until the block ends, and check that it stops by itself when asked."""
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-c", "from negvae.cli import main; main()", "serve", f"m={model}", "--port", "0"]
        process = subprocess.Popen([*command, "--log-level", "warning", *flags], stderr=log)
        try:
            port = _port(process, log)
            service = Running(port, process, "m", (1, 1, 1))
            service.shape = tuple(json.loads(service.ask("GET", "/v1/models/m")[1])["shape"])
            yield service
            process.terminate()
            if process.wait(120) != 0:
                log.seek(0)
                raise SystemExit(f"the service ended with {process.returncode}: {log.read()[-2000:].decode()}")
        finally:
            process.kill()
            process.wait()


def _port(process: subprocess.Popen[bytes], log: io.BufferedRandom) -> int:
    for _ in range(2400):
        time.sleep(0.1)
        log.seek(0)
        text = log.read().decode()
        if found := re.search(r'"listening".*?:(\d+)/"', text):
            return int(found.group(1))
        if process.poll() is not None:
            raise SystemExit(f"the service did not start: {text[-2000:]}")
    raise SystemExit(f"the service did not start within 4 minutes: {text[-2000:]}")


# --- requests -----


def infer_body(images: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a binary request for scores."""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "images", "shape": list(images.shape), "datatype": "UINT8",
                    "parameters": {"binary_data_size": images.size},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()  # fmt: skip
    return head + images.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def form_body(files: list[tuple[str, bytes]]) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a multipart form of files."""
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + b"--edge--\r\n", {"Content-Type": "multipart/form-data; boundary=edge"}


def encoded(image: np.ndarray, form: str = "PNG") -> bytes:
    """Return an image (uint8, C x H x W) as a file."""
    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, form)
    return buffer.getvalue()


def noise(draw: random.Random, shape: tuple[int, ...]) -> np.ndarray:
    """Return random pixels."""
    return np.frombuffer(draw.randbytes(int(np.prod(shape))), np.uint8).reshape(shape)


def malformed(draw: random.Random, service: Running) -> tuple[str, str, bytes, dict[str, str]]:
    """Return method, path, body and headers of a request that is wrong somewhere, or sometimes by chance right."""
    kind = draw.randrange(8)
    infer, score = f"/v2/models/{service.name}/infer", f"/v1/score?model={service.name}&include=position"
    if kind < 3:
        body, headers = infer_body(noise(draw, (draw.randrange(1, 4), *service.shape)))
        if kind == 0:
            headers["Inference-Header-Content-Length"] = draw.choice(
                ["-1", "9" * 30, "x", "0", str(draw.randrange(900))]
            )
        return "POST", infer, damaged(draw, body), headers
    if kind == 3:
        body = json.dumps(_nonsense(draw, service)).encode()
        return ("POST", infer, *draw.choice([(body, {}), (gzip.compress(body), {"Content-Encoding": "gzip"})]))
    if kind == 4:
        deep = draw.choice(
            [
                b"[" * 100_000,
                b'{"inputs":' * 20_000,
                b"9" * 50_000,
                b"\xff\xfe",
                b'{"inputs":[NaN]}',
                b"",
                b" " * 9_000_000,
            ]
        )
        encoding = draw.choice(["", "gzip", "br", "deflate"])
        packed = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding, bytes)
        return "POST", infer, packed(deep) if draw.random() < 0.5 else deep, {"Content-Encoding": encoding}
    if kind == 5:
        method = draw.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
        path = "/" + "/".join(
            draw.choice(["v1", "v2", "models", "m", "%00", "..", "infer", "score", "é".encode().hex()])
            for _ in range(4)
        )
        return method, path, b"", {}
    form = draw.choice(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
    files = [
        (
            draw.choice(["a.png", "\\x", "../../b", "\\ud800", "c" * 300]),
            damaged(draw, encoded(noise(draw, service.shape), form)),
        )
    ]
    if kind == 6:
        files += [
            (
                "rows.npy",
                damaged(
                    draw,
                    b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999, 28, 28), }"
                    + b" " * 40,
                ),
            )
        ]
    body, headers = form_body(files)
    charset = draw.choice(["utf-8", "undefined", "unicode_escape", "idna", "utf-16", "\xe9", '"'])
    headers["Content-Type"] += draw.choice(["", f"; charset={charset}"])
    return "POST", score, body if draw.random() < 0.7 else damaged(draw, body), headers


def damaged(draw: random.Random, content: bytes) -> bytes:
    """Return content with bytes changed, cut off, removed or repeated."""
    changed = bytearray(content)
    for _ in range(draw.randrange(1, 6)):
        at = draw.randrange(len(changed)) if changed else 0
        kind = draw.randrange(4)
        if kind == 0 and changed:
            changed[at] = draw.randrange(256)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            del changed[at : at + draw.randrange(1, 20)]
        else:
            changed[at:at] = changed[at : at + draw.randrange(1, 50)]
    return bytes(changed)


def _nonsense(draw: random.Random, service: Running) -> object:
    """Return a request whose fields have values of the wrong kind."""
    odd = [None, True, -1, 2**70, 1e308, "x" * 50, [], {}, [[1], [1, 2]], [None], {"a": []}, [2**63], "images", "UINT8"]
    tensor = {
        "name": "images",
        "shape": [1, *service.shape],
        "datatype": "UINT8",
        "data": [0] * int(np.prod(service.shape)),
    }
    if draw.random() < 0.3:
        tensor["data"][draw.randrange(len(tensor["data"]))] = draw.choice(
            ["x" * 100_000, 0.5, True, None, [1], 10**400]
        )
    request = {"inputs": [tensor], "outputs": [{"name": "score"}], "id": "1", "parameters": {}}
    for _ in range(draw.randrange(1, 4)):
        target = draw.choice([tensor, request])
        target[draw.choice(list(target))] = draw.choice(odd)
    return request


# --- rude clients -----


def half_a_body(service: Running, draw: random.Random) -> None:
    """Promise a body, send part of it, and go."""
    with suppress(OSError), socket.create_connection((service.host, service.port), 10) as connection:
        connection.sendall(
            f"POST /v2/models/m/infer HTTP/1.1\r\nHost: {service.host}\r\nContent-Length: 5000\r\n\r\n".encode()
        )
        connection.sendall(draw.randbytes(draw.randrange(4000)))


def gone_before_the_answer(service: Running, draw: random.Random) -> None:
    """Send a whole request, and reset the connection before the answer."""
    body, headers = infer_body(noise(draw, (32, *service.shape)))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with suppress(OSError), socket.create_connection((service.host, service.port), 10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: {service.host}\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)


@dataclass
class Counts:
    """What clients saw.

    Attributes:
        statuses: Number of answers by status.
        wrong: Answers that must not be, at most ten.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, status: int, body: bytes, expected: bool) -> None:
        """Count an answer; 500 and above is wrong but for 503, and where 200 is expected, so is anything else."""
        self.statuses[status] += 1
        if ((status >= 500 and status != 503) or (expected and status not in (200, 503))) and len(self.wrong) < 10:
            self.wrong.append(f"{status}: {body[:300]!r}")


def fuzz(service: Running, requests: int, seed: int = 0) -> Counts:
    """Send malformed requests, one in twenty from a client that goes away, over a few connections at once."""
    counts = Counts()

    def work(number: int) -> None:
        draw = random.Random(1000 * seed + number)
        for _ in range(requests // 4):
            if draw.random() < 0.05:
                draw.choice([half_a_body, gone_before_the_answer])(service, draw)
                continue
            method, path, body, headers = malformed(draw, service)
            try:
                counts.add(*service.ask(method, path, body, headers), expected=False)
            except (http.client.HTTPException, ConnectionError):  # the service closed a connection it cannot read
                counts.statuses[0] += 1

    _together(work, 4)
    if service.process.poll() is not None:
        counts.wrong.append(f"the service ended with {service.process.returncode}")
    return counts


def load(
    service: Running, seconds: float, clients: int = 8, every: float = 10.0, pause: float = 0.0
) -> tuple[Counts, list[int]]:
    """Send good requests of all kinds, with rude clients and reloads among them, and watch the memory.

    Returns:
        The counts, and the resident memory in bytes, every `every` seconds.
    """
    counts, end, memory = Counts(), time.monotonic() + seconds, list[int]()

    def work(number: int) -> None:
        draw = random.Random(number)
        if number == clients:
            while time.monotonic() < end:
                memory.append(service.memory())
                counts.add(*service.ask("POST", "/v2/repository/models/m/load"), expected=True)
                time.sleep(min(every, max(end - time.monotonic(), 0)))
            return
        connection = http.client.HTTPConnection(service.host, service.port, timeout=300)
        while time.monotonic() < end:
            time.sleep(pause)
            kind = draw.random()
            if kind < 0.02:
                draw.choice([half_a_body, gone_before_the_answer])(service, draw)
                continue
            if kind < 0.7:
                body, headers = infer_body(noise(draw, (draw.choice([1, 1, 1, 8, 64]), *service.shape)))
                request = ("POST", "/v2/models/m/infer", body, headers)
            elif kind < 0.95:
                files = [("a.png", encoded(noise(draw, service.shape))) for _ in range(draw.randrange(1, 6))]
                request = ("POST", "/v1/score?include=reconstruction&include=position", *form_body(files))
            else:
                request = ("GET", draw.choice(["/metrics", "/v1/models/m", "/v1/models/m/samples", "/"]), None, {})
            connection.request(*request)
            answer = connection.getresponse()
            counts.add(answer.status, answer.read(), expected=True)
        connection.close()

    _together(work, clients + 1)
    memory.append(service.memory())
    return counts, memory


def _together(work: object, count: int) -> None:
    """Run `work(number)` in threads, and raise the first error of one."""
    errors = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def grown(memory: list[int]) -> int:
    """Return by how many bytes memory grew after the first fifth of the time: the medians of two fifths."""
    fifth = max(len(memory) // 5, 1)
    return int(np.median(memory[-fifth:]) - np.median(memory[fifth : 2 * fifth]))


# --- rate -----

WRK = """
wrk.method = "POST"
local file = io.open("{path}", "rb")
wrk.body = file:read("*a")
file:close()
wrk.headers["Inference-Header-Content-Length"] = "{size}"
"""


def rate(model: Path, rounds: int, seconds: int, connections: int = 32) -> dict[str, object]:
    """Measure the service's rate of single images and the library's own, in turn, as both see the same machine.

    The library scores blocks of 32 images, in one thread and in as many threads as the machine has cores; the service
    has its default settings, and wrk sends it single images as binary tensors, over as many connections.

    Args:
        model: folder of a calibrated run that takes images.
        rounds: number of rounds; each measures the library, then the service.
        seconds: time for each measurement.
        connections: number of connections.

    Returns:
        The rates of every round, and of their ratios the median and the quartiles.
    """
    import torch

    from negvae.runs.artifact import load_artifact

    artifact = load_artifact(model, "cpu")
    scorer, name, cores = artifact.scorer(), artifact.calibration.score, os.cpu_count() or 1
    images = torch.from_numpy(noise(random.Random(0), (32 * cores, *artifact.model.shape)).copy())

    def library(count: int, threads: int) -> float:
        torch.set_num_threads(threads)
        return _calls(lambda: scorer(images[:count], [name]), seconds / 2) * count

    found: dict[str, list[float]] = {}
    with running(model, "--log-level", "info") as service, tempfile.TemporaryDirectory() as place:
        body, headers = infer_body(images[:1].numpy())
        (Path(place) / "body").write_bytes(body)
        script = Path(place) / "infer.lua"
        script.write_text(WRK.format(path=f"{place}/body", size=headers["Inference-Header-Content-Length"]))
        url = f"http://{service.host}:{service.port}/v2/models/m/infer"
        command = ["wrk", "-t1", f"-c{connections}", "--latency", "-s", str(script)]
        _requests(command, 2, url)  # warms up
        for _ in range(rounds):
            one = {
                "library, 1 at once": library(1, 1), "library, blocks of 32, 1 thread": library(32, 1),
                f"library, blocks of 32, {cores} threads": library(32 * cores, cores),
            }  # fmt: skip
            one |= _requests(command, seconds, url)
            for key, value in one.items():
                found.setdefault(key, []).append(value)
        used = service.processor_seconds()
    against = {key: [a / b for a, b in zip(found["service"], each, strict=True)] for key, each in found.items()}
    ratios = {f"service / {key}": quartiles(each) for key, each in against.items() if key.startswith("library")}
    return {
        "score": name, "precision": artifact.calibration.precision, "shape": list(artifact.model.shape),
        "held out": artifact.calibration.size, "connections": connections, "rounds": rounds, "seconds": seconds,
        "images/s": {key: quartiles(each) for key, each in found.items() if "latency" not in key},
        "latency, ms": {key: quartiles(each) for key, each in found.items() if "latency" in key},
        "ratio": ratios, "processor seconds": round(used, 1),
    }  # fmt: skip


def quartiles(values: list[float]) -> dict[str, float]:
    """Return median, lower and upper quartile, to four significant digits."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {key: float(f"{each:.4g}") for key, each in (("median", middle), ("lower", low), ("upper", high))}


def _requests(command: list[str], seconds: int, url: str) -> dict[str, float]:
    """Run wrk, and return requests a second and latencies in milliseconds; any other answer than 200 is an error."""
    text = subprocess.run([*command, f"-d{seconds}s", url], check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(text)
    found = {"service": float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1))}
    units = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    for share in (50, 99):
        value, unit = re.search(rf"{share}%\s+([\d.]+)(us|ms|s)", text).groups()
        found[f"latency, {share}%"] = float(value) * units[unit]
    return found


def _calls(function: object, seconds: float) -> float:
    """Return calls a second, after a warm-up."""
    for _ in range(5):
        function()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        function()
        count += 1
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rate", "load", "fuzz"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--minutes", type=float, default=30, help="of load")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two requests of a client, of load")
    parser.add_argument("--rounds", type=int, default=20, help="of rate")
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement of rate")
    parser.add_argument("--requests", type=int, default=10_000, help="of fuzz")
    parser.add_argument("--out", type=Path, help="JSON file in which the result replaces that of the same --name")
    parser.add_argument("--name", help="of the result; the kind of measurement if none is given")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found, wrong = measured(options)
    print(json.dumps(found, indent=1))
    if options.out is not None:
        from negvae.config import preset
        from negvae.files import write_text
        from negvae.runs.provenance import provenance

        known = json.loads(options.out.read_text()) if options.out.exists() else {}
        found["provenance"] = provenance(preset("gray", "-", device="cpu"))
        write_text(options.out, json.dumps(known | {options.name or options.what: found}, indent=1) + "\n")
    if wrong:
        raise SystemExit(f"something happened that must not: {wrong}")


def measured(options: argparse.Namespace) -> tuple[dict[str, object], list[str]]:
    """Return what was measured, and what must not be in it."""
    if options.what == "rate":
        return rate(options.model, options.rounds, options.seconds), []
    with running(options.model) as service:
        found: dict[str, object]
        if options.what == "fuzz":
            before = service.memory()
            counts, memory = fuzz(service, options.requests), [before, service.memory()]
            found = {"requests": options.requests}
        else:
            counts, memory = load(service, 60 * options.minutes, pause=options.pause)
            found = {"minutes": options.minutes, "grown, MB": round(grown(memory) / 1e6, 2)}
        found["processor seconds"] = round(service.processor_seconds(), 1)
    found |= {
        "answers by status": {str(status): count for status, count in sorted(counts.statuses.items())},
        "requests": sum(counts.statuses.values()), "wrong": counts.wrong,
        "memory, MB": {
            "first": round(memory[0] / 1e6, 1), "largest": round(max(memory) / 1e6, 1),
            "last": round(memory[-1] / 1e6, 1),
            "each minute" if options.what == "load" else "each": [round(each / 1e6, 1) for each in memory[::6]],
        },
    }  # fmt: skip
    too_much = options.what == "load" and grown(memory) > GROWTH
    return found, [*counts.wrong, *(["memory grew"] if too_much else [])]


if __name__ == "__main__":
    main()
