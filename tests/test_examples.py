"""Every example runs, and finds what it says it finds."""

import re
from pathlib import Path

import pytest

from tests import processes

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str) -> str:
    """What an example prints, in a process and a folder of its own."""
    done = processes.run(arguments, script=EXAMPLES / name, strict=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    tested = set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text()))
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_guard_classifier() -> None:
    printed = run("guard_classifier.py")
    stopped = float(re.search(r"guard: ([\d.]+)% of them stopped", printed)[1])
    assert stopped <= 10
    rows = dict(re.findall(r"^(.{24}) +\d+% +(\d+)%$", printed, re.M))
    shares = {name.strip(): int(share) for name, share in rows.items()}
    assert len(shares) == 5
    assert min(shares.values()) >= 60
    assert shares["noise"] == shares["white on black swapped"] == 100


def test_find_outliers() -> None:
    printed = run("find_outliers.py")
    called, found, planted = map(
        int, re.search(r"called outliers: (\d+); foreign among them: (\d+) of (\d+)", printed).groups()
    )
    assert planted == 20
    assert called <= 22
    assert found >= 15


def test_embeddings() -> None:
    printed = run("embeddings.py")
    areas = re.findall(r"^digits (?:7 to 9|turned by 90 degrees) +([\d.]+) +([\d.]+) +([\d.]+)%$", printed, re.M)
    assert len(areas) == 2
    assert all(float(area) > 0.9 and float(called) > 50 for area, _, called in areas)
    assert float(re.search(r"set for 5%\) +([\d.]+)%", printed)[1]) <= 10
    called, wrong = map(int, re.search(r"rate 10%: (\d+) called, (\d+) of them", printed).groups())
    assert called > 200
    assert wrong <= 0.2 * called


def test_drift() -> None:
    printed = run("drift.py")
    alarms = ["ALARM" in line for line in printed.splitlines()[1:]]
    assert len(alarms) == 10
    assert sum(alarms[:5]) <= 1
    assert all(alarms[7:])


def test_minimal(blob_files: dict[str, Path]) -> None:
    """Without negatives, KL ranks the dark images below the bright ones that the model is trained on."""
    bright, dark = str(blob_files["out"]), str(blob_files["in"])
    printed = run("minimal.py", "--inliers", bright, "--ood", dark, "--negatives", dark, "--epochs", "20")
    areas = re.findall(r"^AUC (?:BPD|KL) +([\d.]+)$", printed, re.M)
    assert len(areas) == 2
    assert all(float(area) > 0.95 for area in areas)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_import_only_what_is_installed_with_the_package(path: Path) -> None:
    imported = set(re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.M))
    assert imported <= {
        "argparse",
        "math",
        "sys",
        "tempfile",
        "pathlib",
        "numpy",
        "PIL",
        "scipy",
        "sklearn",
        "torch",
        "negvae",
    }


def test_own_model(tmp_path: Path) -> None:
    printed = run("own_model.py", "--out", str(tmp_path), "--steps", "150")
    assert float(re.search(r"false alarms on fresh inliers: ([\d.]+)%", printed)[1]) <= 1
    assert float(re.search(r"found inside of the ring: ([\d.]+)%", printed)[1]) >= 20
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "flow.onnx"}


def test_make_photos(tmp_path: Path) -> None:
    printed = run("make_photos.py", str(tmp_path), "--photos", "6", "--width", "80")
    assert "6 photos in" in printed
    assert {path.suffix for path in (tmp_path / "photos").iterdir()} <= {".jpg", ".png"}
    assert len({path.stem.partition("-")[0] for path in (tmp_path / "inbox").iterdir()}) == 7
