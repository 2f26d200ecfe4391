"""The folder in which a trained model lives: config.yaml, weights.safetensors, metrics.jsonl, MODEL_CARD.md.

Loading one runs no code from it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from negvae.config import RunConfig, read_yaml_mapping
from negvae.files import replacing, write_text
from negvae.model import VAE, build_vae
from negvae.precision import resolve_device
from negvae.training.loop import TrainingResult

CONFIG, WEIGHTS, CARD = "config.yaml", "weights.safetensors", "MODEL_CARD.md"


@dataclass(frozen=True)
class Artifact:
    """A trained model and what is known of it.

    Attributes:
        directory: where it lives.
        config: the run that made it.
        model: in evaluation mode.
        provenance: versions, commit, machine, data.
        epochs: completed; fewer than `config.epochs` where the run was stopped.
        finished: whether all were.
    """

    directory: Path
    config: RunConfig
    model: VAE
    provenance: dict[str, Any]
    epochs: int
    finished: bool


def write_config(directory: Path, config: RunConfig, shape: tuple[int, int, int], provenance: dict[str, Any]) -> None:
    """Write config.yaml: the run, the image shape it was made for, and the provenance."""
    content = {"run": config.to_dict(), "shape": list(shape), "provenance": provenance}
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / CONFIG, yaml.safe_dump(content, sort_keys=False))


def read_config(directory: Path) -> tuple[RunConfig, tuple[int, int, int], dict[str, Any]]:
    """The inverse of `write_config`.

    Raises:
        FileNotFoundError: the folder or its config.yaml is not there.
        ValueError: config.yaml is damaged.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{directory} is not a negvae run: it has no {CONFIG}")
    try:
        content = read_yaml_mapping(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file") from None
    if not {"run", "shape", "provenance"} <= content.keys() or not isinstance(content["run"], dict):
        raise ValueError(f"{path}: expected the sections run, shape and provenance")
    shape, provenance = content["shape"], content["provenance"]
    if not (isinstance(shape, list) and len(shape) == 3 and all(isinstance(size, int) for size in shape)):
        raise ValueError(f"{path}: shape is {shape!r}, expected three whole numbers [C, H, W]")
    if not isinstance(provenance, dict):
        raise ValueError(f"{path}: provenance must be a mapping")
    return RunConfig.from_dict(content["run"], str(path)), (shape[0], shape[1], shape[2]), provenance


def save_artifact(directory: Path, config: RunConfig, result: TrainingResult, provenance: dict[str, Any]) -> None:
    """Write what `load_artifact` needs; metrics.jsonl was written by the training loop."""
    model = result.model
    write_config(directory, config, model.shape, provenance)
    header = {"epochs": str(result.progress.epoch), "finished": json.dumps(result.progress.finished)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(directory / WEIGHTS) as temporary:
        save_file(tensors, temporary, header)
    write_text(directory / CARD, _card(config, result, provenance))


def load_artifact(directory: Path | str, device: str = "auto") -> Artifact:
    """Load a trained model.

    Args:
        directory: that `negvae train --out` made.
        device: where to put it: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        FileNotFoundError: it is not a run, or the run has not been trained yet.
        ValueError: a file in it is damaged or belongs to another model.
    """
    directory = Path(directory)
    config, shape, provenance = read_config(directory)
    path = directory / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{directory} has no {WEIGHTS}: its training has not reached an end yet")
    model = build_vae(config, shape)
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        epochs, finished = int(header["epochs"]), bool(json.loads(header["finished"]))
        model.load_state_dict(tensors)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: damaged, or of another model ({str(error).splitlines()[0]})") from None
    model.to(resolve_device(device)).eval()
    return Artifact(directory, config, model, provenance, epochs, finished)


def _card(config: RunConfig, result: TrainingResult, provenance: dict[str, Any]) -> str:
    """A page for people: what the model is, what it was trained on, how it was made."""
    last = result.history[-1] if result.history else {}
    data = provenance.get("data", {})
    lines = [
        f"# VAE trained on {config.data}",
        "",
        "A variational autoencoder with negative sampling, made by negvae. It scores how far an image lies from"
        f" its training data; larger scores mean farther. Negatives: {config.negatives}.",
        "",
        f"- Training: {result.progress.epoch} of {config.epochs} epochs, {result.progress.seconds:.0f} s",
        f"- Last epoch: {last['nats_per_dim']:.4f} nats per dimension on the training data" if last else "",
        *(f"- Data, {role}: {text}" for role, text in data.items()),
        "",
        "## Run",
        "",
        *(f"- {field.name}: {getattr(config, field.name)}" for field in dataclasses.fields(config)),
        "",
        "## Provenance",
        "",
        *(f"- {name}: {value}" for name, value in provenance.items() if name != "data"),
        "",
    ]
    return "\n".join(lines)
