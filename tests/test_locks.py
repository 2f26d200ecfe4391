"""requirements.lock holds what `make` installs, at the versions of constraints.txt, each with hashes."""

import re
import tomllib
from pathlib import Path

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
