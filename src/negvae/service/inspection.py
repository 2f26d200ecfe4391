"""Routes for people: the page, what it draws, and the metrics."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import jinja2
import numpy as np
from fastapi import APIRouter, Query
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from starlette.responses import HTMLResponse, Response

import negvae
from negvae.service.guard import Refused
from negvae.service.inference import ERRORS, Name
from negvae.service.models import Served
from negvae.service.protocol import as_score, plain
from negvae.service.uploads import data_uri

if TYPE_CHECKING:
    from negvae.service.app import Service

BINS = 60
CLOUD = 160
TOP = 2_000
"""Number of the largest held-out scores, of all groups, that the page gets as they are; others are in quantiles."""


class SamplesQuery(BaseModel, extra="forbid"):
    """The query parameters of a request for samples."""

    count: int = Field(default=16, ge=1, le=64)
    seed: int = Field(default=0, ge=0, le=2**31 - 1)


def routes(service: Service) -> APIRouter:
    """Return the routes of the page and of the metrics."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        html, policy = rendered()
        return HTMLResponse(html, headers={"content-security-policy": policy})

    @router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    @router.get("/v1/models", summary="Names of the models, and whether each is loaded", responses=ERRORS)
    async def models() -> dict[str, bool]:
        return {name: slot.model is not None for name, slot in service.slots.items()}

    @router.get("/v1/models/{name}", summary="A model, its held-out scores and its latent map", responses=ERRORS)
    async def model(name: Name) -> dict[str, Any]:
        slot, served = service.ready(name)
        priors = await service.call(slot, served, 1, lambda: served.priors(CLOUD))
        limits = {"max_images": service.settings.max_batch, "max_bytes": service.settings.max_body}
        return {
            **described(served),
            **limits,
            "priors": {key: values.round(3).tolist() for key, values in priors.items()},
        }

    @router.get("/v1/models/{name}/samples", summary="Images generated from the prior", responses=ERRORS)
    async def samples(name: Name, query: Annotated[SamplesQuery, Query()]) -> dict[str, list[str]]:
        slot, served = service.ready(name)
        if "samples" not in served.offers:
            raise Refused(422, "this model gives no samples")
        images = await service.call(slot, served, query.count, lambda: served.samples(query.count, query.seed))
        return {"images": await service.apart(lambda: [data_uri(image) for image in images])}

    return router


def described(model: Served) -> dict[str, Any]:
    """Return what the page shows of a model: its score, its rule, and a histogram of the held-out scores.

    Args:
        model: the model.

    Returns:
        Plain values; `certificate` is what `Calibration.certificate` gives, `bounds_rate` whether `rate` is an upper
        bound, and `parts` are the held-out inliers of each group, or all together: their number, the largest scores,
        largest first, and 401 quantiles.
    """
    calibration = model.calibration
    held_out = calibration.scores[calibration.score]
    parts = list(calibration.groups.get(calibration.score, {"": held_out}).values())
    low, high = float(held_out[0]), float(held_out[-1])
    # A long tail would leave most inliers in one bar; what lies beyond is in the last one.
    high = min(high, float(np.quantile(held_out, 0.995)) + 0.25 * (high - low)) if high > low else low + 1.0
    counts, edges = np.histogram(np.clip(held_out, low, high), BINS, (low, high))
    return {
        "score": calibration.score,
        "meaning": model.meaning,
        "unit": model.unit,
        "threshold": as_score(calibration.cut),
        "rate": calibration.false_alarm_rate,
        "bounds_rate": calibration.bounds_rate,
        "certificate": calibration.certificate(),
        "held_out": calibration.size,
        "counts": counts.tolist(),
        "edges": edges.tolist(),
        "parts": [_part(scores, TOP // len(parts) + 1) for scores in parts],
        "shape": list(model.spec.shape),
        "features": model.spec.features,
        "resizes": model.spec.resize,
        "tiled": model.spec.tiled,
        "offers": sorted(model.offers),
    }


def _part(held_out: NDArray[np.float64], top: int) -> dict[str, Any]:
    return {
        "held_out": len(held_out),
        "top": plain(held_out[::-1][:top].astype(np.float32)),
        "quantiles": np.quantile(held_out, np.linspace(0, 1, 401), method="higher").tolist(),
    }


@cache
def rendered() -> tuple[str, str]:
    """Return the page, with its script and style inside, and the policy that allows these alone."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("negvae.service"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    assert templates.loader is not None
    parts = {name: templates.loader.get_source(templates, f"page.{name}")[0] for name in ("css", "js")}
    hashes = {
        name: f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for name, text in parts.items()
    }
    policy = (
        f"default-src 'none'; style-src {hashes['css']}; script-src {hashes['js']}; img-src 'self' data: blob:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    html = templates.get_template("page.html.j2").render(version=negvae.__version__, **parts)
    return html, policy
