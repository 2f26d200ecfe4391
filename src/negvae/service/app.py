"""The application: the routes of the service, and what they share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

import negvae
from negvae.data.batches import Batch, InputSpec
from negvae.service import inference, inspection, scoring
from negvae.service.batching import Batcher, Judgment, QueueFull
from negvae.service.guard import RETRY, Guard, Refused
from negvae.service.logs import RequestLog
from negvae.service.metrics import ServiceMetrics
from negvae.service.models import Inputs, Served, Slot
from negvae.service.settings import ServiceSettings
from negvae.service.uploads import read_uploads, tiles_of

Outcome = TypeVar("Outcome")


@dataclass
class Service:
    """What the routes share.

    Attributes:
        settings: settings of the service.
        slots: slots of the models, by name.
        batcher: the queue.
        metrics: counts and times.
        workers: threads that read large bodies, decode images and write pictures.
        loader: thread that loads models.
        log: lines of requests.
    """

    settings: ServiceSettings
    slots: Mapping[str, Slot]
    batcher: Batcher
    metrics: ServiceMetrics
    workers: ThreadPoolExecutor
    loader: ThreadPoolExecutor
    log: RequestLog

    @classmethod
    def of(cls, settings: ServiceSettings, paths: Mapping[str, Path]) -> Service:
        """Load the models and make what the routes share.

        Args:
            settings: settings of the service.
            paths: folders of runs, or exported files, by the models' names.

        Returns:
            The service, whose queue is not running yet.

        Raises:
            OSError: if a model does not exist.
            ValueError: if a model cannot be loaded.
        """
        slots = {name: Slot(name, path) for name, path in paths.items()}
        for slot in slots.values():
            slot.load(settings.threads, settings.alarm_rate)
        metrics = ServiceMetrics(slots, lambda: service.batcher.waiting)
        batcher = Batcher(settings.max_batch, settings.max_queue, metrics.on_batch)
        workers, loader = ThreadPoolExecutor(2, "negvae-decode"), ThreadPoolExecutor(1, "negvae-load")
        service = cls(settings, slots, batcher, metrics, workers, loader, RequestLog())
        return service

    def slot(self, name: str | None) -> Slot:
        """Return the slot of a model.

        Args:
            name: name of the model; None for the only one.

        Returns:
            The slot.

        Raises:
            Refused: if there is no such model, or there are several and none is named.
        """
        if name is None:
            if len(self.slots) > 1:
                raise Refused(400, f"model is missing: one of {', '.join(self.slots)}")
            return next(iter(self.slots.values()))
        if name not in self.slots:
            raise Refused(404, f"no model is named {name[:100]!r}: there are {', '.join(self.slots)}")
        return self.slots[name]

    def ready(self, name: str | None) -> tuple[Slot, Served]:
        """Return the slot of a model and the model in it.

        Args:
            name: name of the model; None for the only one.

        Returns:
            The slot and its model.

        Raises:
            Refused: if there is no such model, or it is not loaded.
        """
        slot = self.slot(name)
        model = slot.model
        if model is None:
            raise Refused(400, f"model {slot.name} is not loaded ({slot.reason})")
        return slot, model

    async def apart(self, function: Callable[[], Outcome]) -> Outcome:
        """Call a function in a thread beside the event loop, in which it would hold up all other requests."""
        return await asyncio.get_running_loop().run_in_executor(self.workers, function)

    async def inputs(self, model: Served, stored: NDArray[Any]) -> Inputs:
        """Return images or rows of a request as the model takes them, cut into tiles if it tiles images.

        Args:
            model: model of the slot when the request was accepted.
            stored: images (uint8, N x C x H x W) or rows (float64, N x D x 1 x 1).

        Returns:
            The inputs.

        Raises:
            Refused: if the images make too many tiles.
        """
        if not model.spec.tiled:
            return Inputs(stored)
        return await self.apart(partial(tiles_of, stored, self.spec(model, None), self.settings.max_queue))

    async def scores(self, slot: Slot, model: Served, inputs: Inputs, group: str | None = None) -> Judgment:
        """Score images or rows together with those of other requests.

        Args:
            slot: slot of the model.
            model: model of the slot when the request was accepted.
            inputs: images or rows.
            group: group that all of them belong to, for the counts alone; None if it is not known.

        Returns:
            Scores, p-values and decisions (N each).

        Raises:
            Refused: if the queue is full or too short.
        """
        try:
            return await self.batcher.scores(slot, model, inputs, group)
        except QueueFull:
            raise self._busy(inputs.size) from None

    async def call(self, slot: Slot, model: Served, size: int, function: Callable[[], Outcome]) -> Outcome:
        """Call a function in the thread of the models.

        Args:
            slot: slot of the model.
            model: model of the slot when the request was accepted.
            size: number of images that the call counts for.
            function: function to call.

        Returns:
            What the function returned.

        Raises:
            Refused: if the queue is full or too short, or the model does not offer what the function asks for.
        """
        try:
            return await self.batcher.call(slot, model, size, function)
        except QueueFull:
            raise self._busy(size) from None
        except ValueError as error:
            raise Refused(422, str(error)) from None

    def _busy(self, size: int) -> Refused:
        """Return the answer to a request for which there is no room: now, or ever."""
        if size > self.settings.max_queue:
            return Refused(413, f"at most {self.settings.max_queue:,} images may wait (max_queue), and {size:,} came")
        return Refused(503, f"{self.batcher.waiting} images wait already: try again", RETRY)

    def spec(self, model: Served, resize: bool | None) -> InputSpec:
        """Return the form of a model's inputs, with the limits of the service."""
        wanted = self.settings.resize if resize is None else resize
        spec, decoding = model.spec, model.spec.decoding
        if wanted and decoding is not None and decoding.fit == "exact":
            decoding = replace(decoding, fit="resize")
        limit = self.settings.max_pixels
        return replace(spec, resize=spec.resize or wanted, max_pixels=limit, decoding=decoding)

    async def decode(self, files: list[tuple[str, bytes]], spec: InputSpec) -> Batch:
        """Decode uploaded files in a thread, which ends before the next file if the request has ended.

        Args:
            files: name and content of each file.
            spec: form that the model takes.

        Returns:
            The rows of all files, in order.

        Raises:
            Refused: if they hold more than a request may.
        """
        has_ended = threading.Event()
        read = partial(read_uploads, files, spec, self.settings.max_batch, self.settings.max_queue, has_ended.is_set)
        try:
            return await self.apart(read)
        finally:
            has_ended.set()

    @asynccontextmanager
    async def running(self, app: Any) -> AsyncIterator[None]:
        """Run the queue while the application runs; at the end, finish what was accepted."""
        try:
            yield
        finally:
            await self.batcher.stop()
            self.workers.shutdown()
            self.loader.shutdown()
            self.log.flush()


def create_app(service: Service) -> Guard:
    """Make the application.

    Args:
        service: what the routes share.

    Returns:
        The ASGI application.
    """
    app = FastAPI(
        title="negvae", version=negvae.__version__, docs_url=None, redoc_url=None, lifespan=service.running,
        description="Out-of-distribution detectors over HTTP: the Open Inference Protocol, and scores of image files.",
        exception_handlers={
            Refused: _refused, HTTPException: _http_error, RequestValidationError: _invalid, ClientDisconnect: _gone,
            Exception: _failed,
        },
    )  # fmt: skip
    for routes in (inference.routes, scoring.routes, inspection.routes):
        app.include_router(routes(service))
    return Guard(app, service.settings, service.metrics, service.log)


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": text}, status, dict(headers or {}))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _error(error.status, str(error), error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, str(error.detail), error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    where = ".".join(str(part)[:80] for part in problem["loc"][1:]) or "the request"
    if problem["type"] == "extra_forbidden":
        return _error(400, f"{where} is no query parameter of {request.url.path}")
    return _error(400, f"{where}: {problem['msg'].lower()}")


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # the client does not see it


async def _failed(request: Request, error: Exception) -> Response:
    refused = inference.failure(error, request.scope.get("request_id", ""), request.url.path)
    return _error(refused.status, str(refused))
