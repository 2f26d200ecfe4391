import io
import json
import math
import subprocess
import sys

import pytest
from rich.console import Console

from negvae.paper import one_class, one_class_show, reproduction, unsupervised, unsupervised_show
from negvae.paper.profiles import PROFILES
from negvae.paper.published import TABLES, Published
from negvae.paper.results import Figure
from negvae.paper.show import as_json, as_printed, difference, gather, measured_on, remarks, show_table, with_spread
from tests.cli.test_commands import call
from tests.paper.conftest import fake_result

SMOKE = PROFILES["smoke"]
RUN = "fashion-mnist-bernoulli-none"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((0.4567, 0.0123), "0.457 (0.012)"),
        ((0.4567, None), "0.457"),
        ((-0.0001, 0.0), "0.000 (0.000)"),
        ((999.9994, 3.0), "999.999 (3.000)"),
        ((3.21e18, 1e19), "3.2x10^18 (1.0x10^19)"),
        ((math.inf, math.nan), "inf (nan)"),
    ],
)
def test_numbers(value, text):
    assert with_spread(*value) == text


def test_printed_figures():
    assert as_printed(Published(0.46, 0.05)) == "0.46 (0.05)"
    assert as_printed(Published(1e18, 1e19, power=True)) == "10^18 (10^19)"
    assert as_printed(None) == "-"
    assert difference(Figure("auc_kl", 0.5, None, 0.46, 0.05)) == "+0.040"
    assert difference(Figure("auc_kl", 0.5, None, None, None)) == "-"


def test_json_list(tmp_path):
    for seed, area in enumerate((0.4, 0.6)):
        fake_result(tmp_path, SMOKE, RUN, seed, (area, 0.5, 0.3, math.inf))
    entries = as_json(gather(TABLES.values(), SMOKE, tmp_path), SMOKE)
    assert len(entries) == 31 * 4
    first = next(e for e in entries if e["table"] == "table3")
    assert first == {
        "table": "table3", "row": "auc_bpd", "train": "fashion-mnist", "ood": "mnist", "likelihood": "bernoulli",
        "negatives": "none", "paper_negatives": "none", "paper": {"mean": 0.46, "std": 0.05},
        "ours": {
            "mean": 0.5, "std": pytest.approx(math.sqrt(0.02)), "seeds": [0, 1], "profile": "smoke",
            "values": [0.4, 0.6], "difference": pytest.approx(0.04), "within": True, "run_negatives": "none",
            "run_likelihood": "bernoulli",
            "combined_spread": pytest.approx(math.hypot(math.sqrt(0.02), 0.05, 0.005, 0.005)),
            "welch_95": pytest.approx([-1.00944, 1.08944], abs=1e-4),
            "data_notes": ["fashion-mnist train: a stand-in & 50% of it"],
        },
    }  # fmt: skip
    shown = [e for e in entries if e["ours"] is not None]
    assert {e["table"] for e in shown} == {"table1", "table3", "table5"}  # one run, three tables
    assert shown[3]["ours"]["mean"] == "inf"
    assert entries[-1]["paper"] == {"mean": None, "std": None}
    json.dumps(entries, allow_nan=False)


def printed(table, found):
    console = Console(width=200)
    with console.capture() as captured:
        console.print(show_table(table, found))
    return captured.get()


def test_table_for_a_terminal(tmp_path):
    fake_result(tmp_path, SMOKE, RUN, 0, (0.47, 0.9, 0.3, 0.4))
    found = gather([TABLES["table5"]], SMOKE, tmp_path)
    lines = printed(TABLES["table5"], found).splitlines()
    row = next(line for line in lines if "AUC BPD" in line)
    assert [part.strip() for part in row.split("│")][4:10] == ["no negatives", "AUC BPD", "0.470", "0.46 (0.05)",
                                                               "+0.010", "yes"]  # fmt: skip
    row = next(line for line in lines if "Test, nats/dim" in line)
    assert [part.strip() for part in row.split("│")][6:12] == ["0.300", "0.30 (0.00)", "+0.000", "yes", "0.433",
                                                               "0.43 (0.00)"]  # fmt: skip
    assert sum("10^18 (10^19)" in line for line in lines) == 1
    assert all("-" in line for line in lines if "0.56 (0.08)" in line)  # no result for uniform noise


def test_remarks(tmp_path):
    fake_result(tmp_path, SMOKE, RUN, 0)
    cpu = PROFILES["cpu"]
    fake_result(tmp_path, cpu, RUN, 0)
    fake_result(tmp_path, cpu, RUN, 1, status="diverged", evaluation={})
    fake_result(tmp_path, cpu, RUN, 2, config={**cpu.config(TABLES["noise"].cells[0].setting).to_dict()})
    here = list(gather([TABLES["table5"]], cpu, tmp_path).values())
    lines = remarks(here, cpu)
    assert lines[0] == "fashion-mnist train: a stand-in & 50% of it"
    assert f"{RUN}, seed 1: training diverged" in lines
    assert f"{RUN}, seed 2: made with other settings, not counted" in lines
    assert f"{RUN}: 1 of 3 seeds so far" in lines
    assert "seeds 0; a_machine; commit 0123456789" in measured_on(here, cpu)


def test_another_likelihood_than_the_papers_is_remarked(tmp_path):
    long = PROFILES["long"]
    found = gather([TABLES["table2"]], long, tmp_path)
    lines = remarks(list(found.values()), long)
    ours = "trained with Gaussian on dequantized pixels, where the paper has Q. Gaussian"
    assert f"cifar10-quantized-gaussian-none: {ours}" in lines
    cpu = PROFILES["cpu"]
    assert remarks(list(gather(TABLES.values(), cpu, tmp_path).values()), cpu) == []  # learned sigma is the paper's too


def test_every_page_keeps_the_mark_of_changed_sources(tmp_path):
    origin = {"commit": "0123456789abcdef with uncommitted changes", "device": "a_machine"}
    marked = "0123456789 with uncommitted changes"
    one = {"provenance": origin, "false_alarms": 0.05, "notes": []}
    assert marked in one_class_show.remarks({"mnist": {0: [one]}}, one_class.PROFILES["smoke"])[0]
    found = unsupervised_show.RunResults()
    found[next(iter(unsupervised.settings()))] = [one]
    assert marked in unsupervised_show.remarks(found, SMOKE)[0]
    figures = {"negvae": "0", "torch": "2", "precision": "float32", "train_seconds": 1, "images_per_second": 1}
    fake_result(tmp_path, SMOKE, RUN, 0, provenance={**origin, **figures})
    here = gather([TABLES["table5"]], SMOKE, tmp_path)
    assert marked in measured_on(list(here.values()), SMOKE)
    assert marked in str(reproduction._provenance([cell for cell in here.values() if cell.results]).body)


def test_commands(capsys, tmp_path):
    fake_result(tmp_path, SMOKE, RUN, 0)
    options = ["--profile", "smoke", "--results", tmp_path]
    code, out, _ = call(capsys, "paper", "show", "table3", "--json", *options)
    assert code == 0
    assert [entry["ours"] is None for entry in json.loads(out)] == [False] * 4 + [True] * 20
    code, out, _ = call(capsys, "paper", "show", "table3", *options)
    assert code == 0
    assert "make them with: negvae paper run table3 --profile smoke" in out
    code, out, _ = call(capsys, "paper", "list", *options)
    assert code == 0
    assert sum("1 of 1" in line for line in out.splitlines()) == 3
    for arguments, hint in (
        (["show", "tabel3"], "did you mean table3"),
        (["show", "all", "--profile", "gpu"], "Known: paper, cpu, long, smoke"),
        (["run", "table3", "--only", "table5/kmnist"], "Known: table3/bernoulli/none"),
        (["run", "table3", "--seeds", "x"], "a count such as 3"),
        (["report", "--results", tmp_path / "none"], "has no results"),
    ):
        code, out, error = call(capsys, "paper", *arguments)
        assert (code, error.count("\n"), out) == (2, 1, ""), arguments
        assert hint in error


def test_lists_and_shows_without_torch():
    code = (
        "import sys; import negvae.paper.show, negvae.paper.published, negvae.paper.profiles, negvae.paper.results;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_table_fits_a_terminal_of_80_columns(tmp_path):
    found = gather([TABLES["table3"]], PROFILES["smoke"], tmp_path)
    console = Console(width=80, file=io.StringIO())
    console.print(show_table(TABLES["table3"], found, console.width))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    names = " ".join(line.split("│")[1].strip() for line in text.splitlines() if "│" in line)
    assert "Fashion-MNIST > MNIST, Bernoulli, EMNIST-Letters AUC BPD AUC KL" in names
    assert "0.46 (0.05)" in text
