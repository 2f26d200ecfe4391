"""The whole bench: measure the rows, save the results, print the tables."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.bench.report import BEGIN, END, markdown, operator_table, rich_table
from benchmarks.bench.rounds import Subject, SubjectError, Worker, interleave, spread
from benchmarks.bench.rows import OURS, ROOFLINE, PeerComparison, Place, Row, UnavailableError, rows
from negvae.config import preset
from negvae.files import write_text
from negvae.registry import choose
from negvae.report.tables import replace_table
from negvae.runs.provenance import provenance

ROUNDS, SECONDS = 7, 0.8
QUICK_ROUNDS, QUICK_SECONDS, QUICK_ROWS_ON_DISK = 2, 0.2, (20_000, 5_000)


def run_bench(
    out: Path,
    *,
    quick: bool = False,
    only: Sequence[str] = (),
    profile: Sequence[str] = (),
    device: str = "all",
    pythons: Mapping[str, Path] | None = None,
    table: Path | None = None,
    resume: bool = False,
    console: Console,
) -> bool:
    """Measure all rows that are asked for, and report.

    Args:
        out: folder for the results' JSON file, which is named after the day and the machine.
        quick: whether to measure fewer and shorter rounds, to see that everything runs.
        only: keys of the rows to measure; all rows if empty.
        profile: keys of the rows to measure and profile; rows that miss a target are profiled in any case.
        device: device to train on: "cpu", "cuda", or "all" that this machine has.
        pythons: interpreter of each peer, by the peer's name ("pythae", "pyod").
        table: Markdown file whose table is replaced; None to replace none.
        resume: whether to keep the rows that the results' file of today already has, each with the commit that it was
            measured at.
        console: console to print to.

    Returns:
        Whether every subject that this machine has did its work.

    Raises:
        ValueError: if a row or device is unknown, or a table would be incomplete.
        FileNotFoundError: if an interpreter or the table's file does not exist.
    """
    if table is not None and (quick or only or profile):
        raise ValueError("--table takes a full run: leave out --quick, --only and --profile")
    for name, python in (pythons or {}).items():
        if not python.is_file():
            raise FileNotFoundError(f"--{name} {python}: there is no such interpreter")
    devices = _devices(device)
    results: dict[str, Any] = {
        "provenance": _origin(devices),
        "quick": quick,
        "rounds": QUICK_ROUNDS if quick else ROUNDS,
        "seconds": QUICK_SECONDS if quick else SECONDS,
        "rows": [],
    }
    load = results["provenance"]["load"]
    if load > 0.3:
        console.print(f"the machine is not idle (load average {load:.2f}): expect a wide spread", highlight=False)
    interpreters = {
        "textbook": Path(sys.executable),
        **{name: path.absolute() for name, path in (pythons or {}).items()},
    }
    path = out / f"{datetime.now(UTC):%Y-%m-%d}-{_machine(results['provenance'])}.json"
    if resume:
        results = _resumed(path, results)
    well = True
    with tempfile.TemporaryDirectory(prefix="negvae-bench-") as folder:
        place = Place(Path(folder), results["rounds"], results["seconds"], interpreters)
        if quick:
            place = Place(place.folder, place.rounds, place.seconds, interpreters, QUICK_ROWS_ON_DISK)
        plan = rows(place, devices)
        wanted, order = [*only, *profile], {row.key: place for place, row in enumerate(plan)}
        for key in wanted:
            choose("row", key, [row.key for row in plan])
        out.mkdir(parents=True, exist_ok=True)
        for row in plan:
            if (wanted and row.key not in wanted) or row.key in {done["key"] for done in results["rows"]}:
                continue
            result, good = measure(row, place.rounds, profile=row.key in profile)
            well = well and good
            results["rows"].append(result)
            results["rows"].sort(key=lambda each: order.get(each["key"], len(order)))
            write_text(path, json.dumps(results, indent=1) + "\n")
            console.print(f"measured: {row.key}", highlight=False)
    console.print(rich_table(results["rows"]))
    for result in results["rows"]:
        if result["operators"]:
            console.print(operator_table(result))
    if table is not None:
        replace_table(table, BEGIN, END, markdown(results))
    console.print(f"written: {path}", highlight=False, soft_wrap=True)
    return well


def _resumed(path: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """Return the results of an earlier part of this run, or the fresh ones if there is none.

    Rows of another commit note it. Those in which one of our subjects failed are left out, to be measured again.

    Raises:
        ValueError: if the file was measured otherwise.
    """
    if not path.exists():
        return fresh
    earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for name in ("rounds", "seconds", "quick"):
        if earlier[name] != fresh[name]:
            raise ValueError(f"{path} was measured with {name} {earlier[name]}, not {fresh[name]}: start anew")
    rows = []
    for row in earlier["rows"]:
        commit = row.pop("commit", earlier["provenance"]["commit"])
        if OURS not in row["absent"]:
            rows.append(row if commit == fresh["provenance"]["commit"] else {**row, "commit": commit})
    return {**fresh, "rows": rows}


def measure(row: Row, rounds: int, *, profile: bool = False) -> tuple[dict[str, Any], bool]:
    """Measure one row.

    Args:
        row: row to measure.
        rounds: number of rounds of each subject.
        profile: whether to profile our subject in any case, and not only if it misses a target.

    Returns:
        The row's result as plain values, and whether all its subjects that this machine has did their work.
    """
    subjects: dict[str, Subject] = {}
    absent: dict[str, str] = {}
    values: dict[str, list[float]] = {}
    operators: list[dict[str, Any]] = []
    well = True
    try:
        for name, start in row.subjects.items():
            try:
                subjects[name] = start()
            except SubjectError as error:
                absent[name] = str(error)
                well = well and isinstance(error, UnavailableError)
                if name == OURS:
                    break
        if OURS in subjects:
            try:
                values = interleave(subjects, rounds)
                values |= row.after(subjects)
            except SubjectError as error:
                absent[OURS], well = str(error), False
        comparisons = [_compare(row, item, values, absent, subjects) for item in row.comparisons]
        ours = subjects.get(OURS)
        if isinstance(ours, Worker) and values and (profile or any(c["reached"] is False for c in comparisons)):
            operators = ours.profile()
    finally:
        for subject in subjects.values():
            subject.close()
    return {
        "key": row.key, "work": row.work, "unit": row.unit, "device": row.device,
        "subjects": {
            name: {"rounds": rates, **(subjects[name].facts if name in subjects else {})}
            for name, rates in values.items()
        },
        "absent": absent, "comparisons": comparisons, "operators": operators,
    }, well  # fmt: skip


def _compare(
    row: Row,
    item: PeerComparison,
    values: Mapping[str, list[float]],
    absent: Mapping[str, str],
    subjects: Mapping[str, Subject],
) -> dict[str, Any]:
    """Return one comparison as plain values; if a subject was not measured, `figure` is None, with the reason."""
    result: dict[str, Any] = {
        "ours": item.ours, "other": item.other, "label": item.other, "target": item.target, "at_most": item.at_most,
        "figure": None, "reached": None,
    }  # fmt: skip
    missing = [name for name in (item.ours, item.other) if name is not None and name not in values]
    if missing:
        return {**result, "reason": next((absent[name] for name in (*missing, OURS) if name in absent), "it failed")}
    figure = spread(item.figures(values))
    result |= {"figure": figure.median, "low": figure.low, "high": figure.high}
    result |= {"reached": item.reached(figure.median), "ours_value": spread(values[item.ours]).median}
    if item.other is not None:
        facts = subjects[item.other].facts if item.other in subjects else {}
        result["other_value"] = spread(values[item.other]).median / item.work
        result["label"] = facts.get("peer", item.other)
        if item.other == ROOFLINE:
            rate = 2e-9 * spread(values[item.other]).median
            result["label"] = f"{facts['precision']} {facts['matrix']} products at {rate:,.0f} GFLOP/s"
    return result


def _devices(name: str) -> tuple[str, ...]:
    here = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    if name == "all":
        return here
    choose("device", name, ("all", "cpu", "cuda"))
    if name not in here:
        raise ValueError(f"device {name} is not here: use cpu")
    return (name,)


def _origin(devices: Sequence[str]) -> dict[str, Any]:
    origin = {key: value for key, value in provenance(preset("gray", "-", device="cpu")).items() if key != "seed"}
    if "cuda" in devices:
        origin["gpu"] = torch.cuda.get_device_name()
    return {**origin, "cores": os.cpu_count(), "load": os.getloadavg()[0]}


def _machine(origin: Mapping[str, Any]) -> str:
    """Return a short name of the machine for a file: its processor, cores and GPU."""
    processor = str(origin["device"]).rpartition(" (")[0]
    text = f"{processor} {origin['cores']} cores {origin.get('gpu', '')}"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
