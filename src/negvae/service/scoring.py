"""The route that scores uploaded files: `POST /v1/score`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.requests import Request

from negvae.data.batches import Batch
from negvae.scoring.calibration import Calibration
from negvae.service.guard import Refused
from negvae.service.inference import ERRORS
from negvae.service.models import EXTRAS, Inputs, Served, Slot
from negvae.service.protocol import as_score, plain
from negvae.service.uploads import data_uri, heat_uri, whole

if TYPE_CHECKING:
    from negvae.service.app import Service

FORM = {
    "type": "object",
    "required": ["files"],
    "properties": {
        "files": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string", "format": "binary"},
            "description": "Image files, or .npy files of images or rows; any number, of any field name.",
        }
    },
}


class Verdict(BaseModel):
    """The verdict on one image or row; with an error, the other values are null."""

    file: str
    index: int | None = Field(description="Row in the file.")
    score: float | None
    p_value: float | None
    is_outlier: bool | None
    error: str | None
    input: str | None = Field(default=None, description="The image as the model sees it, as a PNG in a URI.")
    reconstruction: str | None = Field(default=None, description="The reconstruction, as a PNG in a URI.")
    heatmap: str | None = Field(default=None, description="Where in the image, as a transparent PNG in a URI.")
    position: list[float] | None = Field(default=None, description="Place on the map of the latent space.")


class Verdicts(BaseModel):
    """The verdicts on the files of a request, in their order."""

    model: str
    score: str
    threshold: float
    images: list[Verdict]


class ScoreQuery(BaseModel, extra="forbid"):
    """The query parameters of a request for scores; a misspelled one is refused, since the default would decide."""

    model: str | None = Field(default=None, description="Name of the model; may be left out if there is only one.")
    resize: bool | None = Field(default=None, description="Resize images of another size.")
    target_fpr: float | None = Field(default=None, gt=0, lt=1, description="Decide by this rate of false alarms.")
    group: str | None = Field(default=None, description="Group that all images belong to, if the model has groups.")
    include: list[str] = Field(default=[], description=f"Further values: {', '.join(EXTRAS)}; may be repeated.")


def routes(service: Service) -> APIRouter:
    """Return the route that scores uploaded files."""
    router = APIRouter(responses=ERRORS)

    @router.post(
        "/v1/score",
        summary="Score image files",
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}},
        response_model_exclude_unset=True,
    )
    async def score(request: Request, query: Annotated[ScoreQuery, Query()]) -> Verdicts:
        slot, served = service.ready(query.model)
        wanted = _wanted(served, query.include)
        group = query.group
        try:
            calibration = served.calibration.decide_by(target_fpr=query.target_fpr)
        except ValueError as error:
            raise Refused(422, str(error)) from None
        if group is not None and group not in calibration.thresholds:
            known = ", ".join(calibration.thresholds) or "none"
            raise Refused(422, f"group {group[:80]!r} was not calibrated; calibrated are: {known}")
        files = await _files(request, service.settings.max_batch)
        batch = await service.decode(files, service.spec(served, query.resize))
        scores, extras = await _computed(service, slot, served, batch, wanted, group)
        service.metrics.errors.labels(slot.name).inc(sum(map(bool, batch.errors)))
        cut = calibration.thresholds[group] if group is not None else calibration.cut
        found = await service.apart(partial(_verdicts, batch, scores, calibration, group, extras))
        return Verdicts(model=slot.name, score=calibration.score, threshold=as_score(cut), images=found)

    return router


def _wanted(model: Served, include: list[str]) -> list[str]:
    """Return the further values that a request wants.

    Raises:
        Refused: if one is unknown, or the model does not offer it.
    """
    for name in include:
        if name not in EXTRAS:
            raise Refused(400, f"include is {name[:80]!r}: it must be one of {', '.join(EXTRAS)}")
        if name not in model.offers:
            raise Refused(422, f"this model has no {name}")
    return list(dict.fromkeys(include))


async def _files(request: Request, limit: int) -> list[tuple[str, bytes]]:
    """Read the files of a multipart form, whatever its fields are named.

    Raises:
        Refused: if the body is no form, holds no file, or holds text, such as an option that would change nothing.
    """
    given, options = parse_options_header(request.headers.get("content-type", ""))
    kind, charset = given.decode("latin-1"), options.get(b"charset", b"utf-8").decode("latin-1")
    if kind != "multipart/form-data":
        raise Refused(400, f"content type is {kind[:80] or 'missing'}: send files as multipart/form-data")
    if charset.lower() not in ("utf-8", "utf8"):
        raise Refused(400, f"charset is {charset[:80]!r}: names of files are sent in utf-8")
    if (encoding := request.headers.get("content-encoding", "identity")).strip().lower() not in ("", "identity"):
        raise Refused(400, f"content encoding is {encoding[:80]}: send forms uncompressed")
    async with request.form(max_files=limit, max_fields=limit) as form:
        files = [(value.filename or "image", value) for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise Refused(400, "the form holds no file")
        if texts := [name for name, value in form.multi_items() if isinstance(value, str)]:
            raise Refused(400, f"field {texts[0][:80]!r} of the form is no file: options are query parameters")
        return [(name, await value.read()) for name, value in files]


async def _computed(
    service: Service, slot: Slot, model: Served, batch: Batch, wanted: list[str], group: str | None
) -> tuple[NDArray[np.float32], dict[str, list[Any]]]:
    """Return the scores and further values of all rows without an error.

    A row that the model has no score for gets an error in its batch.
    """
    read = batch.good()
    if not len(read):
        return np.empty(0, np.float32), {}
    scores, _, _ = await service.scores(slot, model, Inputs(*batch.inputs(read)), group)
    for row in read[np.isnan(scores)]:
        batch.errors[row] = model.no_score
    extras, rows = dict[str, list[Any]](), batch.good()
    if wanted and len(rows):
        images, _ = batch.inputs(rows)
        extras = await service.call(slot, model, len(images), partial(model.look, batch, rows, wanted))
        if not model.spec.features:
            joined = partial(whole, images, batch, rows)
            extras["input"] = await service.apart(joined) if batch.tilings else list(images)
    return scores[~np.isnan(scores)], extras


def _verdicts(
    batch: Batch,
    scores: NDArray[np.float32],
    calibration: Calibration,
    group: str | None,
    extras: dict[str, list[Any]],
) -> list[Verdict]:
    """Return a verdict for every row of the batch; `scores` and `extras` are of those without an error.

    Pictures are written as PNGs here, which takes long: not to be called in the event loop.
    """
    groups = None if group is None else [group] * len(scores)
    p_values, outliers = calibration.p_values(scores, groups), calibration.is_outlier(scores, groups)
    numbers, found, at = plain(scores), [], 0
    for path, index, error in zip(batch.paths, batch.indices, batch.errors, strict=True):
        if error:
            text = error.encode("utf-8", "replace").decode()
            verdict = Verdict(file=path, index=index, score=None, p_value=None, is_outlier=None, error=text)
        else:
            pictures: dict[str, Any] = {name: _shown(name, values[at]) for name, values in extras.items()}
            verdict = Verdict(
                file=path, index=index, score=numbers[at], p_value=float(p_values[at]), is_outlier=bool(outliers[at]),
                error=None, **pictures,
            )  # fmt: skip
            at += 1
        found.append(verdict)
    return found


def _shown(name: str, values: NDArray[Any]) -> Any:
    """Return a further value of an image as it is sent."""
    if name == "position":
        return values.tolist()
    return heat_uri(values) if name == "heatmap" else data_uri(values)
