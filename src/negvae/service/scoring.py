"""The route that scores uploaded files: `POST /v1/score`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.requests import Request

from negvae.data.streams import Batch
from negvae.scoring.calibration import Calibration
from negvae.service.guard import Refused
from negvae.service.inference import ERRORS
from negvae.service.models import EXTRAS, Served
from negvae.service.protocol import plain
from negvae.service.uploads import data_uri, heat_uri

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
    input: str | None = Field(None, description="The image as the model sees it, as a PNG in a URI.")
    reconstruction: str | None = Field(None, description="The reconstruction, as a PNG in a URI.")
    heatmap: str | None = Field(None, description="Where in the image, as a transparent PNG in a URI.")
    position: list[float] | None = Field(None, description="Place on the map of the latent space.")


class Verdicts(BaseModel):
    """The verdicts on the files of a request, in their order."""

    model: str
    score: str
    threshold: float
    images: list[Verdict]


Model = Annotated[str | None, Query(description="Name of the model; may be left out if there is only one.")]
Resize = Annotated[bool | None, Query(description="Resize images of another size.")]
Rate = Annotated[float | None, Query(gt=0, lt=1, description="Decide by this rate of false alarms.")]
Group = Annotated[str | None, Query(description="Group that all images belong to, if the model has groups.")]
Include = Annotated[list[str] | None, Query(description=f"Further values: {', '.join(EXTRAS)}; may be repeated.")]


def routes(service: Service) -> APIRouter:
    """Return the route that scores uploaded files."""
    router = APIRouter(responses=ERRORS)

    @router.post(
        "/v1/score",
        summary="Score image files",
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}},
        response_model_exclude_unset=True,
    )
    async def score(
        request: Request,
        model: Model = None,
        resize: Resize = None,
        target_fpr: Rate = None,
        group: Group = None,
        include: Include = None,
    ) -> Verdicts:
        slot, served = service.ready(model)
        wanted = _wanted(served, include or [])
        try:
            calibration = served.calibration.decide_by(target_fpr=target_fpr)
        except ValueError as error:
            raise Refused(422, str(error)) from None
        if group is not None and group not in calibration.thresholds:
            known = ", ".join(calibration.thresholds) or "none"
            raise Refused(422, f"group {group[:80]!r} was not calibrated; calibrated are: {known}")
        files = await _files(request, service.settings.max_batch)
        batches = await service.decode(files, service.spec(served, resize))
        found = []
        good = [(batch, row) for batch in batches for row in range(len(batch)) if not batch.errors[row]]
        extras: dict[str, NDArray[Any]] = {}
        scores = np.empty(0, np.float32)
        if good:
            stored = np.stack([batch.images[row] for batch, row in good])
            scores, _, _ = await service.scores(slot, served, stored)
            if wanted:
                extras = await service.call(slot, served, len(stored), lambda: served.look(stored, wanted))
            if wanted and not served.spec.features:
                extras["input"] = stored
        errors = sum(len(batch) for batch in batches) - len(good)
        service.metrics.errors.labels(slot.name).inc(errors)
        found = _verdicts(batches, scores, calibration, group, extras)
        cut = calibration.thresholds[group] if group is not None else calibration.cut
        return Verdicts(model=slot.name, score=calibration.score, threshold=cut, images=found)

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
        Refused: if the body is no form, or holds no file.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Refused(400, f"content type is {kind[:80] or 'missing'}: send files as multipart/form-data")
    async with request.form(max_files=limit, max_fields=limit) as form:
        files = [(value.filename or "image", value) for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise Refused(400, "the form holds no file")
        return [(name, await value.read()) for name, value in files]


def _verdicts(
    batches: list[Batch],
    scores: NDArray[np.float32],
    calibration: Calibration,
    group: str | None,
    extras: dict[str, NDArray[Any]],
) -> list[Verdict]:
    """Return a verdict for every row of the batches; `scores` and `extras` are of those without an error."""
    groups = None if group is None else [group] * len(scores)
    p_values, outliers = calibration.p_values(scores, groups), calibration.is_outlier(scores, groups)
    numbers, found, at = plain(scores), [], 0
    rows = [(batch, row) for batch in batches for row in range(len(batch))]
    for batch, row in rows:
        place: dict[str, Any] = {"file": batch.paths[row], "index": batch.indices[row]}
        if batch.errors[row]:
            found.append(
                Verdict(
                    **place,
                    score=None,
                    p_value=None,
                    is_outlier=None,
                    error=batch.errors[row].encode("utf-8", "replace").decode(),
                )
            )
            continue
        values = {"score": numbers[at], "p_value": float(p_values[at]), "is_outlier": bool(outliers[at])}
        found.append(Verdict(**place, **values, error=None, **_pictures(extras, at)))
        at += 1
    return found


def _pictures(extras: dict[str, NDArray[Any]], row: int) -> dict[str, Any]:
    """Return the further values of one image, as they are sent."""
    sent: dict[str, Any] = {}
    for name, values in extras.items():
        if name == "position":
            sent[name] = values[row].tolist()
        elif name == "heatmap":
            sent[name] = heat_uri(values[row], float(np.nanmax(values)))
        else:
            sent[name] = data_uri(values[row])
    return sent
