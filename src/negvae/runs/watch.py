"""Watch a folder that images arrive in, or a pipe of their paths: score new images, and report changes of the stream.

Everything is in one folder: rows.jsonl, a line for each image; state.json, what is needed to continue; metrics.prom,
the counts in the text format of Prometheus. The state is replaced as a whole after the rows that it counts are on the
disk, and records the length of the file of rows at that time: a run that was killed continues from there, and rows
written after that point are written again. So each image is counted once, whenever the process was killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from negvae.data.batches import Batch, InputSpec
from negvae.data.embedding import Encoder
from negvae.data.formats import MAX_PIXELS
from negvae.data.formats.quiet import without_pillows_warnings
from negvae.data.spans import Span, spans
from negvae.data.stores import is_uri
from negvae.data.streams import read
from negvae.device import own_state
from negvae.files import from_json, is_temporary, locked, write_text
from negvae.messages import Log, counted, first_line, shown, silent
from negvae.runs.artifact import load_artifact
from negvae.runs.embed import embedded, encoder_of, spec_of
from negvae.runs.groups import Label, labeled, labeling
from negvae.runs.score import scores_of
from negvae.scoring.calibration import Calibration
from negvae.scoring.monitor import Monitor
from negvae.scoring.scorer import Scorer

ROWS, STATE, METRICS, LOCK = "rows.jsonl", "state.json", "metrics.prom", ".lock"
PIPE = "-"
TURN = 256
"""Maximum number of files scored between two commits."""
LATEST = 20
Place = tuple[str, int]
"""A file, and the time of its last change (in nanoseconds)."""


@dataclass
class Watch:
    """A stream that is being watched.

    Attributes:
        directory: folder of the run.
        source: path of the watched folder, or `PIPE`.
        monitor: statistics of the stream.
        rows: number of rows so far.
        errors: number of rows that could not be scored.
        latest: the latest rows that were outliers, discoveries or changes of the stream.
        groups: what names the group of each row, as `watch` takes it; None for no groups.
        resize: whether images of another size are resized.
        label: function that names the group of each row; None if no group is known.
    """

    directory: Path
    source: str
    monitor: Monitor
    rows: int = 0
    errors: int = 0
    latest: list[dict[str, Any]] = field(default_factory=list)
    groups: str | None = None
    resize: bool = False
    label: Label | None = None

    def options(self) -> dict[str, Any]:
        """Return the options that all rows of a watch have in common."""
        monitor = self.monitor
        of_monitor = {"alarm_rate": monitor.martingale.alarm_rate, "fdr": monitor.fdr, "window": monitor.window}
        return {**of_monitor, "groups": self.groups, "resize": self.resize}

    def describe(self) -> str:
        """Describe the counts in one line."""
        monitor = self.monitor
        discoveries = counted(monitor.discoveries, "discovery", "discoveries")
        found = f", {discoveries}" if monitor.online is not None else ""
        changes = f"{counted(len(monitor.changes), 'change')} of the stream"
        outliers, errors = counted(monitor.outliers, "outlier"), counted(self.errors, "error")
        return f"{monitor.seen:,} scored, {outliers}{found}, {changes}, {errors}"


@own_state()
def watch(
    directory: Path,
    source: str,
    out: Path,
    *,
    score: str | None = None,
    target_fpr: float | None = None,
    confidence: float | None = None,
    alarm_rate: float = 0.01,
    fdr: float | None = None,
    window: int = 0,
    groups: str | None = None,
    interval: float = 2.0,
    settle: float = 1.0,
    once: bool = False,
    resize: bool = False,
    max_pixels: int = MAX_PIXELS,
    embed: Path | str | None = None,
    device: str = "auto",
    on_update: Callable[[Watch], None] = lambda watched: None,
    should_stop: Callable[[], bool] = lambda: False,
    log: Log = silent,
) -> Watch:
    """Score images as they arrive, until asked to stop.

    Args:
        directory: folder of the run of a calibrated model.
        source: folder to watch, with all folders below it; or "-" to read a path per line from standard input, to its
            end.
        out: folder for rows, state and metrics; if it holds a state, the watch continues from there.
        score: another of the calibrated scores to decide by; None for the calibration's.
        target_fpr: another false-positive rate for the threshold; None for the calibration's rule.
        confidence: confidence with which the rate holds; None for the calibration's, or, with `target_fpr`, for a rate
            that holds on average.
        alarm_rate: probability of a false alarm about a change of the stream (see
            `negvae.scoring.monitor.Monitor.start`).
        fdr: false-discovery rate of the online procedure LOND; None to not run it.
        window: number of latest scores to take p-values and threshold from; 0 for the held-out scores.
        groups: "folders" decides by the group that a folder above each file is named after, and any other text by the
            group in this column of CSV and Parquet files; None for no groups.
        interval: time between two looks at the folder, in seconds.
        settle: time that a file must have been unchanged before it is read, in seconds, so that none is read
            half-written.
        once: whether to stop when all files that are there have been scored.
        resize: whether to resize images of another size; otherwise they are errors.
        max_pixels: maximum number of pixels that an encoded image may declare.
        embed: present path of the encoder that the model was trained with; None for the path at the time of training.
        device: device to compute on: "auto", "cpu", "cuda" or "cuda:N".
        on_update: called with the watch at its beginning and after every commit.
        should_stop: called between turns of at most `TURN` files; returns True to stop.
        log: called with each line that the user should see.

    Returns:
        The watch at its end.

    Raises:
        FileNotFoundError: if the model or the folder to watch does not exist.
        ValueError: if an option is invalid, the model is not calibrated, or `out` belongs to another watch or is in
            use.
    """
    if not interval > 0:  # so that NaN is refused
        raise ValueError(f"interval is {interval:g}: it must be above 0 seconds")
    if not settle >= 0:
        raise ValueError(f"settle is {settle:g}: it must be 0 seconds or more")
    if not source:  # as from a variable of a shell that is not set
        raise ValueError("the folder to watch has an empty name; a path of - reads paths from standard input")
    if is_uri(source):
        raise ValueError(f"{source}: a folder of this machine is watched, not a URI: give its path")
    if source != PIPE and not Path(source).is_dir():
        raise FileNotFoundError(f"{source}: no such folder to watch; a path of - reads paths from standard input")
    artifact = load_artifact(directory, device)
    calibration = artifact.calibrated().decide_by(score, target_fpr, confidence)
    if groups is not None and (not calibration.groups or window):
        raise ValueError("groups take a calibration with groups (`negvae calibrate --groups folders`) and no window")
    scorer, encoder = artifact.scorer(), encoder_of(artifact, embed)
    wanted = spec_of(artifact, encoder, resize, max_pixels)
    # Refuses options before a folder is made.
    monitor = Monitor.start(calibration, alarm_rate=alarm_rate, fdr=fdr, window=window)
    label = None if groups is None else labeling(groups, calibration.thresholds)
    new = Watch(directory, source, monitor, groups=groups, resize=resize, label=label)
    _make_folder(out)  # before the lock, which would stay in a folder that is not a watch's
    with locked(out / LOCK) as mine:
        if not mine:
            raise ValueError(f"{out} is in use by another watch: take another folder")
        watched, known = _begin(new, out)
        log(f"outliers: {calibration.describe()}")
        if known:
            log(f"going on after {counted(watched.rows, 'row')}")
        arrivals = _piped if source == PIPE else _arrivals(Path(source), out, interval, settle, once, wanted, log)
        with (out / ROWS).open("ab") as rows:
            _commit(out, watched, rows, calibration)  # before the first row: what follows can always be cut off
            on_update(watched)
            for places in arrivals(known, should_stop):
                known.difference_update(_turn(places, wanted, scorer, encoder, watched, rows, log))
                _commit(out, watched, rows, calibration)
                on_update(watched)
    return watched


# --- one turn -----


def _turn(
    places: list[Place],
    wanted: InputSpec,
    scorer: Scorer,
    encoder: Encoder | None,
    watched: Watch,
    rows: IO[bytes],
    log: Log,
) -> set[Place]:
    """Score some files, write their rows, and return those that have none, since they could no longer be read."""
    changed, again = dict(places), set[Place]()
    with without_pillows_warnings():
        for batch in read([Span(path) for path, _ in places], wanted):
            lost = set() if watched.source == PIPE else _lost(batch, changed)
            again.update(_named((path, changed[path])) for path in lost)
            for row in _rows(batch, scorer, encoder, watched, lost):
                row["mtime_ns"] = changed.get(row["path"], 0)
                row |= {name: row[name] and shown(row[name]) for name in ("path", "error")}
                rows.write((json.dumps(row, ensure_ascii=True) + "\n").encode())
                if row["change"]:
                    log(f"the stream has changed: after {row['seen']:,} inputs, at {row['path']}")
                if row["is_outlier"] or row["discovery"] or row["change"]:
                    watched.latest = [*watched.latest, row][-LATEST:]
    return again


def _lost(batch: Batch, changed: dict[str, int]) -> set[str]:
    """Return the files of a batch that were taken away, replaced or made unreadable before anything was read of them.

    Their error says nothing about their content, which another look at the folder may find.
    """
    failed = {path for path, number, error in zip(batch.paths, batch.indices, batch.errors, strict=True)
              if error and number == 0}  # fmt: skip
    read_in_part = {path for path, error in zip(batch.paths, batch.errors, strict=True) if not error}
    return {path for path in (failed - read_in_part) & changed.keys() if _problem((path, changed[path])) is not None}


def _rows(
    batch: Batch, scorer: Scorer, encoder: Encoder | None, watched: Watch, lost: set[str]
) -> Iterator[dict[str, Any]]:
    batch = labeled(embedded(batch, encoder), watched.label)
    name = watched.monitor.calibration.score
    good = batch.good().tolist()
    groups = None
    if watched.label is not None:  # before the scores: files may change meanwhile
        groups = watched.label([batch.paths[row] for row in good], [batch.indices[row] for row in good])
    scores: NDArray[Any] = np.empty(0)
    if good:
        rule = watched.monitor.calibration.tiles
        scores = scores_of(scorer, batch, batch.good(), [name], rule)[name]
    judged = watched.monitor.update(scores, groups)
    place = {index: at for at, index in enumerate(good)}
    for index, (path, number, error) in enumerate(zip(batch.paths, batch.indices, batch.errors, strict=True)):
        if path in lost:
            continue
        watched.rows += 1
        row: dict[str, Any] = {"path": path, "index": number, name: None, "p_value": None, "is_outlier": None}
        row |= {"discovery": None, "wealth": None, "change": None, "seen": None, "error": error or None}
        if error:
            watched.errors += 1
        else:
            at = place[index]
            row |= {name: float(scores[at]), "p_value": float(judged.p_values[at])}
            row |= {"is_outlier": bool(judged.outliers[at]), "discovery": bool(judged.discoveries[at])}
            row |= {"wealth": float(judged.wealth[at]), "change": at in judged.changes, "seen": judged.seen + at + 1}
        yield row


# --- keeping -----


def _is_beginning(path: Path) -> bool:
    """Return whether a file may be what a watch left that was killed before its first state was written."""
    return path.name == LOCK or is_temporary(path.name) or (path.name == ROWS and not path.stat().st_size)


def _make_folder(out: Path) -> None:
    """Make the folder of a watch; refuse one that holds something, and no state of a watch."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: --out takes a folder")
    out.mkdir(parents=True, exist_ok=True)
    if not (out / STATE).exists() and any(not _is_beginning(each) for each in out.iterdir()):
        raise ValueError(f"{out} is not empty, and holds no {STATE} to go on from: take a new folder")


def _begin(new: Watch, out: Path) -> tuple[Watch, set[Place]]:
    """Return the new watch, or the one whose state is in the folder, and the files that it has already scored."""
    path, source, calibration = out / STATE, new.source, new.monitor.calibration
    if not path.exists():
        return new, set()
    try:
        state = _state(path)
        kept, length = state["options"], state["length"]
        if state["calibration"] != _fingerprint(calibration):
            raise ValueError(f"{out} watches with another model, calibration or rate: take another folder")
        if state.get("source", where := _where(source)) != where:  # which earlier versions did not keep
            raise ValueError(f"{out} watches {state['source'][0]}: name it in the same way, or take another folder")
        for name, value in new.options().items():
            if kept.get(name, value) != value:  # earlier versions kept neither groups nor resize
                raise ValueError(f"{out} was started with {name} {kept[name]}, not {value}: take another folder")
        watched = replace(new, monitor=_restored(calibration, state["monitor"], path))
        watched.rows, watched.errors, watched.latest = state["rows"], state["errors"], state["latest"]
        _check_counts(watched, length)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({_line(error)}); take another folder") from None
    if not (out / ROWS).is_file() or (out / ROWS).stat().st_size < length:
        raise ValueError(f"{out / ROWS}: rows that {STATE} counts are missing; take another folder")
    os.truncate(out / ROWS, length)
    return watched, _known(out / ROWS)


def _state(path: Path) -> dict[str, Any]:
    try:
        return dict(from_json(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({_line(error)}); take another folder") from None


def _restored(calibration: Calibration, state: dict[str, Any], path: Path) -> Monitor:
    try:
        return Monitor.restore(calibration, state)
    except ValueError as error:
        raise ValueError(f"{path}: {_line(error)}; take another folder") from None


def _known(path: Path) -> set[Place]:
    """Return the files that a file of rows holds."""
    known = set()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = from_json(line)
                known.add(_named((str(row["path"]), int(row["mtime_ns"]))))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}: line {number} is damaged ({_line(error)}); take another folder") from None
    return known


def _check_counts(watched: Watch, length: int) -> None:
    """Refuse counts that are none; the message says what they are."""
    for value in (length, watched.rows, watched.errors):
        if not isinstance(value, int) or value < 0:
            raise TypeError(f"{value!r} is no count")
    if not isinstance(watched.latest, list) or not all(isinstance(row, dict) for row in watched.latest):
        raise TypeError("the latest rows are no list of rows")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _commit(out: Path, watched: Watch, rows: IO[bytes], calibration: Calibration) -> None:
    """Write the rows to the disk, and then the state that counts them."""
    rows.flush()
    os.fsync(rows.fileno())
    state = {
        "calibration": _fingerprint(calibration),
        "source": _where(watched.source),
        "options": watched.options(),
        "length": rows.tell(),
        "rows": watched.rows,
        "errors": watched.errors,
        "latest": watched.latest,
        "monitor": watched.monitor.state(),
    }
    write_text(out / STATE, json.dumps(state))
    write_text(out / METRICS, prometheus(watched))


def _where(source: str) -> list[str]:
    """Return the source of a watch as it was named, by which its files are known, and as it is found from anywhere."""
    return [source, source if source == PIPE else os.path.realpath(source)]


def _fingerprint(calibration: Calibration) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(calibration.scores[calibration.score]).tobytes())
    digest.update(
        json.dumps([calibration.score, calibration.threshold, sorted(calibration.thresholds.items())]).encode()
    )
    return digest.hexdigest()


def prometheus(watched: Watch) -> str:
    """Return the counts in the text format of Prometheus, for its node exporter's textfile collector or any scraper."""
    monitor = watched.monitor
    label = f"{{model={_quoted(str(watched.directory))},source={_quoted(watched.source)}}}"
    metrics: list[tuple[str, str, str, float]] = [
        ("negvae_rows_total", "counter", "Rows seen.", watched.rows),
        ("negvae_errors_total", "counter", "Rows that could not be scored.", watched.errors),
        ("negvae_outliers_total", "counter", "Rows called outliers.", monitor.outliers),
        ("negvae_discoveries_total", "counter", "Discoveries of online FDR control.", monitor.discoveries),
        ("negvae_changes_total", "counter", "Alarms of the test martingale.", len(monitor.changes)),
        ("negvae_martingale_wealth", "gauge", "Wealth of the test martingale.", monitor.martingale.wealth),
        ("negvae_martingale_alarm_wealth", "gauge", "Wealth that is an alarm.", 1 / monitor.martingale.alarm_rate),
    ]
    if not monitor.uncertified:
        bound = monitor.calibration.fpr_bounds().high
        metrics.append(("negvae_false_alarm_bound", "gauge", "95% upper bound on the rate of false alarms.", bound))
    lines = []
    for name, kind, text, value in metrics:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name}{label} {value:.17g}"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    escaped = shown(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


# --- what arrives -----

Arrivals = Callable[[set[Place], Callable[[], bool]], Iterator[list[Place]]]


def _arrivals(
    folder: Path, out: Path, interval: float, settle: float, once: bool, wanted: InputSpec, log: Log
) -> Arrivals:
    """Return a function that yields new files of a folder, oldest first, at most `TURN` at a time.

    A file that cannot be read is left for a later look, after one line in the log.
    """

    def arrivals(known: set[Place], should_stop: Callable[[], bool]) -> Iterator[list[Place]]:
        own = out.resolve()
        unreadable = set[Place]()
        while not should_stop():
            now = time.time_ns()
            found = [place for place in _places(folder, own, wanted.features) if _named(place) not in known]
            # A file from the future is one that a clock elsewhere dates.
            ready = [place for place in found if not 0 <= now - place[1] < settle * 1e9]
            ready.sort(key=lambda place: (place[1], place[0]))
            for start in range(0, len(ready), TURN):
                # The folder was listed before the earlier turns, which may have taken hours.
                problems = {place: _problem(place) for place in ready[start : start + TURN]}
                for place in [place for place, problem in problems.items() if problem and place not in unreadable]:
                    log(f"{shown(place[0])}: {problems[place]}; it is left until it can be read")
                    unreadable.add(place)
                if turn := [place for place, problem in problems.items() if problem is None]:
                    known.update(map(_named, turn))
                    yield turn
                if should_stop():
                    return
            waiting = [place for place in found if _named(place) not in known and place not in unreadable]
            if once and not waiting:
                return
            _wait(interval if ready or not once else min(interval, settle or interval), should_stop)

    return arrivals


def _places(folder: Path, own: Path, features: bool) -> Iterable[Place]:
    """List the files below a folder that may hold images or rows, except those that the watch writes itself."""
    for span in spans([os.path.join(folder, "")], features=features):  # never the data set of this name
        path = Path(span.path)
        try:
            if own != folder.resolve() and own in Path(os.path.realpath(path)).parents:
                continue
            yield span.path, path.stat().st_mtime_ns
        except OSError:  # it has gone again
            continue


def _piped(known: set[Place], should_stop: Callable[[], bool]) -> Iterator[list[Place]]:
    """Read paths from standard input, as many at a time as are available."""
    lines: queue.Queue[str | None] = queue.Queue(4 * TURN)

    def pump() -> None:
        with suppress(OSError):  # a terminal that has gone has no further lines
            for line in _standard_input():
                lines.put(line.rstrip("\r\n"))
        lines.put(None)

    threading.Thread(target=pump, daemon=True).start()
    ended = False
    while not ended and not should_stop():
        turn: list[Place] = []
        while len(turn) < TURN and not ended:
            try:
                line = lines.get(timeout=0.1) if not turn else lines.get_nowait()
            except queue.Empty:
                break
            ended = line is None
            if line:
                place = _place(line)
                if _named(place) not in known:
                    known.add(_named(place))
                    turn.append(place)
        if turn:
            yield turn


def _standard_input() -> Iterator[str]:
    """Yield the lines of standard input, if there is one.

    Names of files are bytes; standard input as text would end at one that is not UTF-8. It is read past Python's own
    reader, in which no thread may be waiting when Python exits: that is a fatal error.
    """
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, OSError):  # closed by the caller, or replaced by text in memory
        source = getattr(sys.stdin, "buffer", sys.stdin) or ()
        yield from (line if isinstance(line, str) else os.fsdecode(line) for line in source)
        return
    with open(descriptor, "rb", closefd=False) as file:
        yield from map(os.fsdecode, file)


def _named(place: Place) -> Place:
    """Return a file by the name that rows have for it, in which bytes that are not UTF-8 are codes."""
    return shown(place[0]), place[1]


def _problem(place: Place) -> str | None:
    """Return why a file cannot be read as it was found: "" if it has changed or gone; None if it can."""
    try:
        if Path(place[0]).stat().st_mtime_ns != place[1]:
            return ""
        with open(place[0], "rb") as file:
            file.read(1)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        return f"cannot be read ({first_line(error)})"
    return None


def _place(path: str) -> Place:
    try:
        return path, Path(path).stat().st_mtime_ns
    except (OSError, ValueError):  # reading it gives a row with the error, as of the names that find -print0 joins
        return path, 0


def _wait(seconds: float, should_stop: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while not should_stop() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.2))


@contextmanager
def refreshing(write: Callable[[Watch], None], seconds: float) -> Iterator[Callable[[Watch | None], None]]:
    """Provide a callback that writes at once, then at most every `seconds` seconds, and once more at the end.

    Called with None, while nothing arrives, it writes what it could not write when it came.
    """
    last, pending = -np.inf, list[Watch]()

    def update(watched: Watch | None) -> None:
        nonlocal last
        if watched is not None:
            pending[:] = [watched]
        if pending and time.monotonic() - last >= seconds:
            write(pending.pop())
            last = time.monotonic()

    try:
        yield update
    finally:
        if pending:
            write(pending[0])
