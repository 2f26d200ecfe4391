"""ONNX graphs: decisions as part of a graph, tracing, and files without records of the machine they were made on."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import negvae
from negvae.checksums import CHECKSUM, NO_CHECKSUM, sha256_without
from negvae.files import need, replacing
from negvae.messages import first_line
from negvae.scoring.calibration import Calibration
from negvae.scoring.scorer import LARGEST
from negvae.version import source_commit

Checked = TypeVar("Checked")


class Decision(nn.Module):
    """A module from scores to (score, p-value, decision), by a calibration whose scores are constants of the graph.

    Args:
        calibration: held-out scores and threshold. With groups, which a graph is not given, the largest p-value over
            them counts, and the highest threshold.
    """

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        # Scores are float32. A bound in float64 is moved to the next float32 on the side that changes no comparison.
        held_out = calibration.groups.get(calibration.score, {"": calibration.scores[calibration.score]}).values()
        self.held_out = [torch.from_numpy(-floor32(-scores)) for scores in held_out]
        self.threshold = float(floor32(np.array(calibration.cut)))

    def forward(self, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the score in float32, its p-value in float64 and the decision (N each)."""
        score = finite32(score)
        p_values = [
            (1 + (scores >= score.unsqueeze(1)).sum(1)).double() / (len(scores) + 1) for scores in self.held_out
        ]
        p_value = p_values[0] if len(p_values) == 1 else torch.stack(p_values).amax(0)
        return score, p_value, score > self.threshold


def finite32(scores: Tensor) -> Tensor:
    """Return scores in float32; as in the library, what is not a number counts as the most conspicuous of all."""
    return torch.where(scores.isnan(), LARGEST, scores).clamp(-LARGEST, LARGEST).float()


def floor32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the largest float32 numbers that are not above the values.

    >>> bool(floor32(np.array(0.1)) <= 0.1)
    True
    """
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    floor: NDArray[np.float32] = np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)
    return floor


def need_onnx() -> Any:
    """Import the packages of the extra "onnx".

    Returns:
        The module onnx.

    Raises:
        ImportError: if a package of the extra "onnx" is not installed.
    """
    for module in ("onnxruntime", "onnxscript"):
        need(module, "onnx")
    return need("onnx", "onnx")


def _traced(graph: nn.Module, example: Tensor, input_name: str, further: Sequence[str]) -> Any:
    """Trace a module to an ONNX ModelProto for any number of inputs, without records of this machine."""
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph, (example,), dynamo=True, input_names=[input_name],
            output_names=["score", "p_value", "is_outlier", *further],
            dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
        )  # fmt: skip
    assert program is not None  # it is where no file is named
    model = program.model_proto  # another copy each time
    _strip(model)
    return model


def write_graph(
    graph: nn.Module,
    example: Tensor,
    path: Path,
    metadata: dict[str, str],
    check: Callable[[bytes], Checked],
    *,
    input_name: str,
    further: Sequence[str] = (),
    what: str = "this score",
) -> tuple[Checked, int]:
    """Trace a module, describe it in the file's metadata, check it, and write it whole or not at all.

    Args:
        graph: module from N inputs to score, p-value and decision.
        example: inputs to trace with, 2 at least.
        path: file to write.
        metadata: what the file says of itself, besides negvae's version and commit, and its own checksum.
        check: function that raises an error if the content of the file is not right.
        input_name: name of the graph's input.
        further: names of further outputs.
        what: words for the score in messages.

    Returns:
        What `check` returned, and the number of bytes that were written.

    Raises:
        ImportError: if the extra "onnx" is not installed.
        ValueError: if the module cannot be traced.
    """
    onnx = need_onnx()
    try:
        model = _traced(graph.eval(), example, input_name, further)
    except Exception as error:  # torch has many kinds, and the function may be anybody's
        cause = error.__cause__ or error  # torch's own text begins with the step that failed, and not with why
        reason = first_line(cause)
        raise ValueError(
            f"{what} cannot be exported: it, or a part of the model, is not made of torch's functions alone ({reason})"
        ) from error
    about = {"negvae": negvae.__version__, "commit": source_commit(), **metadata, CHECKSUM: NO_CHECKSUM}
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    before, _, after = content.rpartition(NO_CHECKSUM.encode())
    content = before + sha256_without(content, NO_CHECKSUM).encode() + after
    checked = check(content)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return checked, len(content)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings, torch's messages for its own developers, and all else on standard error."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx.experimental.symbolic_shapes")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        # Where it cannot go on, torch prints the whole graph there, besides the error that says why.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip(model: Any) -> None:
    """Remove torch's records of the source code and of this machine's paths from an ONNX ModelProto."""
    model.doc_string = ""
    model.graph.name = "negvae"
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
