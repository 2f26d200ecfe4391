"""Run the tests of a module against each mutant that was drawn, and count those that no test notices.

Each mutant is put into a copy of the package, and its tests run in a process forked from this one, which has imported
the libraries already: of the module's tests those that run the changed statement, by a measurement of coverage, the
quickest first, until one fails. What becomes of it is written at once, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import beta

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "negvae"
DRAWN, JOURNAL = ROOT / "runs" / "mutants.json", ROOT / "runs" / "mutation.jsonl"
EXPLAINED = Path(__file__).parent / "explained.json"
LIBRARIES = ("torch", "torch._dynamo", "torch.nn.utils.parametrizations", "scipy.stats", "sklearn.linear_model",
             "sklearn.pipeline", "sklearn.preprocessing", "sklearn.mixture", "sklearn.neighbors", "sklearn.metrics",
             "PIL.Image", "pyarrow.parquet", "safetensors.torch", "yaml", "pytest", "beartype.door",
             "filelock", "rich.console", "typer", "coverage")  # fmt: skip
SECONDS = 200
"""Of CPU time, after which a mutant counts as killed: it does not end."""
ENDLESS = 3600.0

_SCORES = ("tests/scoring/test_scores.py", "tests/scoring/test_table.py", "tests/scoring/test_more_scores.py")
_NETWORKS = ("tests/model/test_paper.py", "tests/model/test_networks.py")
_SOURCES = ("tests/negatives/test_sources.py", "tests/test_parts.py")
TESTS: dict[str, tuple[str, ...]] = {
    "model/authors.py": ("tests/model/test_authors.py",),
    "model/initialization.py": _NETWORKS,
    "model/inputs.py": ("tests/model/test_inputs.py",),
    "model/likelihoods.py": ("tests/model/test_likelihoods.py", *_NETWORKS),
    "model/networks.py": (*_NETWORKS, "tests/records/test_version_0_1.py", "tests/test_parts.py"),
    "model/patches.py": ("tests/scoring/test_heatmaps.py", "tests/training/test_patches.py",
                         "tests/runs/test_patches.py"),
    "model/priors.py": ("tests/model/test_priors.py", "tests/model/test_paper.py", "tests/training/test_objectives.py"),
    "model/reparametrized.py": ("tests/model/test_authors.py",),
    "model/shifted.py": ("tests/model/test_shifted.py", "tests/training/test_shifted.py"),
    "model/shifts.py": ("tests/model/test_shifted.py", "tests/training/test_shifted.py"),
    "model/vae.py": ("tests/model/test_likelihoods.py", *_NETWORKS, "tests/training/test_objectives.py",
                     "tests/model/test_inputs.py"),
    "negatives/defects.py": ("tests/negatives/test_defects.py", "tests/negatives/test_recorded.py"),
    "negatives/notation.py": _SOURCES,
    "negatives/overlap.py": _SOURCES,
    "negatives/sources.py": (*_SOURCES, "tests/model/test_paper.py"),
    "negatives/transformations.py": (*_SOURCES, "tests/negatives/test_recorded.py"),
    "training/objectives.py": ("tests/training/test_objectives.py", "tests/model/test_paper.py"),
    "scoring/blocks.py": ("tests/scoring/test_blocks.py", "tests/fast/test_int8.py", *_SCORES),
    "scoring/calibration.py": ("tests/scoring/test_calibration.py", "tests/scoring/test_certificates.py",
                               "tests/scoring/test_groups.py", "tests/detector/test_guarantees.py"),
    "scoring/certificates.py": ("tests/scoring/test_certificates.py", "tests/scoring/test_calibration.py"),
    "scoring/columns.py": ("tests/scoring/test_columns.py",),
    "scoring/combination.py": ("tests/scoring/test_more_scores.py", "tests/scoring/test_table.py"),
    "scoring/comparison.py": _SCORES,
    "scoring/complexity.py": ("tests/scoring/test_more_scores.py",),
    "scoring/compute.py": (*_SCORES, "tests/scoring/test_extending.py", "tests/scoring/test_blocks.py"),
    "scoring/crossconformal.py": ("tests/scoring/test_weighted.py",),
    "scoring/dose.py": ("tests/scoring/test_dose.py", "tests/scoring/test_table.py"),
    "scoring/drift.py": ("tests/scoring/test_weighted.py",),
    "scoring/ensemble.py": ("tests/scoring/test_more_scores.py",),
    "scoring/groups.py": ("tests/scoring/test_groups.py", "tests/scoring/test_calibration.py"),
    "scoring/heatmaps.py": ("tests/scoring/test_heatmaps.py", "tests/training/test_patches.py"),
    "scoring/localization.py": ("tests/scoring/test_localization.py",),
    "scoring/martingale.py": ("tests/scoring/test_martingale.py",),
    "scoring/metrics.py": ("tests/scoring/test_metrics.py", "tests/scoring/test_table.py"),
    "scoring/monitor.py": ("tests/scoring/test_martingale.py", "tests/detector/test_guarantees.py"),
    "scoring/neighbors.py": ("tests/scoring/test_neighbors.py",),
    "scoring/once.py": ("tests/scoring/test_blocks.py", "tests/scoring/test_scores.py"),
    "scoring/passes.py": (*_SCORES, "tests/scoring/test_dose.py", "tests/training/test_shifted.py"),
    "scoring/patches.py": ("tests/scoring/test_heatmaps.py", "tests/runs/test_patches.py"),
    "scoring/quantization.py": ("tests/fast/test_int8.py", "tests/scoring/test_blocks.py"),
    "scoring/references.py": _SCORES,
    "scoring/regret.py": ("tests/scoring/test_more_scores.py",),
    "scoring/scorer.py": (*_SCORES, "tests/scoring/test_blocks.py", "tests/scoring/test_dose.py",
                          "tests/scoring/test_extending.py", "tests/scoring/test_neighbors.py",
                          "tests/fast/test_int8.py", "tests/scoring/test_tiles.py"),
    "scoring/scores.py": _SCORES,
    "scoring/table.py": (*_SCORES, "tests/scoring/test_extending.py"),
    "scoring/tiles.py": ("tests/scoring/test_tiles.py",),
    "scoring/transformations.py": ("tests/training/test_shifted.py", "tests/model/test_shifted.py"),
    "scoring/weighted.py": ("tests/scoring/test_weighted.py",),
}  # fmt: skip


class Copy:
    """A copy of the package, into which one mutant after another is put."""

    def __init__(self, place: Path) -> None:
        self.package = place / "negvae"
        shutil.copytree(PACKAGE, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        for path in self.package.rglob("*.py"):  # so that compiled files know one version of a file from another
            os.utime(path, (1e9, 1e9))
        self.changes = 0

    def put(self, file: str, text: str) -> None:
        """Write a file anew."""
        self.changes += 1
        (self.package / file).write_text(text)
        os.utime(self.package / file, (1e9 + 10 * self.changes,) * 2)

    def restore(self, file: str) -> None:
        """Write a file as it is in the package."""
        self.put(file, (PACKAGE / file).read_text())


@dataclass(frozen=True)
class Coverage:
    """What the tests of a file run of it.

    Attributes:
        seconds: how long each test takes, by its name.
        lines: the tests that run each line.
    """

    seconds: Mapping[str, float]
    lines: Mapping[int, list[str]]

    def tests_of(self, text: str, line: int) -> list[str]:
        """The tests that run the statement at a line of a file's text, the quickest first.

        What runs when the file is imported, which is once for all tests, is a matter of all of them.
        """
        tests = {test for number in statement(text, line) for test in self.lines.get(number, [])}
        if not in_function(text, line):
            tests = set(self.seconds)
        return sorted(tests & self.seconds.keys(), key=lambda test: self.seconds[test])


def statement(text: str, line: int) -> range:
    """The lines of the innermost statement at a line; of one that has others within, such as `if`, its first lines.

    >>> statement("if (a\\n    and b):\\n    c(\\n        1)", 4), statement("if (a\\n    and b):\\n    c()", 2)
    (range(3, 5), range(1, 3))
    """
    found = range(line, line + 1)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or line):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if isinstance(body, list) and body else node.end_lineno or line
            if line <= end or not isinstance(body, list):
                found = range(node.lineno, max(end, line) + 1)
    return found


def in_function(text: str, line: int) -> bool:
    """Whether a line is in the body of a function.

    >>> [in_function("x = 1\\ndef f(y=x):\\n    return y", line) for line in (1, 2, 3)]
    [False, False, True]
    """
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef))
    return any(node.body[0].lineno <= line <= (node.end_lineno or 0) for node in functions)


class Contexts:
    """A plugin of pytest that measures which test runs which line of a file, and how long each test takes."""

    def __init__(self, path: Path) -> None:
        from coverage import Coverage as Tracer

        self.tracer = Tracer(data_file=None, include=[str(path)], config_file=False)
        self.path, self.seconds = path, dict[str, float]()
        self.tracer.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Name the lines that run from here on after the test."""
        self.tracer.switch_context(item.nodeid)
        began = time.process_time()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = round(time.process_time() - began, 3)

    def write(self, to: Path) -> None:
        """Write what was measured as JSON."""
        self.tracer.stop()
        lines = self.tracer.get_data().contexts_by_lineno(str(self.path))
        to.write_text(json.dumps({"seconds": self.seconds, "lines": lines}))


class Chosen:
    """A plugin of pytest that runs certain tests alone, in their order."""

    def __init__(self, tests: list[str]) -> None:
        self.places = {test: place for place, test in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave the other tests out."""
        items[:] = sorted((item for item in items if item.nodeid in self.places), key=lambda i: self.places[i.nodeid])


def covered(copy: Copy, file: str) -> Coverage:
    """Run the tests of a file as it is, and measure what they run."""
    name = "negvae." + file.removesuffix(".py").replace("/", ".")
    example = f"tests/test_docstrings.py::test_examples_give_what_they_show[{name}]"
    to = copy.package.parent / "coverage.json"
    to.unlink(missing_ok=True)
    if forked(copy, [example, *TESTS[file]], lambda: Contexts(copy.package / file), to) != "survived":
        raise SystemExit(f"{file}: its tests fail without a mutant")
    found = json.loads(to.read_text())
    return Coverage(found["seconds"], {int(line): tests for line, tests in found["lines"].items()})


def examined(copy: Copy, tests: list[str]) -> str:
    """What tests say of the copy: "survived", "killed", or what else happened."""
    if not tests:
        return "survived"
    files = list(dict.fromkeys(test.split("::")[0] for test in tests))
    return forked(copy, files, lambda: Chosen(tests))


def forked(copy: Copy, tests: list[str], plugin: Callable[[], Any], to: Path | None = None) -> str:
    """Run tests in a process of their own, with a plugin that may write what it measured."""
    process = os.fork()
    if not process:
        _test(copy.package.parent, tests, plugin, to)
    end = time.monotonic() + ENDLESS
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return {0: "survived", 1: "killed", 2: "killed", 4: "killed"}.get(code, "killed" if code < 0 else "broken")
        time.sleep(0.02)
    os.kill(process, 9)
    os.waitpid(process, 0)
    return "killed"


def _test(place: Path, tests: list[str], plugin: Callable[[], Any], to: Path | None) -> None:
    """Run tests in this process, and end it."""
    code = 5
    try:
        nowhere = os.open(os.environ.get("MUTATION_LOG", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        seconds = SECONDS if to is None else 5 * SECONDS  # coverage is slow to measure
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        os.chdir(ROOT)
        sys.path.insert(0, str(place))
        sys.dont_write_bytecode = False
        quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what was imported before
        made = plugin()
        arguments = ["-x", "-q", "--timeout=0", "-p", "no:cacheprovider", *quiet, *tests]
        code = int(pytest.main(arguments, plugins=[made]))
        if to is not None:
            made.write(to)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        code = 2
    finally:
        os._exit(code)


def interval(killed: int, number: int) -> tuple[float, float]:
    """The exact 95% interval of a share (Clopper and Pearson)."""
    low = float(beta.ppf(0.025, killed, number - killed + 1)) if killed else 0.0
    high = float(beta.ppf(0.975, killed + 1, number - killed)) if killed < number else 1.0
    return low, high


def known_outcomes(journal: Path, again: bool) -> dict[str, str]:
    """What the journal holds, by mutant; with `again`, only those that were killed."""
    lines = journal.read_text().splitlines() if journal.exists() else []
    found = {entry["mutant"]: entry["outcome"] for entry in map(json.loads, lines)}
    return {name: outcome for name, outcome in found.items() if outcome == "killed" or not again}


def name_of(mutant: dict[str, Any]) -> str:
    """A mutant's name: its file and its change."""
    return " ".join([mutant["file"], *(line.replace("  ", "") for line in mutant["change"])])


def result(drawn: dict[str, Any], outcomes: dict[str, str]) -> dict[str, Any]:
    """The counts with their interval, and every mutant that was not killed with its explanation."""
    from negvae.version import source_commit

    explained = json.loads(EXPLAINED.read_text()) if EXPLAINED.exists() else {}
    tried = [mutant for mutant in drawn["drawn"] if name_of(mutant) in outcomes]
    alive = [mutant for mutant in tried if outcomes[name_of(mutant)] != "killed"]
    equivalent = [mutant for mutant in alive if explained.get(name_of(mutant), "").startswith("Equivalent")]
    killed, number = len(tried) - len(alive), len(tried)
    return {
        "made_by": "make mutation", "commit": source_commit(), "system": platform.platform(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        **{name: drawn[name] for name in ("tool", "seed", "subject", "places", "mutants")},
        "tried": number, "killed": killed, "share_killed": round(killed / max(number, 1), 4),
        "interval_95": [round(edge, 4) for edge in interval(killed, number)], "equivalent": len(equivalent),
        "share_killed_of_those_not_equivalent": round(killed / max(number - len(equivalent), 1), 4),
        "not_killed": [{"file": mutant["file"], "line": mutant["line"], "change": mutant["change"],
                        "outcome": outcomes[name_of(mutant)], "why": explained.get(name_of(mutant), "")}
                       for mutant in alive],
    }  # fmt: skip


def main() -> int:
    """Try the mutants that were drawn."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.mutation")
    parser.add_argument("--drawn", type=Path, default=DRAWN, help="the file of benchmarks/mutation/draw.py")
    parser.add_argument("--journal", type=Path, default=JOURNAL)
    parser.add_argument("--out", type=Path, help="a JSON file of the counts and of what was not killed")
    parser.add_argument("--again", action="store_true", help="try those that survived once more")
    parser.add_argument("--count", action="store_true", help="only count what is known")
    asked = parser.parse_args()
    drawn = json.loads(asked.drawn.read_text())
    outcomes = known_outcomes(asked.journal, asked.again)
    todo = [] if asked.count else [mutant for mutant in drawn["drawn"] if name_of(mutant) not in outcomes]
    if untested := sorted({mutant["file"] for mutant in todo} - TESTS.keys()):
        raise SystemExit(f"TESTS in {__file__} names no tests of {', '.join(untested)}: add them")
    if todo:
        for name in LIBRARIES:
            import_module(name)
        with tempfile.TemporaryDirectory(prefix="negvae-mutation-") as place:
            copy = Copy(Path(place))
            coverage: dict[str, Coverage] = {}
            for mutant in todo:
                file = mutant["file"]
                if file not in coverage:
                    coverage[file] = covered(copy, file)
                tests = coverage[file].tests_of((PACKAGE / file).read_text(), mutant["line"])
                copy.put(file, mutant["text"])
                outcomes[name_of(mutant)] = outcome = examined(copy, tests)
                copy.restore(file)
                with asked.journal.open("a") as journal:
                    journal.write(json.dumps({"mutant": name_of(mutant), "outcome": outcome}) + "\n")
                print(f"{outcome}: {name_of(mutant)}", flush=True)
    found = result(drawn, outcomes)
    print(f"{found['tried']} mutants tried, {found['killed']} killed: {found['share_killed']:.1%}"
          f" (95%: {found['interval_95'][0]:.1%} to {found['interval_95'][1]:.1%})")  # fmt: skip
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if any(not entry["why"] for entry in found["not_killed"]) else 0


if __name__ == "__main__":
    sys.exit(main())
