"""Checkpoints from which training continues exactly as if it had never stopped.

A checkpoint is one safetensors file: weights, optimizer states and the random generator's states as tensors, everything
else as JSON in the header. Loading it runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from negvae.checksums import CHECKSUM, NO_CHECKSUM, add_checksum, open_tensors, order_header
from negvae.files import from_json, replacing
from negvae.messages import first_line
from negvae.spacing import spread_rows

FILE = "checkpoint.safetensors"
CHECKPOINT_SECONDS = 60.0
"""Seconds from one checkpoint to the next, unless others are asked for."""


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epoch: number of completed epochs.
        step: number of steps taken in the current epoch.
        sums: sum of each loss part over the steps of the current epoch, in nats per image.
        seconds: seconds of training so far, over all calls.
        epoch_seconds: seconds of training in the current epoch.
        finished: whether all epochs are completed, and the steps of the encoder of transformations.
        workers: number of threads that share each batch; 0 where it was not set.
        otherwise: number of threads to share each batch from then on if threads inside operators fall behind; 0 for
            none.
        shift_steps: number of steps that the encoder of transformations has taken, and their number in all.

    >>> Progress(epoch=3).finished
    False
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    finished: bool = False
    workers: int = 0
    otherwise: int = 0
    shift_steps: tuple[int, int] = (0, 0)


def save_checkpoint(
    directory: Path,
    model: nn.Module,
    optimizers: dict[str, Optimizer],
    generators: dict[str, Tensor],
    progress: Progress,
    name: str = FILE,
    mark: dict[str, Any] | None = None,
) -> None:
    """Write the checkpoint of a run, whole or not at all.

    Args:
        directory: folder of the run.
        model: network whose weights and buffers are saved.
        optimizers: optimizers by name.
        generators: states of random generators (uint8) by name.
        progress: progress of the run.
        name: name of the file.
        mark: plain values that tell the run from others, for `check_mark`; None for none.
    """
    tensors = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
    tensors |= {f"generator.{key}": state for key, state in generators.items()}
    for owner, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{owner}.{index}.{key}"] = torch.as_tensor(value)
    marked = {} if mark is None else {"mark": json.dumps(mark)}
    save_tensors(directory / name, to_store(tensors), {"progress": json.dumps(asdict(progress)), **marked})


def to_store(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU that share no memory and are contiguous, as a safetensors file takes them.

    A layer that stands in two places gives the same tensor under two names.

    >>> shared = torch.zeros(2, 3)
    >>> [each.data_ptr() == shared.data_ptr() for each in to_store({"a": shared, "b": shared.T}).values()]
    [False, False]
    """
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def save_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write a safetensors file with a checksum, whole or not at all; the same tensors and header give the same bytes.

    Args:
        path: of the file.
        tensors: by name, as `to_store` returns them.
        header: text by name.

    Raises:
        OSError: the disk is full or may not be written.
    """
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, {**header, CHECKSUM: NO_CHECKSUM})
        except SafetensorError as error:  # which the library makes of the system's own
            if (found := re.search(r"os error (\d+)", str(error))) is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
        order_header(temporary)
        add_checksum(temporary)


def load_checkpoint(
    directory: Path, model: nn.Module, optimizers: dict[str, Optimizer], name: str = FILE
) -> tuple[Progress, dict[str, Tensor]] | None:
    """Restore the weights of the model and the states of the optimizers in place.

    Args:
        directory: folder of the run.
        model: network of the same architecture.
        optimizers: optimizers by the names under which they were saved.
        name: name of the file.

    Returns:
        The progress and the generators' states, or None if the run has no checkpoint yet.

    Raises:
        ValueError: if the file is damaged or belongs to another model.
    """
    path = directory / name
    if not path.exists():
        return None
    progress = read_progress(directory, name)
    with _readable(path), open_tensors(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    try:
        model.load_state_dict(_under(tensors, "model"))
        for owner, optimizer in optimizers.items():
            _restore_optimizer(optimizer, _under(tensors, f"optimizer.{owner}"))
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{path}: belongs to another model ({first_line(error)})") from None
    return progress, _under(tensors, "generator")


def read_progress(directory: Path, name: str = FILE) -> Progress:
    """Read the progress of a run from its checkpoint.

    Args:
        directory: folder of the run.
        name: name of the file.

    Returns:
        The progress, which is that of a new run if there is no checkpoint.

    Raises:
        ValueError: if the file is damaged.

    >>> read_progress(Path("no-such-run")) == Progress()
    True
    """
    path = directory / name
    if not path.exists():
        return Progress()
    with _readable(path), open_tensors(path, "pt") as file:
        return Progress(**from_json((file.metadata() or {})["progress"]))


def check_mark(directory: Path, name: str, mark: dict[str, Any]) -> None:
    """Refuse a checkpoint that was saved with another mark; one that is not there, or has none, is not refused.

    Args:
        directory: folder of the run.
        name: name of the file.
        mark: plain values that tell the run from others.

    Raises:
        ValueError: if a value differs, or the file is damaged.
    """
    path = directory / name
    if not path.exists():
        return
    with _readable(path), open_tensors(path, "pt") as file:
        saved = from_json((file.metadata() or {}).get("mark", "{}"))
        other = [each for each in saved if saved[each] != mark.get(each)]
    if other:
        raise ValueError(f"{path}: is of a training with other {', '.join(other)}; remove it to start anew")


def digest(data: Tensor) -> str:
    """Return a text that differs for other data: the number of rows and the SHA-256 of a few, spread over all."""
    few = spread_rows(data, 100).cpu().contiguous().numpy()
    return f"{len(data)} {hashlib.sha256(few.tobytes()).hexdigest()}"


def restore_generator(generator: torch.Generator, states: dict[str, Tensor], name: str, path: Path) -> None:
    """Set a random generator to its state in a checkpoint.

    Args:
        generator: generator to set.
        states: states by name, as `load_checkpoint` returns them.
        name: name of the state.
        path: the checkpoint's file, for the message.

    Raises:
        ValueError: if there is no such state, or it is that of a generator on another type of device.
    """
    try:
        generator.set_state(states[name])
    except (KeyError, RuntimeError, TypeError):
        raise ValueError(
            f"{path}: its random numbers cannot go on on {generator.device.type}: take the type of device that it was"
            " written on, or remove it to start anew"
        ) from None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn every exception that a damaged file can raise into a ValueError of one line."""
    try:
        yield
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a readable checkpoint ({error}); remove it to start anew") from None


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries below `prefix.`, without the prefix."""
    start = len(prefix) + 1
    return {name[start:]: tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")}


def _restore_optimizer(optimizer: Optimizer, entries: dict[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states: dict[int, dict[str, Any]] = {}
    for name, tensor in entries.items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape and tensor.dim():
            tensor = torch.empty_like(parameter).copy_(tensor)
        states.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
