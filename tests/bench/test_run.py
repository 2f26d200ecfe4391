"""From rows to results, tables and pages."""

import json
import sys

import pytest
from benchmarks.bench import __main__ as command
from benchmarks.bench import rounds, run
from benchmarks.bench import rows as run_rows
from benchmarks.bench.report import BEGIN, END, lines, markdown
from benchmarks.bench.rounds import SubjectError
from benchmarks.bench.rows import OURS, PeerComparison, Place, Row, UnavailableError, rows
from benchmarks.bench.run import measure, run_bench
from rich.console import Console

from negvae.report.tables import replace_table


class Fixed:
    """A subject whose rounds are known."""

    def __init__(self, *values, **facts):
        self.values, self.facts, self.closed = list(values), facts, False

    def round(self):
        return self.values.pop(0)

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(rounds, "PAUSE", 0.0)


def absent(error):
    def start():
        raise error

    return start


def row(subjects, *comparisons, **fields):
    return Row("key", "some `work`", "images/s", "cpu", subjects, comparisons, **fields)


def test_figures():
    values = {OURS: [10.0, 30.0], "peer": [5.0, 10.0], "roofline": [100.0, 100.0]}
    assert PeerComparison("peer").figures(values) == [2, 3]
    assert PeerComparison("roofline", work=5).figures(values) == [0.5, 1.5]
    assert PeerComparison("peer", inverse=True).figures(values) == [0.5, 1 / 3]
    assert PeerComparison(None).figures(values) == [10, 30]
    assert PeerComparison(None, ours="peer").figures(values) == [5, 10]
    assert [PeerComparison("peer", 2.0).reached(x) for x in (1.9, 2.0)] == [False, True]
    assert [PeerComparison("peer", 2.0, at_most=True).reached(x) for x in (2.0, 2.1)] == [True, False]
    assert PeerComparison("peer").reached(1.0) is None


def test_measured_row():
    ours, peer = Fixed(10.0, 20.0, 60.0), Fixed(10.0, 10.0, 10.0, peer="Peer 1.0")
    result, well = measure(
        row(
            {OURS: lambda: ours, "peer": lambda: peer},
            PeerComparison("peer", 2.5),
            PeerComparison(None, 25.0, at_most=True),
            PeerComparison("size", 1.0, ours="size"),
            after=lambda subjects: {"size": [float(len(subjects))]},
        ),
        3,
    )
    assert well
    assert ours.closed
    assert peer.closed
    # The ratio is taken within each round; its median is not the ratio of the medians' rounds apart.
    assert result["subjects"][OURS]["rounds"] == [10, 20, 60]
    first, second, third = result["comparisons"]
    assert (first["figure"], first["low"], first["high"], first["reached"]) == (2, 1.5, 4, False)
    assert (second["figure"], second["reached"], third["figure"]) == (20, True, 1)
    assert lines([result])[:2] == [
        ("some `work`", "20 images/s", "Peer 1.0: 10 images/s", "2 [1.5, 4]", "at least 2.5", "**no**"),
        ("some `work`", "20 images/s", "", "20 [15, 40] images/s", "at most 25 images/s", "yes"),
    ]


def test_what_is_not_here_is_said():
    peer = PeerComparison("peer", 2.0)
    result, well = measure(row({OURS: lambda: Fixed(1.0), "peer": absent(UnavailableError("none given"))}, peer), 1)
    assert well
    assert lines([result]) == [("some `work`", "", "peer", "not measured: none given", "at least 2", "")]
    result, well = measure(row({OURS: absent(SubjectError("it broke")), "peer": lambda: Fixed(1.0)}, peer), 1)
    assert not well
    assert lines([result])[0][3] == "not measured: it broke"


def test_page_keeps_what_people_wrote(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    replace_table(page, BEGIN, END, "| new |")
    assert page.read_text() == f"before\n{BEGIN}\n\n| new |\n{END}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="has no place for the table"):
        replace_table(page, BEGIN, END, "")
    with pytest.raises(FileNotFoundError, match="page2"):
        replace_table(tmp_path / "page2.md", BEGIN, END, "")


def test_rows_are_complete_and_devices_named(tmp_path):
    plan = rows(Place(tmp_path, 1, 0.1, {}), ("cpu", "cuda"))
    keys = [row.key for row in plan]
    assert len(set(keys)) == len(keys)
    assert {
        "train-gray-50",
        "train-gray-256",
        "train-color@cuda",
        "score-kl",
        "score-kl-int8",
        "score-bpd",
        "score-combined-color",
        "disk",
        "help",
    } <= {*keys}
    for item in plan:
        assert next(iter(item.subjects)) == OURS
        for comparison in item.comparisons:
            assert item.device != "cuda" or comparison.target is None
    with pytest.raises(UnavailableError, match="--pythae"):
        plan[0].subjects["pythae"]()


def test_every_row_is_there_in_both_precisions_where_the_machine_has_them(tmp_path, monkeypatch):
    place = Place(tmp_path, 1, 0.1, {})
    monkeypatch.setattr(run_rows, "computes_in_bfloat16", lambda device: True)
    keys = {row.key for row in rows(place, ("cpu",))}
    plain = {key for key in keys if key.startswith(("train-", "score-", "workers-", "beside-")) and "@" not in key}
    alone = {key for key in plain if "int8" in key or "combined" in key}  # those stand beside every precision
    assert {f"{key}@float32" for key in plain - alone} == {key for key in keys if "@" in key}
    monkeypatch.setattr(run_rows, "computes_in_bfloat16", lambda device: False)
    assert {row.key for row in rows(place, ("cpu",))} == {key for key in keys if "@" not in key}


def test_a_bench_goes_on_where_it_ended(tmp_path):
    path, fresh = tmp_path / "x.json", {"rounds": 7, "seconds": 1, "quick": False, "provenance": {"commit": "a"}}
    assert run._resumed(path, fresh) is fresh
    good, failed = {"key": "good", "absent": {"pyod": "not here"}}, {"key": "failed", "absent": {"negvae": "ended"}}
    path.write_text(json.dumps({**fresh, "rows": [good, failed]}))
    assert run._resumed(path, fresh)["rows"] == [good]
    with pytest.raises(ValueError, match="rounds 7, not 2"):
        run._resumed(path, {**fresh, "rounds": 2})
    later = run._resumed(path, {**fresh, "provenance": {"commit": "b"}})
    assert (later["provenance"], later["rows"]) == ({"commit": "b"}, [{**good, "commit": "a"}])
    path.write_text(json.dumps({**later, "rows": [*later["rows"], {"key": "new", "absent": {}}]}))
    commits = [row.get("commit") for row in run._resumed(path, {**fresh, "provenance": {"commit": "b"}})["rows"]]
    assert commits == ["a", None]
    assert [row["commit"] for row in run._resumed(path, {**fresh, "provenance": {"commit": "c"}})["rows"]] == ["a", "b"]


def test_bad_wishes_are_refused(tmp_path):
    console = Console(file=sys.stderr)
    with pytest.raises(ValueError, match="unknown row 'helpp': did you mean help"):
        run_bench(tmp_path / "out", only=["helpp"], console=console)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="leave out --quick"):
        run_bench(tmp_path, quick=True, table=tmp_path / "x.md", console=console)
    with pytest.raises(FileNotFoundError, match="no such interpreter"):
        run_bench(tmp_path, pythons={"pyod": tmp_path / "python"}, console=console)
    with pytest.raises(ValueError, match="unknown device"):
        run_bench(tmp_path, device="tpu", console=console)


def test_small_bench(tmp_path, monkeypatch, capsys):
    """Real subjects: a training row without its peer, profiled, and a command."""
    monkeypatch.setattr(run, "QUICK_SECONDS", 0.01)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    well = run_bench(
        tmp_path, quick=True, only=["help"], profile=["train-auxiliary"], console=Console(width=150), device="cpu"
    )
    assert well
    (path,) = tmp_path.glob("*.json")
    results = json.loads(path.read_text())
    training, command = results["rows"]
    assert all(rate > 0 for rate in training["subjects"][OURS]["rounds"])
    assert training["subjects"][OURS]["precision"] in ("bfloat16", "float32")
    assert any("convolution" in item["operator"] for item in training["operators"])
    assert sum(item["share"] for item in training["operators"]) <= 1 + 1e-9
    assert command["comparisons"][0]["figure"] == pytest.approx(sum(command["subjects"][OURS]["rounds"]) / 2)
    text = markdown(results)
    assert text.count("`negvae --help`") == 2
    assert "Where the time goes" in text
    assert "train-auxiliary: one round" in capsys.readouterr().out


def test_command_line_refuses_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "score", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        command.run()
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert "did you mean score-" in error
