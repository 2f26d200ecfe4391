"""Record what is needed to repeat a result: versions, commit, machine."""

from __future__ import annotations

import importlib.metadata
import platform
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import negvae
from negvae.config import RunConfig
from negvae.device import resolve_device, resolve_precision
from negvae.scoring.scorer import Scorer
from negvae.version import source_commit

PACKAGES = ("negvae", "torch", "numpy", "ray")


def provenance(config: RunConfig, scorer: Scorer | None = None) -> dict[str, Any]:
    """Return the plain values that are written to every file of a run.

    Args:
        config: configuration of the run.
        scorer: scorer that made what is written, with its device and precision; None for a training, whose device and
            precision are those of the configuration, resolved for this machine.

    Returns:
        Version, commit, time, libraries, hardware and precision.

    Raises:
        ValueError: if a training's device or precision is not available here.
    """
    if scorer is None:
        device = resolve_device(config.device)
        precision = resolve_precision(config.precision, device)
    else:
        device, precision = scorer.model.device, _arithmetic(scorer)
    return {
        "negvae": negvae.__version__,
        "commit": source_commit(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "seed": config.seed,
    }


def described_data(provenance: dict[str, Any]) -> dict[str, str]:
    """Return what the provenance of a run says about its data, by role.

    >>> described_data({"data": "photos of the line"}), described_data({})
    ({'data': 'photos of the line'}, {})
    """
    data = provenance.get("data") or {}
    return data if isinstance(data, dict) else {"data": str(data)}  # as a caller of `save_artifact` may put it


def data_hashes(provenance: dict[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each set that the provenance of a run records, by role.

    >>> data_hashes({"data_sha256": {"inliers": "ab"}}), data_hashes({"data_sha256": "ab"}), data_hashes({})
    ({'inliers': 'ab'}, {}, {})
    """
    hashes = provenance.get("data_sha256")
    return hashes if isinstance(hashes, dict) else {}


def _arithmetic(scorer: Scorer) -> str:
    """Return the precision in which a scorer's networks compute."""
    if scorer.model.takes_features:
        return "float64"
    return "int8" if scorer.quantized is not None else resolve_precision(scorer.precision, scorer.model.device)


def _cpu() -> str:
    """Return the processor's name, its model if the system reports it, and the number of threads in use."""
    info = Path("/proc/cpuinfo")
    name, model = platform.processor() or platform.machine(), ""
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        pairs = (line.partition(":") for line in lines)
        facts = {key.strip(): value.strip() for key, _, value in pairs}
        name = facts.get("model name", name)
        known = [f"{key} {facts[key]}" for key in ("cpu family", "model", "stepping") if key in facts]
        model = f"{', '.join(known)}; " if known else ""
    return f"{name} ({model}{torch.get_num_threads()} threads)"


def versions() -> dict[str, str]:
    """Return the versions that must be equal on all nodes for results to be equal, by package.

    >>> sorted(versions())[0]
    'negvae'
    """
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
