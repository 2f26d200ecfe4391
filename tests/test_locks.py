"""requirements.lock holds what `make` installs, with hashes; the lowest versions that are allowed work."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def name_of(requirement):
    return re.split(r"[\[<>=!~; ]", requirement.strip(" '"), maxsplit=1)[0].lower().replace("_", "-")


def test_the_lock_holds_what_make_installs():
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.findall(
        r"^([a-z0-9-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", lock, re.MULTILINE
    )
    locked = {name: version for name, version, _ in entries}
    assert len(entries) == len(re.findall(r"^[a-z0-9-]+==", lock, re.MULTILINE)), "an entry has no hashes"
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for name, version in pinned.items():
        assert locked.get(name_of(name), version.strip()) == version.strip(), f"make locks: {name}"
    install = re.search(r"--editable '\.\[(.*?)\]' (.*?)\n\ttouch", (ROOT / "Makefile").read_text(), re.DOTALL)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *install[2].replace("\\", " ").split()]
    for extra in install[1].split(","):
        asked += project["optional-dependencies"][extra]
    assert not {name_of(each) for each in asked} - locked.keys(), "make locks"


NEEDED = {
    "scipy": (1, 12),  # scipy.special.betaincc and betainccinv
    "typer": (0, 16),  # earlier ones print no help beside click 8.2 and later, which they allow
}


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("file", ["pyproject.toml", "serve-onnx.txt"])
def test_the_lowest_version_allowed_is_one_that_works(file, name):
    lowest = re.search(rf"\b{name}>=([\d.]+)", (ROOT / file).read_text(encoding="utf-8"))[1]
    assert tuple(map(int, lowest.split("."))) >= NEEDED[name]
