"""A detector around scores of any model: a person's own VAE, flow, diffusion model or any other function of data."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from negvae.checksums import open_tensors
from negvae.detector.columns import column_names, frame_numbers, other_columns, refuse_kinds
from negvae.detector.decisions import Decisions
from negvae.detector.groups import labels_of_held_out, warn_of_small_groups, with_groups
from negvae.detector.inputs import as_array, opened, repeatable, seed_of
from negvae.files import refuse_used
from negvae.messages import first_line
from negvae.report import document
from negvae.report.scored import write_scored_report
from negvae.runs.export import TOLERANCE, relative_difference, run_onnx
from negvae.runs.graph import Decision, write_graph
from negvae.scoring.calibration import TARGET_FPR, Calibration
from negvae.scoring.drift import Movement, movements
from negvae.scoring.groups import check_inlier_labels, split
from negvae.scoring.scorer import LARGEST
from negvae.training.checkpoint import save_tensors

Values = NDArray[np.float64]
ScoreOf = Callable[[Any], Any]
"""A function from a batch of N inputs to N numbers, or to N x K numbers; larger = more out-of-distribution."""
FILE = "scores.safetensors"
LARGEST_OF = "largest"
"""Name of the score that combines several: the largest of them, each on the scale of the inliers."""


class ScoreDetector(Decisions, OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Calibrated decisions for the scores of any model.

    The model is trained elsewhere. `fit` takes inliers that it was not trained on; from their scores come p-values,
    thresholds, certificates, tests of drift, a monitor for streams, a report and an ONNX file, with the guarantees
    that `negvae.NegVAEDetector` has.

    Args:
        score: function from a batch to its scores, N or N x K, larger = more out-of-distribution; arrays and tensors
            are passed on as they were given, images of files and data sets as uint8 tensors N x C x H x W, data frames
            and files of rows as tensors N x D. A `torch.nn.Module` is called without gradients; one with dropout or
            batch norm must have been set to evaluation by its `eval()`.
        names: names of the K scores; None uses "score", or "score 1", "score 2" and so on.
        decision_score: name of the score that decides. With None, a single score does, and of several the largest:
            a fifth of the inliers then sets their scales, (score - median) / (95% quantile - median), and the others
            calibrate.
        target_fpr: rate of false alarms on fresh inliers, above 0 and below 1. None puts the threshold above all of the
            inliers given to `fit`, or, of a group, above those of its inliers that calibrate.
        confidence: probability, such as 0.95, with which this detector's own rate is at most `target_fpr`; with None
            the rate holds on average over sets of inliers.
        batch_size: number of inputs that `score` is called with at once.
        random_state: seed of the choice of the inliers that set the scales, or `numpy.random.RandomState`.

    Attributes:
        calibration_: scores of the held-out inliers and the threshold (`negvae.scoring.calibration.Calibration`).
        scales_: median and 95% quantile of each score, 2 x K; None if one score decides by itself.
        feature_names_in_: names of the columns, if the inliers are a data frame whose columns have texts as names, or a
            CSV or Parquet file; in a later file, columns are found by these names.

    >>> far = ScoreDetector(lambda batch: abs(batch).sum(1), target_fpr=0.1).fit(np.eye(20))
    >>> far.predict([[0.0] * 20, [9.0] * 20]).tolist()
    [1, -1]
    """

    def __init__(
        self,
        score: ScoreOf,
        *,
        names: Sequence[str] | None = None,
        decision_score: str | None = None,
        target_fpr: float | None = TARGET_FPR,
        confidence: float | None = None,
        batch_size: int = 256,
        random_state: int = 0,
    ) -> None:
        self.score = score
        self.names = names
        self.decision_score = decision_score
        self.target_fpr = target_fpr
        self.confidence = confidence
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, *, groups: Any = None) -> Self:
        """Set p-values and the threshold from inliers that the model was not trained on; nothing is trained.

        Args:
            X: the inliers: arrays, tensors, a path, a data set's name, a torch Dataset or DataLoader.
            y: ignored; present for compatibility with scikit-learn.
            groups: group of each inlier, each of which gets its own threshold: N texts, or what names them (see
                `negvae.NegVAEDetector.fit`). None means no groups.

        Returns:
            The fitted detector itself.

        Raises:
            TypeError: if `score` is no function.
            ValueError: if there are too few inliers for the rate, the function does not return a number for each input,
                or a parameter is out of range.
        """
        self._check_parameters()
        X, labels = with_groups(X, groups)
        X = opened(X)
        values = self._values(X)
        _check_finite(values)
        check_inlier_labels(labels, len(values))
        names = self._names(values.shape[1])
        decides = self.decision_score or (names[0] if len(names) == 1 else LARGEST_OF)
        if decides not in (*names, LARGEST_OF):
            raise ValueError(f"decision_score is {decides!r}: the scores are {', '.join(names)}")
        scales: Values | None = None
        if decides == LARGEST_OF:
            order = np.random.default_rng(seed_of(self.random_state)).permutation(len(values))
            scale, rest = np.sort(order[: len(values) // 5]), np.sort(order[len(values) // 5 :])
            if len(scale) < 5:
                raise ValueError(f"{len(values)} inliers are too few to combine {len(names)} scores: give 25 or more")
            scales = np.quantile(values[scale], [0.5, 0.95], axis=0)
            every = _named(values, names, scales)
            values = values[rest]
            labels = None if labels is None else labels_of_held_out(labels, rest.tolist())
        scores = _named(values, names, scales)
        bounding = scores if scales is None or self.target_fpr is not None else every
        empty = Calibration({}, decides, 0.0, self.target_fpr, confidence=self.confidence)
        fitted = Calibration(
            {name: np.sort(each) for name, each in scores.items()}, decides,
            empty.threshold_for(bounding[decides]), self.target_fpr, confidence=self.confidence,
        )  # fmt: skip
        if labels is not None:
            fitted = fitted.with_groups({name: split(each, labels) for name, each in scores.items()})
            warn_of_small_groups(fitted)
        self._take(fitted, names, scales, column_names(X))
        return self

    def _check_parameters(self) -> None:
        if not callable(self.score):
            raise TypeError(f"score is {self.score!r}: it must be a function of a batch of inputs")
        size = self.batch_size
        if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
            raise ValueError(f"batch_size is {size!r}: it must be a whole number of at least 1")
        if self.confidence is not None and self.target_fpr is None:
            raise ValueError("confidence is that of target_fpr: give a target_fpr with it")

    def _take(
        self, calibration: Calibration, names: list[str], scales: Values | None, columns: list[Any] | None
    ) -> None:
        """Set everything that is fitted, once nothing can be refused any more."""
        self.__dict__.pop("feature_names_in_", None)  # of an earlier fit
        self._columns = None if columns is None else [
            int(name) if isinstance(name, Integral) else str(name) for name in columns
        ]  # fmt: skip
        if columns is not None and all(isinstance(name, str) for name in columns):
            self.feature_names_in_ = np.asarray(columns, dtype=object)
        self.names_ = names
        self.scales_ = scales
        self.calibration_ = calibration
        self.offset_ = -calibration.cut

    def _names(self, count: int) -> list[str]:
        usual = ["score"] if count == 1 else [f"score {number + 1}" for number in range(count)]
        names = usual if self.names is None else [str(name) for name in self.names]
        if len(names) != count or len(set(names)) < count or LARGEST_OF in names:
            raise ValueError(
                f"names are {names}: the function returns {count} scores, each of which needs a name of its own"
                f" other than {LARGEST_OF!r}"
            )
        return names

    @torch.no_grad()
    def _values(self, X: Any) -> Values:
        """Return the scores of X, N x K; what is not a number counts as the most conspicuous of all."""
        if isinstance(X, Tensor | np.ndarray) and not np.ma.is_masked(X):  # which as_array refuses
            data = X
        else:
            found = as_array(X, "test")[0]
            data = np.asarray(found) if isinstance(X, list | tuple) else _tensor(found)
        _refuse_training_mode(self.score)
        if not data.ndim:
            raise TypeError("X is one number: it must be an array of N inputs")
        if not len(data):
            raise ValueError("X is empty: at least one input is needed")
        parts: list[Values] = []
        for start in range(0, len(data), self.batch_size):
            batch = data[start : start + self.batch_size]
            parts.append(_returned(self.score(batch), len(batch)))
            if parts[-1].shape[1] != parts[0].shape[1]:
                raise ValueError(
                    f"the function returned {parts[0].shape[1]} scores for the first batch and {parts[-1].shape[1]} for"
                    " another: it must return as many for each"
                )
        values: Values = np.clip(np.nan_to_num(np.concatenate(parts), nan=LARGEST, posinf=LARGEST), -LARGEST, LARGEST)
        return values

    # --- scores and decisions -----

    def all_scores(self, X: Any) -> dict[str, Values]:
        """Compute every score of each input.

        Args:
            X: the inputs, in any form that `fit` takes.

        Returns:
            N numbers for each score, by its name.

        Raises:
            ValueError: if X has other columns than the inliers, or if the function returns another number of scores.
        """
        check_is_fitted(self, "calibration_")
        known = self._names_in_files()
        X = opened(X, known)
        columns = column_names(X)
        now = known if columns is None else list(map(str, columns))
        # Where the names are numbers, others may stand for the same places.
        if known is not None and now is not None and now != known and (
            hasattr(self, "feature_names_in_") or len(now) != len(known) or sorted(now) == sorted(known)
        ):  # fmt: skip
            raise ValueError(other_columns(known, now, "X"))
        values = self._values(X)
        if values.shape[1] != len(self.names_):
            raise ValueError(f"the function returned {values.shape[1]} scores, and {len(self.names_)} when fitted")
        return _named(values, self.names_, self.scales_)

    def ood_score(self, X: Any) -> Values:
        """Compute the score that decides (N); larger = more out-of-distribution."""
        return self.all_scores(X)[self.calibration_.score]

    def _names_in_files(self) -> list[str] | None:
        """Return the names by which columns are found in a file; None if they have none."""
        columns = getattr(self, "_columns", None)  # which a pickle of an earlier version lacks
        return None if columns is None else list(map(str, columns))

    def drift(self, X: Any, target_fpr: float = 0.01) -> tuple[Movement, ...]:
        """Test which scores of a batch have moved against the held-out inliers, the most significant first."""
        scores = self.all_scores(X)
        return movements(self.calibration_.scores, scores, target_fpr)

    # --- keeping -----

    def report(self, X: Any, out: Path | str, *, top: int = 40) -> None:
        """Write a page about a batch: counts, the most and least typical inputs, scores, p-values.

        Args:
            X: the batch; images (uint8, N x C x H x W with C 1 or 3) are shown, other inputs are listed by number.
            out: file to write.
            top: number of the most and of the least typical inputs to show.

        Raises:
            FileNotFoundError: if the folder to write to does not exist.
            OSError: if the page cannot be written, which is found out first.
            ValueError: if `top` is below 1, the file is there and no page, or X cannot be scored.
        """
        document.check(Path(out), top)
        X = opened(X, self._names_in_files())
        if (whole := repeatable(X)) is not X:
            X = torch.from_numpy(np.ascontiguousarray(whole))
        scores = self.all_scores(X)
        images = np.asarray(X if isinstance(X, Tensor | np.ndarray) else as_array(X, "test")[0])
        shown = images if images.ndim == 4 and images.shape[1] in (1, 3) and images.dtype == np.uint8 else None
        write_scored_report(Path(out), scores, self.calibration_, images=shown, top=top)

    def export(self, out: Path | str, example: Tensor) -> None:
        """Write one ONNX file: the input in; score, p-value and decision out.

        Args:
            out: file to write.
            example: some inputs as `score` takes them, 2 at least; the number of inputs may differ later.

        Raises:
            ImportError: if the extra "onnx" is not installed.
            TypeError: if `example` is no tensor.
            ValueError: if the function is not made of torch's functions alone, or the file does not score as it does.
        """
        check_is_fitted(self, "calibration_")
        if not isinstance(example, Tensor):
            raise TypeError(
                f"example is a {type(example).__name__}: it must be a tensor, as torch.from_numpy makes one"
            )
        example = example.detach()
        graph = _Scored(self.score, self.names_, self.scales_, self.calibration_)
        twice = torch.cat([example, example])
        wanted = self.ood_score(twice)

        def check(content: bytes) -> None:
            try:
                score, p_value, _ = run_onnx(content, twice.numpy())
            except Exception as error:  # onnxruntime has its own kinds, which need not be installed to write this
                raise ValueError(
                    f"the graph takes no more than the {len(example)} inputs that it was traced with: the function must"
                    " take their number from x.shape[0], not from len(x)"
                ) from error
            difference = relative_difference(score, wanted)
            # The graph rounds scores and held-out scores to float32, so either may count as the larger where they meet.
            above, below = (np.nextafter(score, np.float32(end)) for end in (np.inf, -np.inf))
            least, most = self.calibration_.p_values(above), self.calibration_.p_values(below)
            if difference > TOLERANCE or not ((least <= p_value) & (p_value <= most)).all():
                raise ValueError(
                    f"the graph does not score as the function does (relative difference {difference:.2g})"
                )

        write_graph(graph, example, Path(out), _metadata(self.calibration_), check, input_name="input")

    def save(self, directory: Path | str) -> None:
        """Write calibration and scales to a folder, which `load` reads; the function itself is not saved.

        Args:
            directory: folder to write, new or empty.

        Raises:
            ValueError: if the directory is a file or is not empty.
        """
        check_is_fitted(self, "calibration_")
        directory = Path(directory)
        refuse_used(directory)
        directory.mkdir(parents=True, exist_ok=True)
        kept = self.calibration_
        tensors = {f"held_out.{name}": torch.from_numpy(values) for name, values in kept.scores.items()}
        if self.scales_ is not None:
            tensors["scales"] = torch.from_numpy(np.ascontiguousarray(self.scales_))
        for score, groups in kept.groups.items():  # by number: names may hold what would part them
            for number, name in enumerate(kept.thresholds):
                tensors[f"group.{number}.{score}"] = torch.from_numpy(groups[name])
        rule = {"names": self.names_, "score": kept.score, "threshold": kept.threshold, "target_fpr": kept.target_fpr,
                "confidence": kept.confidence, "groups": list(kept.thresholds),
                "columns": self._columns}  # fmt: skip
        save_tensors(directory / FILE, tensors, {"rule": json.dumps(rule)})

    @classmethod
    def load(cls, directory: Path | str, score: ScoreOf) -> Self:
        """Load what `save` has written, for the same function.

        Args:
            directory: folder of the detector.
            score: the function that the detector was fitted with.

        Returns:
            The fitted detector.

        Raises:
            FileNotFoundError: if the folder holds no such file.
            TypeError: if `score` is no function.
            ValueError: if the file is damaged.
        """
        cls(score)._check_parameters()
        path = Path(directory) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{directory} holds no {FILE}: it is not the folder of a ScoreDetector")
        try:
            with open_tensors(path, "np") as file:
                rule = json.loads(file.metadata()["rule"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            made = cls(score, names=rule["names"], decision_score=rule["score"], target_fpr=rule["target_fpr"],
                       confidence=rule["confidence"])  # fmt: skip
            names, scales = rule["names"], arrays.get("scales")
            held_out = {name: arrays[f"held_out.{name}"] for name in _all_names(names, scales)}
            calibration = Calibration(held_out, rule["score"], rule["threshold"], rule["target_fpr"],
                                      confidence=rule["confidence"])  # fmt: skip
            if rule["groups"]:
                groups = list(enumerate(rule["groups"]))
                calibration = calibration.with_groups(
                    {name: {group: arrays[f"group.{number}.{name}"] for number, group in groups} for name in held_out}
                )
            _check(calibration, scales, len(names))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: damaged, or not of a ScoreDetector ({first_line(error)})") from None
        made._take(calibration, names, scales, rule.get("columns"))  # which earlier versions did not write
        return made


def _tensor(data: Any) -> Tensor:
    """Return data that is no list as a tensor; a data frame of several types becomes float64."""
    is_frame = column_names(data) is not None
    if is_frame:
        refuse_kinds(data)
    array = np.asarray(data)
    if not array.ndim:
        raise TypeError(f"X is {type(data).__name__}: it must be an array, a table, a list or a path")
    if is_frame and array.dtype == object:
        array = frame_numbers(data)
    if is_frame or not array.dtype.isnative or not array.flags.writeable:
        array = np.array(array, dtype=array.dtype.newbyteorder("="))  # of the function's own, which may change it
    return torch.from_numpy(np.ascontiguousarray(array))


def _refuse_training_mode(score: ScoreOf) -> None:
    """Refuse a network that gives an input other scores each time, or other ones in another batch."""
    modules = score.modules() if isinstance(score, nn.Module) else ()
    for module in modules:
        if module.training and isinstance(module, _DropoutNd | _BatchNorm):
            raise ValueError(f"score has {type(module).__name__} in training mode: call its eval() first")


def _returned(found: Any, count: int) -> Values:
    """Return what the function has returned for so many inputs as N x K numbers, or refuse it."""
    if isinstance(found, Tensor):
        found = found.detach().cpu()
        found = (found.double() if found.is_floating_point() else found).numpy()  # which has no bfloat16
    elif isinstance(found, np.ma.MaskedArray):
        found = np.ma.filled(found.astype(np.float64), np.nan)
    try:
        array = np.asarray(found)
    except ValueError:  # lists of unequal lengths
        raise ValueError(
            f"the function returned a {type(found).__name__} of unequal parts: it must return {count} numbers, or"
            f" {count} x K"
        ) from None
    if array.dtype.kind not in "fiub":
        raise ValueError(f"the function returned {array.dtype}: it must return real numbers")
    if array.ndim not in (1, 2) or len(array) != count or not array.size:
        raise ValueError(
            f"the function returned numbers of shape {array.shape} for {count} inputs: it must return {count} numbers,"
            f" or {count} x K"
        )
    return array.astype(np.float64).reshape(count, -1)


def _named(values: Values, names: Sequence[str], scales: Values | None) -> dict[str, Values]:
    """Return the scores in the columns of `values` by name, and their largest if they have scales."""
    scores = dict(zip(names, values.T, strict=True))
    if scales is not None:
        scores[LARGEST_OF] = _largest(torch.from_numpy(values), torch.from_numpy(scales)).numpy()
    return scores


def _check(calibration: Calibration, scales: Values | None, count: int) -> None:
    """Raise a ValueError if scores or scales do not have the form in which they were written."""
    every = [calibration.scores, *({name: each[group] for name, each in calibration.groups.items()}
                                   for group in calibration.thresholds)]  # fmt: skip
    for scores in every:
        if len({values.shape for values in scores.values()}) != 1:
            raise ValueError("its scores differ in number")
        for values in scores.values():
            if values.ndim != 1 or not values.size or values.dtype != np.float64 or not (np.diff(values) >= 0).all():
                raise ValueError("its scores are not in order")
            if not np.isfinite(values).all():
                raise ValueError("its scores are not numbers")
    if calibration.score not in calibration.scores or not math.isfinite(calibration.cut):
        raise ValueError("its threshold is no number")
    if scales is not None and (scales.shape != (2, count) or not np.isfinite(scales).all()):
        raise ValueError("its scales are not numbers")


def _all_names(names: Sequence[str], scales: Values | None) -> list[str]:
    return [*names, *([LARGEST_OF] if scales is not None else [])]


def _check_finite(values: Values) -> None:
    """Refuse scores of inliers none of which is a number, and warn if some are not."""
    lost = int((values >= LARGEST).any(1).sum())
    if lost == len(values):
        raise ValueError(f"the function returned NaN or infinity for each of {lost} inliers")
    if lost:
        warnings.warn(
            f"the function returned NaN or infinity for {lost} of {len(values)} inliers, which count as most unusual",
            stacklevel=3,
        )


def _largest(values: Tensor, scales: Tensor) -> Tensor:
    """Return the largest of several scores on the scale of the inliers (N); `values` are N x K, `scales` 2 x K.

    >>> _largest(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0], [2.0, 4.0]])).tolist()
    [2.0]
    """
    width = (scales[1] - scales[0]).clamp(min=1e-12)
    return ((values - scales[0]) / width).amax(1)


class _Scored(nn.Module):
    """A module from inputs to (score, p-value, decision)."""

    def __init__(self, score: ScoreOf, names: Sequence[str], scales: Values | None, calibration: Calibration) -> None:
        super().__init__()
        self.score = score
        self.column = 0 if scales is not None else list(names).index(calibration.score)
        self.scales = None if scales is None else torch.from_numpy(scales)
        self.decision = Decision(calibration)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return score, p-value and decision (N each)."""
        values = self.score(inputs)
        values = (values.unsqueeze(1) if values.dim() == 1 else values).double()
        chosen = values[:, self.column] if self.scales is None else _largest(values, self.scales)
        return self.decision(chosen)  # type: ignore[no-any-return]


def _metadata(calibration: Calibration) -> dict[str, str]:
    return {
        "score": calibration.score,
        "threshold": repr(calibration.cut),
        "target_fpr": repr(calibration.target_fpr),
        "calibration_size": str(calibration.size),
        "false_alarm_rate_at_most": repr(calibration.false_alarm_rate),
        "p_value": "(1 + number of held-out inliers with at least this score) / (calibration_size + 1)",
        "is_outlier": "score > threshold",
    }
