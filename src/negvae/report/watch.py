"""The page about a stream that is being watched; it redraws itself without a script."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from markupsafe import Markup

from negvae.messages import counted
from negvae.report import document, figures, tables
from negvae.report.document import Section
from negvae.report.tables import DataTable
from negvae.runs.watch import Watch

PAGE = "index.html"
REFRESH = 5
"""Seconds after which a browser loads the page anew."""
LATEST_CHANGES = 8
"""The number of changes of the stream that are listed and marked."""


def write_page(out: Path, watched: Watch, *, ended: bool = False) -> None:
    """Write index.html of a watch's folder, whole or not at all.

    Args:
        out: The folder.
        watched: The watch.
        ended: Whether it is over; the page then says so and does not reload.
    """
    monitor = watched.monitor
    sections = [
        Section("Has the stream changed?", _course(watched), _answer(watched)),
        Section("Counts", _counts(watched)),
        Section(
            "Latest",
            _latest(watched),
            f"The last {counted(len(watched.latest), 'row')} with an alarm, the newest first.",
        ),
    ]
    when = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    state = "the watch has ended" if ended else f"this page loads itself anew every {REFRESH} s"
    title = f"{watched.source if watched.source != '-' else 'standard input'}: {monitor.seen:,} scored"
    html = document.page(title, sections, subtitle=f"{when}; {state}", refresh=0 if ended else REFRESH)
    document.write(out / PAGE, html)


def _counts(watched: Watch) -> Markup:
    monitor = watched.monitor
    calibration = monitor.calibration
    rule = calibration.describe()
    if monitor.window:
        wanted = (
            f"contamination {calibration.contamination:g}"
            if calibration.target_fpr is None
            else f"target FPR {calibration.target_fpr:g}"
        )
        rule = (
            f"{calibration.score}, {wanted}, by the latest {monitor.window:,} rows in place of the held-out inliers;"
            f" no rate is certified: {monitor.uncertified}"
        )
    expected = f"no rate is certified: {monitor.uncertified}"
    if not monitor.uncertified:
        bound = calibration.fpr_bounds()
        expected = f"at most {bound.high * monitor.seen:,.1f} with {bound.confidence:.0%} confidence"
    rows = [
        ("rows", f"{watched.rows:,}", ""),
        ("could not be scored", f"{watched.errors:,}", ""),
        ("called outliers", f"{monitor.outliers:,}", rule),
    ]
    if not monitor.window:
        alarms = f"{calibration.false_alarm_rate * monitor.seen:,.1f}"
        rows.append(("expected, were all of them inliers", alarms, expected))
    if monitor.online is not None:
        note = f"of which at most {monitor.fdr:.0%} are expected to be inliers"
        if not monitor.can_discover():
            note += "; its level is now below the smallest p-value there is, so that nothing more can be found"
        rows.append(("discoveries", f"{monitor.discoveries:,}", note))
    rows.append(("changes of the stream", f"{len(monitor.changes)}", ""))
    return tables.html(DataTable(["quantity", "count", "note"], rows, align="lrl"))


def _answer(watched: Watch) -> str:
    changes = watched.monitor.changes
    rate = watched.monitor.martingale.alarm_rate
    meaning = (
        f"The wealth of a test martingale reaches {1 / rate:g}, an alarm, with a probability of at most {rate:g} from"
        " one start to the next while images come from where the held-out inliers came from."
    )
    if not changes:
        return f"There is no sign of it so far. {meaning}"
    times = "once" if len(changes) == 1 else f"{len(changes):,} times"
    return f"Yes, {times}, the last time noticed after {counted(changes[-1], 'image')}. {meaning}"


def _course(watched: Watch) -> Markup:
    monitor = watched.monitor
    if not monitor.history:
        return Markup("<p>Nothing has been scored yet.</p>")
    seen, wealth = np.array(monitor.history, np.float64).T
    alarm = np.log10(1 / monitor.martingale.alarm_rate)
    series = {
        "wealth": (seen, np.log10(np.maximum(wealth, 1e-12))),
        "alarm": (seen, np.full(len(seen), alarm)),
    }
    if monitor.changes:
        at = np.array(monitor.changes[-LATEST_CHANGES:], np.float64)
        series["change noticed"] = (at, np.full(len(at), alarm))
    chart = document.chart(figures.lines(series, xlabel="images scored", ylabel="wealth, log10"))
    facts = {
        "wealth now": f"{monitor.martingale.wealth:.3g} (an alarm at {1 / monitor.martingale.alarm_rate:g})",
        "since the last start": counted(monitor.seen - (monitor.changes[-1] if monitor.changes else 0), "image"),
        "changes noticed after": ", ".join(f"{at:,}" for at in monitor.changes[-LATEST_CHANGES:]) or "none",
    }
    return document.row(chart, document.facts(facts))


def _latest(watched: Watch) -> Markup:
    name = watched.monitor.calibration.score
    if not watched.latest:
        return Markup("<p>No alarm so far.</p>")
    rows = [
        [
            row["path"] if row["index"] in (None, 0) else f"{row['path']} [{row['index']}]",
            f"{row[name]:.5g}",
            f"{row['p_value']:.3g}",
            "yes" if row["is_outlier"] else "",
            "yes" if row["discovery"] else "",
            "yes" if row["change"] else "",
        ]
        for row in reversed(watched.latest)
    ]
    return tables.html(DataTable(["file", name, "p-value", "outlier", "discovery", "change"], rows, align="lrrccc"))
