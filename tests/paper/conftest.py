"""Small sets under the paper's names, and results that nobody trained for."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from negvae.data.fetch import failed
from negvae.paper.profiles import PROFILES
from negvae.paper.published import OOD, settings
from negvae.paper.results import run_name, table_of
from tests.conftest import blobs

TRAIN, TEST = 96, 40


def write_idx(path: Path, images: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in images.shape)
    path.write_bytes(header + images.tobytes())


@pytest.fixture
def gray_sets(tmp_path, monkeypatch) -> Path:
    """Partial sets, where worker processes find them too: fashion-mnist and mnist."""
    root = tmp_path / "data"
    for seed, name in enumerate(("fashion-mnist", "mnist")):
        for file, count in (("train", TRAIN), ("t10k", TEST)):
            images = blobs(count, (1, 28, 28), seed + 10 * count)[:, 0].numpy()
            write_idx(root / name / f"{file}-images-idx3-ubyte", images if seed else 255 - images)
    monkeypatch.setenv("NEGVAE_DATA", str(root))
    failed.clear()
    monkeypatch.setattr("negvae.data.find.DEBIAN_FOLDER", tmp_path / "no-debian")
    return root


@pytest.fixture
def smoke(monkeypatch):
    """Change the smoke profile for one test."""

    def change(**fields):
        base = PROFILES["smoke"]
        gray = (base.gray[0], {**base.gray[1], "precision": "float32", **fields.pop("gray", {})})
        profile = dataclasses.replace(base, gray=gray, **fields)
        monkeypatch.setitem(PROFILES, "smoke", profile)
        return profile

    return change


def fake_result(results, profile, name, seed, values=(0.5, 0.5, 0.3, 0.4), **fields):
    """Put a result with these figures, in the order of `ROWS`, into the table of its profile, as the runner would."""
    setting = settings()[name]
    ood = OOD[setting.data]
    rows = ("auc_bpd", "auc_kl", "nats_per_dim_test", "nats_per_dim_ood")
    low, high = np.linspace(0.2, 0.6, 50).tolist(), np.linspace(0.3, 2.0, 50).tolist()
    curve = [
        {"epoch": e, "nats_per_dim": 0.5 / e, "auc_bpd": 0.4 + e / 10, "auc_kl": 0.5, "auc_prior_ratio": 0.5,
         "nats_per_dim_test": 0.5 / e, "nats_per_dim_ood": 0.6 / e}
        for e in (1, 2)
    ]  # fmt: skip
    content = {
        "run": name, "profile": profile.name, "seed": seed, "status": "finished",
        "config": profile.config(setting, seed).to_dict(),
        "evaluation": {ood: dict(zip(rows, values, strict=True))},
        "quantiles": {ood: {score: {"inliers": low, "ood": high} for score in ("bpd", "kl")}},
        "curve": curve, "curve_images": 40, "data": {"test": f"{setting.data} test, 40 images"},
        "notes": [f"{setting.data} train: a stand-in & 50% of it"],
        "provenance": {
            "negvae": "0", "commit": "0123456789abcdef", "torch": "2", "device": "a_machine", "precision": "float32",
            "train_seconds": 10.0, "wall_seconds": 12.0, "images_per_second": 100.0,
        },
        **fields,
    }  # fmt: skip
    table_of(results, profile).put(run_name(setting, seed), content)
