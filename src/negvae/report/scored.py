"""A page about the scores of any model: counts, the most and least typical inputs, scores and p-values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from negvae.messages import counted
from negvae.report import document, figures, tables
from negvae.report.document import Section
from negvae.report.tables import DataTable
from negvae.scoring.calibration import Calibration
from negvae.scoring.certificates import CONFIDENCE

LARGEST_SIDE = 64
"""The largest side in pixels of a shown image."""


def write_scored_report(
    out: Path,
    scores: Mapping[str, NDArray[np.float64]],
    calibration: Calibration,
    *,
    images: NDArray[np.uint8] | None = None,
    top: int = 40,
) -> None:
    """Write the page to a file, whole or not at all.

    Args:
        out: file to write.
        scores: N values of each score, by the names that the calibration has.
        calibration: held-out scores and the threshold.
        images: images to show, N x C x H x W with C 1 or 3; None lists the inputs by number.
        top: number of the most and of the least typical inputs to show.
    """
    decisive = scores[calibration.score]
    p, called = calibration.p_values(decisive), calibration.is_outlier(decisive)
    order = np.argsort(-decisive, kind="stable")
    sections = [
        Section("Counts", _counts(calibration, called)),
        _extremes("Least typical", order[:top], scores, p, called, images),
        _extremes("Most typical", order[::-1][:top], scores, p, called, images),
        _histograms(calibration, scores, p),
    ]
    subtitle = f"{len(p):,} scored, {int(called.sum()):,} called outliers by {calibration.describe()}"
    document.write(out, document.page("What the detector sees", sections, subtitle=subtitle))


def false_alarms(calibration: Calibration) -> str:
    """Describe the rate of false alarms that a threshold is expected to have, and what is certified about it."""
    certified = f"no rate is certified: {calibration.uncertified}"
    if not calibration.uncertified:
        bounds = calibration.fpr_bounds(calibration.confidence or CONFIDENCE)
        certified = f"at most {bounds.high:.2%} with {bounds.confidence:.4g} confidence"
    bound = "at most" if calibration.bounds_rate else "about"
    inliers = counted(calibration.size, "held-out inlier")
    return f"{bound} {calibration.false_alarm_rate:.2%} on average, from {inliers}; {certified}"


def p_value_chart(p: NDArray[np.float64]) -> Markup:
    """Draw p-values from 0 to 1, so that left is where outliers are, whatever values there are."""
    figure = figures.histogram({"input": p}, xlabel="p-value", bins=20, log_x=False, limits=(0, 1))
    level = "p-values: about level where all are inliers, a peak at the left is what outliers make"
    return document.chart(figure, level)


def _counts(calibration: Calibration, called: NDArray[np.bool_]) -> Markup:
    expected = calibration.false_alarm_rate * len(called)
    rows = [
        ("scored", f"{len(called):,}", ""),
        ("called outliers", f"{int(called.sum()):,}", f"{called.mean():.2%}"),
        ("expected, were all of them inliers", f"{expected:,.1f}", false_alarms(calibration)),
    ]
    return tables.html(DataTable(["quantity", "count", "note"], rows, align="lrl"))


def _extremes(
    title: str,
    chosen: NDArray[np.int64],
    scores: Mapping[str, NDArray[np.float64]],
    p: NDArray[np.float64],
    called: NDArray[np.bool_],
    images: NDArray[np.uint8] | None,
) -> Section:
    blocks = []
    if images is not None:
        step = -(-max(images.shape[2:]) // LARGEST_SIDE)
        shown = np.ascontiguousarray(images[chosen][:, :, ::step, ::step])
        scale = max(1, LARGEST_SIDE // max(shown.shape[2:]))
        blocks.append(document.image_grid(shown, columns=8, scale=scale, caption="The inputs, in order."))
    rows = [
        [f"{row:,}", "yes" if called[row] else "", f"{p[row]:.4g}", *(float(each[row]) for each in scores.values())]
        for row in chosen[:12]
    ]
    caption = f"The first {len(rows)} of {len(chosen)}. Larger scores mean farther from the inliers."
    head, align = ["input", "outlier", "p-value", *scores], "rcr" + "r" * len(scores)
    return Section(title, Markup().join([*blocks, tables.html(DataTable(head, rows, align=align, caption=caption))]))


def _histograms(calibration: Calibration, scores: Mapping[str, NDArray[np.float64]], p: NDArray[np.float64]) -> Section:
    charts = []
    for name, values in scores.items():
        series = {f"held-out inliers ({calibration.size:,})": calibration.scores[name], f"input ({len(p):,})": values}
        marks = {"threshold": calibration.cut} if name == calibration.score else None
        charts.append(document.chart(figures.histogram(series, xlabel=name, marks=marks)))
    charts.append(p_value_chart(p))
    return Section("Scores", document.row(*charts), "Larger = more out-of-distribution.")
