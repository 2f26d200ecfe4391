"""The folder that holds a trained model.

It holds config.yaml, weights.safetensors, metrics.jsonl and MODEL_CARD.md, calibration.safetensors if inliers were
held out, and heatmaps.safetensors if maps were trained. Loading a model runs no code from the folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor

from negvae.checksums import file_sha256, open_tensors
from negvae.config import FORMAT, RENAMED, SCORE_PRECISIONS, RunConfig, read_yaml_mapping, translated
from negvae.device import own_state, resolve_device, runs_bfloat16
from negvae.fast.int8 import multiplies_integers
from negvae.fast.int8_decoder import QuantizedNetworks
from negvae.files import from_json, locked, write_text
from negvae.messages import first_line, quoted
from negvae.model import VAE, build_vae
from negvae.parts import LIKELIHOODS, require_names
from negvae.runs.card import write_calibration_card, write_card
from negvae.runs.heatmaps import FILE as HEATMAPS
from negvae.runs.heatmaps import load_heatmaps, save_heatmaps
from negvae.runs.recorded import MEMORY, WHOLE, read_recorded
from negvae.scoring.calibration import Calibration
from negvae.scoring.heatmaps import Heatmaps, calibrated_heatmaps
from negvae.scoring.neighbors import Neighbors
from negvae.scoring.references import References
from negvae.scoring.scorer import Scorer
from negvae.scoring.table import SCORES
from negvae.scoring.tiles import RULES
from negvae.training.checkpoint import save_tensors, to_store
from negvae.training.loop import TrainingResult

CONFIG, WEIGHTS = "config.yaml", "weights.safetensors"
CALIBRATION = "calibration.safetensors"
LOCK = ".training.lock"
"""File in a run's folder that is there while a process trains or calibrates the run."""
_REMEDY = "`negvae calibrate` makes it anew"
_FORMER = {field: {new: old for old, new in names.items()} for field, names in RENAMED.items()}


@dataclass(frozen=True)
class Artifact:
    """A trained model and what its folder records about it.

    Attributes:
        directory: folder of the run.
        config: configuration that the model was trained with.
        model: trained model, in evaluation mode.
        provenance: versions, commit, machine and data of the training.
        epochs: number of completed epochs; less than `config.epochs` if the run was stopped.
        finished: whether all epochs are completed.
        calibration: scores of held-out inliers and the threshold; None if no inliers were held out.
        heatmaps: maps of where an image is out-of-distribution; None if they were not trained.
    """

    directory: Path
    config: RunConfig
    model: VAE
    provenance: dict[str, Any]
    epochs: int
    finished: bool
    calibration: Calibration | None = None
    heatmaps: Heatmaps | None = None

    def calibrated(self) -> Calibration:
        """Return the calibration.

        Returns:
            The calibration.

        Raises:
            ValueError: if the run has none.
        """
        if self.calibration is None:
            raise ValueError(f"{self.directory} has no calibration: run `{self.calibrate_command()}` first")
        return self.calibration

    def recalibrated(self, calibration: Calibration, held_out: Tensor) -> Artifact:
        """Return the artifact with another calibration, and its heat maps calibrated by the same inliers.

        Args:
            calibration: new calibration.
            held_out: inliers that it is based on, N x C x H x W, or N x D x 1 x 1 for rows of features.

        Returns:
            The artifact; nothing is written.
        """
        if self.heatmaps is None:
            return dataclasses.replace(self, calibration=calibration)
        maps = calibrated_heatmaps(self.heatmaps.network, held_out)
        reference = dataclasses.replace(calibration.reference, heatmaps=maps)
        calibration = dataclasses.replace(calibration, reference=reference)
        return dataclasses.replace(self, calibration=calibration, heatmaps=maps)

    def calibrate_command(self) -> str:
        """Return the command that calibrates the run, which names inliers where the run has none that are new to it."""
        recorded = read_recorded(self.directory, self.provenance)
        held_out = recorded.held_out or self.config.calibration
        without_test_split = self.config.takes_features or recorded.source == WHOLE
        lacks = recorded.source == MEMORY or (without_test_split and not held_out)
        return f"negvae calibrate {quoted(self.directory)}" + (" --data NEW-INLIERS" if lacks else "")

    def maps(self) -> Heatmaps:
        """Return the maps of where an image is out-of-distribution.

        Returns:
            The maps.

        Raises:
            ValueError: if the run has none.
        """
        if self.heatmaps is None:
            raise ValueError(
                f"{self.directory} has no heat maps: train with `negvae train --heatmaps`, or in Python with"
                " NegVAEDetector(heatmaps=True)"
            )
        return self.heatmaps

    def scorer(self, precision: str | None = None, ensemble: tuple[VAE, ...] = ()) -> Scorer:
        """Return a scorer of this model, which computes the same scores that its calibration is based on.

        Args:
            precision: "float32", "bfloat16" or "int8"; None or "auto" for the calibration's precision, or float32 if
                the model is not calibrated. A calibrated model is scored only in the precision of its calibration.
            ensemble: further models of the same kind, for the score "waic".

        Returns:
            The scorer.

        Raises:
            ValueError: if the model was calibrated in another precision, or that precision is not available here.
        """
        calibration = self.calibration
        if calibration is None:
            if precision == "int8":
                raise ValueError(self._calibrate("is not calibrated in int8", "int8"))
            return Scorer(self.model, References(), ensemble, "float32" if precision in (None, "auto") else precision)
        asked = precision if precision != "auto" and not self.model.takes_features else None
        if asked not in (None, calibration.precision):
            raise ValueError(self._calibrate(f"is calibrated in {calibration.precision}, not in {asked}", str(asked)))
        if calibration.rounding is not None:
            if not multiplies_integers():
                raise ValueError(self._calibrate("is calibrated in int8, which does not run here", "float32"))
            numbers = {name: torch.from_numpy(values) for name, values in calibration.rounding.items()}
            quantized = QuantizedNetworks.of(self.model.encoder, self.model.decoder, numbers)
            return Scorer(self.model, calibration.reference, ensemble, quantized=quantized)
        if calibration.precision == "bfloat16" and not runs_bfloat16(self.model.device):
            raise ValueError(self._calibrate("is calibrated in bfloat16, which this machine does not run", "float32"))
        return Scorer(self.model, calibration.reference, ensemble, calibration.precision)

    def _calibrate(self, what: str, precision: str) -> str:
        """Return a line that says what is wrong with the calibration and which command makes another."""
        option = "" if precision == "float32" else f" --precision {precision}"
        return (
            f"{self.directory} {what}: `negvae calibrate {quoted(self.directory)}{option}` calibrates it in {precision}"
        )


@contextmanager
def alone(directory: Path, otherwise: str = "") -> Iterator[None]:
    """Keep other processes from training or calibrating a run for the length of the block.

    A calibration is tied to the weights in the folder when it is written: another process that puts new ones there
    meanwhile would leave them with the scores of the former.

    Args:
        directory: folder of the run; created if it does not exist.
        otherwise: further text for the message: what else one can do.

    Yields:
        Nothing.

    Raises:
        ValueError: if another process has the run.
    """
    with locked(directory / LOCK) as mine:
        if not mine:
            raise ValueError(f"{directory} is being trained or calibrated by another process: wait{otherwise}")
        try:
            yield
        finally:
            with suppress(OSError):
                (directory / LOCK).unlink()


def write_config(directory: Path, config: RunConfig, shape: tuple[int, int, int], provenance: dict[str, Any]) -> None:
    """Write config.yaml: the configuration, the image shape that it was made for, and the provenance.

    Args:
        directory: folder of the run; created if it does not exist.
        config: configuration of the run.
        shape: shape (C, H, W) of the images.
        provenance: versions, commit, machine and data of the training.

    Raises:
        ValueError: if a part of the configuration has no name.
    """
    sections = {"run": config.to_dict(), "shape": list(shape), "provenance": provenance}
    directory.mkdir(parents=True, exist_ok=True)
    _write_config(directory, sections)


def read_config(directory: Path) -> tuple[RunConfig, tuple[int, int, int], dict[str, Any]]:
    """Read what `write_config` wrote.

    Args:
        directory: folder of the run.

    Returns:
        The configuration, the shape (C, H, W) of the images, and the provenance.

    Raises:
        FileNotFoundError: if the folder or its config.yaml does not exist.
        ValueError: if config.yaml is damaged, was written by a later version, or names parts that are not registered.
    """
    content, path = _read_config(directory), directory / CONFIG
    if not {"run", "shape", "provenance"} <= content.keys() or not isinstance(content["run"], dict):
        raise ValueError(f"{path}: expected the sections run, shape and provenance")
    shape, provenance = content["shape"], content["provenance"]
    if not (isinstance(shape, list) and len(shape) == 3 and all(type(size) is int for size in shape)):
        raise ValueError(f"{path}: shape is {reprlib.repr(shape)}, expected three whole numbers [C, H, W]")
    if not isinstance(provenance, dict):
        raise ValueError(f"{path}: provenance must be a mapping")
    require_names(content["run"], str(path))
    values = _without_idle_sigma(content["run"])
    return RunConfig.from_dict(values, str(path)), (shape[0], shape[1], shape[2]), provenance


def _without_idle_sigma(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a saved run without a sigma that its likelihood does not have, which was once accepted."""
    likelihood = LIKELIHOODS.get(values.get("likelihood", "bernoulli"))
    if likelihood is None or "sigma" in likelihood.needs:
        return values
    return {name: value for name, value in values.items() if name != "sigma"}


def write_section(directory: Path, name: str, values: dict[str, Any]) -> None:
    """Add or replace a section of config.yaml; the others stay as they are."""
    _write_config(directory, {**_read_config(directory), name: values})


def read_section(directory: Path, name: str) -> dict[str, Any]:
    """Read a section that `write_section` wrote.

    Args:
        directory: folder of the run.
        name: name of the section.

    Returns:
        The values in the section; empty if there is no such section.

    Raises:
        FileNotFoundError: if the folder or its config.yaml does not exist.
        ValueError: if config.yaml is damaged.
    """
    section = _read_config(directory).get(name)
    if section is not None and not isinstance(section, dict):
        raise ValueError(f"{directory / CONFIG}: {name} must be a mapping")
    return section or {}


def _write_config(directory: Path, sections: dict[str, Any]) -> None:
    content = {"format": FORMAT, **{name: values for name, values in sections.items() if name != "format"}}
    write_text(directory / CONFIG, yaml.safe_dump(content, sort_keys=False, explicit_end=True))


def _read_config(directory: Path) -> dict[str, Any]:
    """Read all sections of config.yaml; see `read_config` for what is raised."""
    path = directory / CONFIG
    if not path.is_file():
        why = (
            f"it has no {CONFIG}" if directory.is_dir() else "it is a file" if directory.exists() else "no such folder"
        )
        raise FileNotFoundError(f"{directory} is not a negvae run: {why}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file") from None
    content = read_yaml_mapping(text, str(path))
    version = content.get("format", 1)
    if not isinstance(version, int) or version > FORMAT:
        raise ValueError(
            f"{path}: its format is {reprlib.repr(version)}, and this version of negvae reads formats up to {FORMAT}:"
            " upgrade negvae"
        )
    if version > 1 and not text.rstrip().endswith("..."):
        raise ValueError(f"{path}: the end of the file is missing")
    if isinstance(content.get("run"), dict):
        content["run"] = translated(content["run"], version)
    return content


def save_artifact(
    directory: Path,
    config: RunConfig,
    result: TrainingResult,
    provenance: dict[str, Any],
    calibration: Calibration | None = None,
    heatmaps: Heatmaps | None = None,
) -> None:
    """Write the files of a trained model that `load_artifact` reads; the training loop has written metrics.jsonl.

    Args:
        directory: folder to write into; created if it does not exist.
        config: configuration of the run, whose likelihood and network have names.
        result: what `negvae.train` returned.
        provenance: plain values for config.yaml and the model card, such as version and commit.
        calibration: scores of held-out inliers with the threshold; None for none.
        heatmaps: the model of heat maps; None for none.

    Raises:
        OSError: if a file cannot be written.
        ValueError: if the likelihood or the network is an object that is not registered.
    """
    model = result.model
    write_config(directory, config, model.shape, provenance)
    header = {
        "epochs": str(result.progress.epoch),
        "finished": json.dumps(result.progress.finished),
        "run": _run_digests(config, model.shape)[0],
    }
    tensors = to_store(model.state_dict())
    for name, _ in model.named_parameters(remove_duplicate=False):
        tensors[name] = tensors[name].float()  # as they were trained, whatever precision scores are computed in
    save_tensors(directory / WEIGHTS, tensors, header)
    write_card(directory, config, result, provenance)
    if calibration is not None:
        save_calibration(directory, calibration)
    else:
        (directory / CALIBRATION).unlink(missing_ok=True)  # of an earlier stretch of training
    if heatmaps is not None:
        save_heatmaps(directory, heatmaps)
    else:
        (directory / HEATMAPS).unlink(missing_ok=True)


@own_state()
def load_artifact(directory: Path | str, device: str = "auto", calibration: bool = True) -> Artifact:
    """Load a trained model.

    Args:
        directory: folder that `negvae train --out` wrote.
        device: device to put the model on: "auto", "cpu", "cuda" or "cuda:N".
        calibration: whether to read the calibration; if not, a damaged calibration does not matter.

    Returns:
        The model, in evaluation mode, with its configuration, provenance and calibration.

    Raises:
        FileNotFoundError: if the folder is not a run, or has no trained weights yet.
        ValueError: if a file in the folder is damaged or belongs to another model.
    """
    directory = Path(directory)
    config, shape, provenance = read_config(directory)
    path = directory / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{directory} has no {WEIGHTS}: its training has not reached an end yet")
    model = build_vae(config, shape)
    try:
        with open_tensors(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        epochs = int(header["epochs"])
        finished = bool(from_json(header["finished"])) and epochs >= config.epochs  # the run may go on to more
        model.load_state_dict(tensors)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: damaged, or of another model ({first_line(error)})") from None
    digests = _run_digests(config, shape)
    if header.get("run", digests[0]) not in digests:
        raise ValueError(f"{directory}: {CONFIG} and {WEIGHTS} belong to different runs")
    model.to(resolve_device(device)).eval()
    if model.takes_features:
        model.double()  # cheap for such networks, and scores then do not depend on the company they are computed in
    # Version 0.1 scored as it trained, and noted what "auto" came to among the facts on the machine.
    before = str(provenance.get("precision", config.precision)) if not model.takes_features else "float32"
    found = _load_calibration(directory, "float32" if before == "auto" else before) if calibration else None
    maps = load_heatmaps(directory, shape, model.device)
    if found is not None and maps is not None:
        found = dataclasses.replace(found, reference=dataclasses.replace(found.reference, heatmaps=maps))
    return Artifact(directory, config, model, provenance, epochs, finished, found, maps)


def _run_digests(config: RunConfig, shape: Sequence[int]) -> list[str]:
    """Return digests that tie weights to config.yaml: with its present names, and with the names of earlier formats.

    Neither covers the fields that may change during a run.
    """
    free = ("epochs", "device", "precision", "max_broken")
    values = {name: value for name, value in config.to_dict().items() if name not in free}
    for name in ("embed", "fit", "side", "images", "target_fpr", "confidence", "groups"):
        if values[name] is None:
            del values[name]  # which earlier versions did not have
    for name, default in (("transformations", "none"), ("schedule", "constant")):
        if values[name] == default:
            del values[name]
    before = {name: new_to_old.get(values[name], values[name]) for name, new_to_old in _FORMER.items()}
    return [
        hashlib.sha256(json.dumps([fields, list(shape)], sort_keys=True).encode()).hexdigest()
        for fields in (values, {**values, **before})
    ]


def save_calibration(directory: Path, calibration: Calibration) -> None:
    """Write or replace the calibration of a saved model, with its description in config.yaml and the model card."""
    tensors = {f"held_out.{name}": torch.from_numpy(scores) for name, scores in calibration.scores.items()}
    tensors |= {f"reference.{name}": torch.from_numpy(values) for name, values in calibration.reference.scales.items()}
    tensors |= {f"fitted.{name}": torch.from_numpy(values) for name, values in calibration.reference.fitted.items()}
    if calibration.reference.neighbors is not None:
        arrays = calibration.reference.neighbors.arrays()
        tensors |= {f"neighbors.{name}": torch.from_numpy(values) for name, values in arrays.items()}
    tensors |= {f"int8.{name}": torch.from_numpy(values) for name, values in (calibration.rounding or {}).items()}
    if calibration.columns is not None:
        tensors["columns.held_out"] = torch.from_numpy(calibration.columns)
    names = list(calibration.thresholds)
    for score, by_group in calibration.groups.items():
        tensors |= {f"group.{names.index(group)}.{score}": torch.from_numpy(by_group[group]) for group in names}
    fields = ("score", "threshold", "target_fpr", "contamination", "precision", "confidence")
    rule = {name: getattr(calibration, name) for name in fields}
    if calibration.tiles:
        rule["tiles"] = calibration.tiles
    if calibration.reference.summed:
        rule["summed"] = True
    if calibration.reference.neighbors is not None:
        rule["joined"] = calibration.joined
        rule["references_joined"] = calibration.reference.joined
    if calibration.trimmed:
        rule["trimmed"] = calibration.trimmed
    header = {"rule": json.dumps(rule), "weights": file_sha256(directory / WEIGHTS)}
    if names:
        header["groups"] = json.dumps({"thresholds": calibration.thresholds, "small": calibration.small})
    save_tensors(directory / CALIBRATION, tensors, header)
    description = {**rule, "held_out": calibration.size, "false_alarm_rate": calibration.false_alarm_rate}
    if certificate := calibration.certificate():
        description["false_alarm_bound"] = {name: certificate[name] for name in ("at_most", "confidence")}
        if names:
            description["groups"] = certificate["groups"]
    write_section(directory, "calibration", description)
    write_calibration_card(directory, calibration)


def _load_calibration(directory: Path, before: str) -> Calibration | None:
    """Return the calibration of a saved model; None if it has none.

    Args:
        directory: folder of the run.
        before: precision of a file that does not name it, as version 0.1 wrote it.

    Raises:
        FileNotFoundError: if config.yaml describes a calibration that does not exist.
        ValueError: if the file is damaged, or belongs to other weights.
    """
    path = directory / CALIBRATION
    if not path.is_file():
        if read_section(directory, "calibration"):
            raise FileNotFoundError(f"{directory} has no {CALIBRATION}, which {CONFIG} tells of; {_REMEDY}")
        return None
    kinds = ("held_out", "reference", "fitted", "neighbors", "int8", "columns", "group")
    parts: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    try:
        with open_tensors(path, "np") as file:
            header = file.metadata() or {}
            rule = from_json(header["rule"])
            for key in file.keys():  # noqa: SIM118 - not a mapping
                kind, name = _VERSION_0_1.get(key, key).split(".", 1)
                values = file.get_tensor(key)
                parts[kind][name] = values if kind == "int8" else np.asarray(values, np.float64)
        joined = bool(rule.get("joined", parts["neighbors"]))  # older files do not say it
        calibration = Calibration(
            parts["held_out"],
            "combined" if rule["score"] == "auto" else rule["score"],
            float(rule["threshold"]),
            None if rule["target_fpr"] is None else float(rule["target_fpr"]),
            float(rule["contamination"]),
            References(
                parts["reference"],
                parts["fitted"],
                Neighbors(**parts["neighbors"]) if parts["neighbors"] else None,
                summed=bool(rule.get("summed")),
                joined=bool(rule.get("references_joined", joined)),
            ),
            "int8" if parts["int8"] else rule.get("precision", before),
            parts["int8"] or None,
            None if rule.get("confidence") is None else float(rule["confidence"]),
            columns=parts["columns"].get("held_out"),
            tiles=str(rule.get("tiles", "")),
            joined=joined,
            trimmed=float(rule.get("trimmed", 0.0)),
            **_groups(parts["group"], from_json(header.get("groups", "{}"))),
        )
        if calibration.tiles not in ("", *RULES):
            raise ValueError(f"its rule for tiles is {calibration.tiles}")
        if calibration.precision not in SCORE_PRECISIONS:
            raise ValueError(f"its precision is {calibration.precision}")
        if not math.isfinite(calibration.threshold):
            raise ValueError("its threshold is no number")
        shapes = {scores.shape for scores in calibration.scores.values()}
        if calibration.size < 1 or shapes != {(calibration.size,)}:
            raise ValueError("its scores differ in number")
        if not all((np.diff(scores) >= 0).all() for scores in calibration.scores.values()):
            raise ValueError("its scores are not in order")
        _check_references(calibration.reference)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({first_line(error)}); {_REMEDY}") from None
    for name in calibration.scores:
        check_registered(directory, name)
    if "weights" in header and header["weights"] != file_sha256(directory / WEIGHTS):
        raise ValueError(f"{directory}: {CALIBRATION} belongs to other weights; {_REMEDY}")
    return calibration


def _groups(tensors: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a calibration that concern groups, from what `save_calibration` wrote.

    Raises:
        ValueError: if scores of a group are missing.
    """
    if not kept:
        return {}
    thresholds = {str(name): float(value) for name, value in kept["thresholds"].items()}
    groups: dict[str, dict[str, Any]] = {}
    for key, scores in tensors.items():
        index, score = key.split(".", 1)
        groups.setdefault(score, {})[list(thresholds)[int(index)]] = scores
    if any(by_group.keys() != thresholds.keys() for by_group in groups.values()):
        raise ValueError("scores of a group are missing")
    return {"groups": groups, "thresholds": thresholds, "small": tuple(kept["small"])}


_VERSION_0_1 = {"held_out.auto": "held_out.combined", "reference.statistics": "fitted.dose"}
"""Names in calibrations of version 0.1, each with its present name."""


def _check_references(references: References) -> None:
    """Raise a ValueError if statistics of training images do not have the form in which they were written."""
    whole = all(values.shape == (4,) for values in references.scales.values())
    for name, values in references.fitted.items():
        fit = SCORES[name].load_fit()
        whole = whole and fit is not None and fit.is_fitted(values)
    if not whole:
        raise ValueError("its reference is incomplete")


def check_registered(directory: Path, name: str) -> None:
    """Raise a ValueError that names the missing score if a calibrated score is not registered."""
    try:
        SCORES[name]
    except ValueError:
        raise ValueError(
            f"{directory} is calibrated for score {name!r}, which is not registered here: nothing from a saved folder"
            " is run, so import the code that registers it, or install its package"
        ) from None
