"""Routes of the Open Inference Protocol, and of its extension for loading and unloading models."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter
from fastapi import Path as PathParameter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import negvae
from negvae.service.batching import Judgment
from negvae.service.guard import Refused
from negvae.service.logs import LOGGER
from negvae.service.models import Served, Slot
from negvae.service.protocol import (
    HEADER,
    OUTPUTS,
    SMALL,
    InferRequest,
    inflated,
    input_metadata,
    most_bytes,
    options,
    output_metadata,
    parse,
    respond,
)

if TYPE_CHECKING:
    from negvae.service.app import Service

INFER, INFER_VERSION = "/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"
"""Paths of the routes of requests for scores."""
EXTENSIONS = ["binary_tensor_data", "model_repository"]
MOST_OPTIONS = 4096
"""Bytes of a request that holds nothing but options, at most."""
Name = Annotated[str, PathParameter(description="Name of the model.")]
Version = Annotated[str, PathParameter(description="Version of the model; the only one is 1.")]


class ServerMetadata(BaseModel):
    """Name, version and extensions of the server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """Name, type and shape of a tensor; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Failure(BaseModel):
    """An error."""

    error: str


class IndexEntry(BaseModel):
    """A model of the repository and its state."""

    name: str
    version: str
    state: str
    reason: str


_TENSOR_DATA = {"type": "array", "description": "Numbers, flat or nested as shape says.", "items": {}}
_PARAMETERS = {"type": "object"}
_TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"type": "string"},
        "parameters": _PARAMETERS,
        "data": _TENSOR_DATA,
    },
}
REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": _PARAMETERS,
        "inputs": {
            "type": "array",
            "items": _TENSOR,
        },
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "parameters": _PARAMETERS},
            },
        },
    },
}
RESPONSE = {
    "type": "object",
    "required": ["model_name", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {
            "type": "array",
            "items": _TENSOR,
        },
    },
}
OPTIONS = {"type": "object", "properties": {"ready": {"type": "boolean"}, "parameters": _PARAMETERS}}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": what}
    for status, what in {
        400: "The request is not valid.", 401: "The key is missing or wrong.", 403: "The request comes from elsewhere.",
        404: "There is no such model.", 408: "The body took too long.", 413: "The request is too large.",
        422: "The model does not offer what was asked for.",
        431: "The headers are too large.", 503: "Too many requests wait: try again.",
    }.items()
}  # fmt: skip


def routes(service: Service) -> APIRouter:
    """Return the routes of the protocol."""
    router = APIRouter(responses=ERRORS)
    _health(router, service)
    _metadata(router, service)
    _repository(router, service)
    documented: dict[str, Any] = {
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": REQUEST}}}},
        "responses": {200: {"description": "OK", "content": {"application/json": {"schema": RESPONSE}}}},
        "response_class": Response,
    }

    @router.post(INFER, summary="Inference", **documented)
    async def infer(name: Name, request: Request) -> Response:
        return await _infer(service, name, request)

    @router.post(INFER_VERSION, summary="Inference", **documented)
    async def infer_version(name: Name, version: Version, request: Request) -> Response:
        _check_version(service.slot(name), version)
        return await _infer(service, name, request)

    return router


async def _infer(service: Service, name: str, request: Request) -> Response:
    """Answer a request for scores, which has no query parameters: what they ask for would be left undone."""
    if request.query_params:
        raise Refused(400, f"{next(iter(request.query_params))[:80]} is no query parameter of {request.url.path}")
    slot, model = service.ready(name)
    body = await request.body()
    ask = partial(read, service, model, body, request.headers)
    is_small = len(body) <= SMALL and "content-encoding" not in request.headers
    asked = ask() if is_small else await service.apart(ask)
    judged = await service.scores(slot, model, await service.inputs(model, asked.stored))
    content, size = written(name, model, asked, judged)
    if size is None:
        return Response(content, media_type="application/json")
    return Response(content, headers={HEADER: str(size)}, media_type="application/octet-stream")


def read(service: Service, model: Served, body: bytes, headers: Mapping[str, str]) -> InferRequest:
    """Read a request for scores.

    Args:
        service: what the routes share.
        model: model that is asked.
        body: body of the request.
        headers: headers of the request; names in lower case.

    Returns:
        The request.

    Raises:
        Refused: if the request is not valid, or larger than the model can need.
    """
    settings = service.settings
    spec = service.spec(model, None) if model.spec.tiled else model.spec
    try:
        limit = most_bytes(spec, settings.max_batch, settings.max_body)
        content = inflated(body, headers.get("content-encoding", ""), limit)
        return parse(content, headers.get(HEADER), spec, settings.max_batch)
    except ValueError as error:
        raise Refused(400, str(error)) from None


def written(name: str, model: Served, asked: InferRequest, judged: Judgment) -> tuple[bytes, int | None]:
    """Write the answer to a request for scores.

    Args:
        name: name of the model.
        model: model that was asked.
        asked: the request.
        judged: scores, p-values and decisions.

    Returns:
        The body, and the size of the JSON in it if bytes follow, else None.

    Raises:
        Refused: if the model has no score for one of the images.
    """
    missing = np.isnan(judged[0])
    if missing.any():
        raise Refused(422, f"input {int(missing.argmax())}: {model.no_score}")
    return respond(name, asked, dict(zip(OUTPUTS, judged, strict=True)))


def failure(error: Exception, identifier: str, path: str) -> Refused:
    """Log an error that is the service's own, and return what the client is answered.

    Args:
        error: the error.
        identifier: id of the request.
        path: path of the request.

    Returns:
        The answer.
    """
    LOGGER.error("failed", exc_info=error, extra={"fields": {"request_id": identifier, "path": path}})
    return Refused(500, f"the service failed; its log has the reason under request {identifier}")


def _health(router: APIRouter, service: Service) -> None:
    """Add the routes that ask whether the server and a model are ready."""

    @router.get("/v2/health/live", summary="Server live", response_class=Response)
    async def live() -> Response:
        return JSONResponse({"live": True})

    @router.get("/v2/health/ready", summary="Server ready", response_class=Response)
    async def ready() -> Response:
        missing = [slot.name for slot in service.slots.values() if slot.model is None]
        if missing:
            raise Refused(503, f"not loaded: {', '.join(missing)}", {"retry-after": "5"})
        return JSONResponse({"ready": True})

    @router.get("/v2/models/{name}/ready", summary="Model ready", response_class=Response)
    async def model_ready(name: Name) -> Response:
        service.ready(name)
        return JSONResponse({"name": name, "ready": True})

    @router.get("/v2/models/{name}/versions/{version}/ready", summary="Model ready", response_class=Response)
    async def version_ready(name: Name, version: Version) -> Response:
        _check_version(service.slot(name), version)
        return await model_ready(name)


def _metadata(router: APIRouter, service: Service) -> None:
    """Add the routes that describe the server and a model."""

    @router.get("/v2", summary="Server metadata")
    @router.get("/v2/", summary="Server metadata", include_in_schema=False)
    async def server() -> ServerMetadata:
        return ServerMetadata(name="negvae", version=negvae.__version__, extensions=EXTENSIONS)

    @router.get("/v2/models/{name}", summary="Model metadata")
    async def model(name: Name) -> ModelMetadata:
        _, served = service.ready(name)
        return ModelMetadata(
            name=name,
            versions=["1"],
            platform=served.platform,
            inputs=[TensorMetadata(**input_metadata(served.spec))],
            outputs=[TensorMetadata(**output) for output in output_metadata()],
        )

    @router.get("/v2/models/{name}/versions/{version}", summary="Model metadata")
    async def version(name: Name, version: Version) -> ModelMetadata:
        _check_version(service.slot(name), version)
        return await model(name)


def _repository(router: APIRouter, service: Service) -> None:
    """Add the routes that list, load and unload models."""
    takes_options: dict[str, Any] = {"requestBody": {"content": {"application/json": {"schema": OPTIONS}}}}

    @router.post("/v2/repository/index", summary="Models and their state", openapi_extra=takes_options)
    async def index(request: Request) -> list[IndexEntry]:
        wants_ready = _options(await request.body(), {"ready"}).get("ready", False)
        return [
            IndexEntry(
                name=slot.name,
                version="1",
                state="READY" if slot.model is not None else "UNAVAILABLE",
                reason=slot.reason,
            )
            for slot in service.slots.values()
            if slot.model is not None or not wants_ready
        ]

    @router.post("/v2/repository/models/{name}/load", summary="Load a model, or load it anew", response_class=Response)
    async def load(name: Name, request: Request) -> Response:
        _options(await request.body(), set())
        slot, settings = service.slot(name), service.settings
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(service.loader, slot.load, settings.threads, settings.alarm_rate)
        except (ValueError, OSError, ImportError) as error:
            raise Refused(400, f"{name} stays as it is: {error}") from None
        LOGGER.info("loaded", extra={"fields": {"model": name, "path": str(slot.path)}})
        return JSONResponse({})

    @router.post("/v2/repository/models/{name}/unload", summary="Unload a model", response_class=Response)
    async def unload(name: Name, request: Request) -> Response:
        _options(await request.body(), {"unload_dependents"})  # there are none
        service.slot(name).unload()
        LOGGER.info("unloaded", extra={"fields": {"model": name}})
        return JSONResponse({})


def _options(body: bytes, known: Collection[str]) -> dict[str, bool]:
    """Read the options of a request about the repository, and refuse those that would be left undone."""
    if len(body) > MOST_OPTIONS:  # which would be read on the event loop, while all other requests wait
        raise Refused(413, f"the request has {len(body):,} bytes; one with options has at most {MOST_OPTIONS:,}")
    try:
        return options(body, known)
    except ValueError as error:
        raise Refused(400, str(error)) from None


def _check_version(slot: Slot, version: str) -> None:
    if version != "1":
        raise Refused(404, f"model {slot.name} has no version {version[:40]!r}: the only one is 1")
