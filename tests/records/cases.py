"""What a few steps of training and scoring come to, for every preset and every kind of negatives.

`python -m tests.records.cases` adds this machine's results to training.json. Bits are those of one version of torch on
one kind of processor; the values beside them are compared within a tolerance everywhere else.
"""

import hashlib
import json
import os
import platform
import re
from pathlib import Path

import numpy as np
import torch

from negvae.config import preset
from negvae.device import runs_bfloat16
from negvae.negatives import build_source
from negvae.scoring import Scorer, calibrate
from negvae.training.loop import train
from tests.conftest import SHAPES, blobs

RECORD = Path(__file__).parent / "training.json"
STEPS = dict(epochs=1, limit=None, batch_size=8, calibration=0.0, device="cpu")
SCORES = ("combined", "dose", "bpd", "kl", "prior_ratio", "iwae")
PRESETS = {
    "gray": SHAPES["gray"],
    "gray-paper": SHAPES["gray-paper"],
    "color": SHAPES["color"],
    "general": SHAPES["pyramid"],
    "unsupervised": SHAPES["deep"],
    "features": (6, 1, 1),
}
RECORDED = {"general": "auto"}
"""What the record calls presets that have another name now."""
FORMER = {"unsupervised": dict(learning_rate=1e-3, schedule="constant")}
"""Fields of presets as they were when they were recorded."""
NEGATIVES = {
    "generated, alternating": dict(negatives="generated", update="alternating"),
    "generated, simultaneous": dict(negatives="generated", update="simultaneous"),
    "augmented": dict(negatives="augmented"),
    "auxiliary": dict(negatives="others"),
    "uniform noise": dict(negatives="uniform-noise"),
    "added noise": dict(negatives="added-noise:0.2"),
    "a mixture": dict(negatives="0.4*generated+0.3*others+0.3*augmented"),
}


def cases() -> dict[str, tuple[str, dict[str, object]]]:
    """Preset and overrides of each case."""
    found: dict[str, tuple[str, dict[str, object]]] = {
        f"preset {RECORDED.get(name, name)}": (name, FORMER.get(name, {})) for name in PRESETS
    }
    for network in ("gray", "color"):
        found |= {f"{network}, {kind}": (network, fields) for kind, fields in NEGATIVES.items()}
    found["gray, quantized Gaussian of learned sigma"] = (
        "gray", dict(likelihood="quantized-gaussian", learn_sigma=True, negatives="generated"),
    )  # fmt: skip
    found["preset unsupervised, as it is now"] = ("unsupervised", {})
    return found


def precisions() -> list[str]:
    """Those in which networks train here."""
    return ["float32", *(["bfloat16"] if runs_bfloat16(torch.device("cpu")) else [])]


def outcome(name: str, precision: str) -> dict[str, object]:
    """Hashes of weights and scores after three steps by one thread, and values to compare within a tolerance."""
    base, fields = cases()[name]
    shape = PRESETS[base]
    if base == "features":
        draw = np.random.default_rng(0)
        images, others = (torch.from_numpy(draw.normal(size=(24, *shape))) for _ in range(2))
    else:
        images, others = blobs(24, shape), 255 - blobs(24, shape, 1)
    config = preset(base, "blobs", **{**STEPS, "precision": precision, **fields})
    source = build_source(config.negatives, lambda _: others)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = train(config, images, source).model
        if base == "features":
            model.double()
        references = calibrate(Scorer(model), images[:16], images[16:]).reference
        scores = Scorer(model, references)(torch.cat([images[:4], others[:4]]), SCORES)
    finally:
        torch.set_num_threads(threads)
    weights = {key: value.float() for key, value in model.state_dict().items()}
    return {
        "weights": _sha256(*(weights[key].contiguous().numpy() for key in sorted(weights))),
        "scores": _sha256(*(scores[key] for key in SCORES)),
        "norms": {key: float(weights[key].double().norm()) for key in sorted(weights)},
        "values": {key: [float(value) for value in scores[key]] for key in SCORES},
    }


def processor() -> str:
    """What equal bits take: the version of torch, the instructions it uses and the processor's model."""
    capability = torch.backends.cpu.get_cpu_capability()
    if held := os.environ.get("ONEDNN_MAX_CPU_ISA"):
        capability += f" ({held})"
    facts = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else platform.processor()
    model = [
        match.group(1).strip()
        for name in ("vendor_id", "cpu family", "model", "stepping", "cache size")
        if (match := re.search(rf"^{name}\s*:\s*(.*)$", facts, re.MULTILINE))
    ]
    return f"torch {torch.__version__}, {capability}, {' '.join(model)}"


def _sha256(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"values": {}, "bits": {}}
    bits = record["bits"].setdefault(processor(), {})
    for case in cases():
        for kind in precisions():
            result = outcome(case, kind)
            bits[f"{case}, {kind}"] = {key: result[key] for key in ("weights", "scores")}
            record["values"].setdefault(f"{case}, {kind}", {key: result[key] for key in ("norms", "values")})
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
