"""The command `negvae serve`: detectors behind HTTP, and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from negvae.cli.common import completing, given, option

LIMITS = "Limits"
LEVELS = ("info", "warning")


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Folders of calibrated models and exported .onnx files; NAME=PATH gives a model another name.",
            show_default=False,
        ),
    ],
    host: Annotated[
        str | None, option("Address to listen on; 0.0.0.0 accepts other machines.", "address", show_default="127.0.0.1")
    ] = None,
    port: Annotated[int | None, option("Port to listen on; 0 takes a free one.", "port", show_default="8000")] = None,
    allowed_hosts: Annotated[
        str | None,
        option("Names under which the service is reached, beside localhost and addresses; commas between.", "names"),
    ] = None,
    config: Annotated[
        Path | None, option("YAML file of these settings and of api_key; flags and NEGVAE_SERVE_... go first.", "path")
    ] = None,
    resize: Annotated[
        bool | None, typer.Option("--resize/--no-resize", help="Resize images of another size.", show_default="no")
    ] = None,
    threads: Annotated[int | None, option("Threads that compute scores.", "threads", show_default="1")] = None,
    alarm_rate: Annotated[
        float | None,
        option("Probability of a false alarm of the drift monitor.", "probability", show_default="0.01"),
    ] = None,
    max_body: Annotated[
        int | None, option("Largest body of a request.", "bytes", LIMITS, show_default="64,000,000")
    ] = None,
    max_pixels: Annotated[
        int | None, option("Refuse images that claim more than this.", "pixels", LIMITS, show_default="16,000,000")
    ] = None,
    max_batch: Annotated[
        int | None, option("Most images in a request, and scored together.", "images", LIMITS, show_default="256")
    ] = None,
    max_queue: Annotated[
        int | None,
        option("Most images (or tiles) that wait; then the answer is 503.", "images", LIMITS, show_default="2048"),
    ] = None,
    max_connections: Annotated[
        int | None,
        option("Most requests in progress; beyond it the answer is 503.", "requests", LIMITS, show_default="256"),
    ] = None,
    timeout: Annotated[
        float | None, option("Time for a request, its body included.", "seconds", LIMITS, show_default="30")
    ] = None,
    log_level: Annotated[
        str | None,
        option(
            "info logs every request; warning does not.", "name", autocompletion=completing(LEVELS), show_default="info"
        ),
    ] = None,
) -> None:
    """Serve models over HTTP (Open Inference Protocol and /v1/score), with a page for a browser at /."""
    from negvae.files import need

    for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "pydantic_settings"):
        need(module, "serve")
    from negvae.service.models import named_paths
    from negvae.service.run import serve as run_service
    from negvae.service.settings import read_settings

    flags = given(
        host=host, port=port, allowed_hosts=allowed_hosts, resize=resize, threads=threads, alarm_rate=alarm_rate,
        max_body=max_body, max_pixels=max_pixels, max_batch=max_batch, max_queue=max_queue,
        max_connections=max_connections, timeout=timeout, log_level=log_level,
    )  # fmt: skip
    run_service(named_paths(models), read_settings(config, **flags))
