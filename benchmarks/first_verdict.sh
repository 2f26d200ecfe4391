#!/bin/bash
# The time from `git clone` to the first verdict on a person's own folder:
#
#     bash benchmarks/first_verdict.sh [PHOTOS [REPOSITORY [RESULT]]]
#
# PHOTOS is a folder of some 100 images, of which every fifth is scored and the others train; without one, 100 images
# of colored shapes are drawn. REPOSITORY is what is cloned; without one, the checkout that this file is in. Each step
# is printed with its seconds, on the clock and of a processor, and RESULT is a file of JSON that gets them. The
# verdict is reached without heat maps; how long the same training takes with them, which is the default, is measured
# after it. The cache of pip counts: PIP_NO_CACHE_DIR=1 measures without one.
set -euo pipefail
photos=${1:+$(realpath "$1")} repository=${2:-$(cd "$(dirname "$0")/.." && pwd)} result=${3:+$(realpath "$3")}
place=$(mktemp -d) && trap 'rm -rf "$place"' EXIT
unset PYTHONPATH
start=$(date +%s)

step() { # NAME COMMAND...
    local name=$1 TIMEFORMAT='%R %U %S' seconds busy
    shift
    { time "$@" > "$place/log" 2>&1; } 2> "$place/time" || { tail -n 5 "$place/log" >&2; exit 1; }
    read -r seconds busy < <(awk '{printf "%.1f %.1f\n", $1, $2 + $3}' "$place/time")
    printf '%7s s, %6s s of a processor  %s: %s\n' "$seconds" "$busy" "$name" "$*"
    printf '%s\t%s\t%s\n' "$name" "$seconds" "$busy" >> "$place/steps"
}

kept() { # what was measured, in RESULT
    [ -n "$result" ] || return 0
    venv/bin/python - "$place" "$total" "$result" << 'PYTHON'
import json, os, pathlib, platform, subprocess, sys
from importlib.metadata import version
place, total, result = sys.argv[1:]
lines = [line.split("\t") for line in (pathlib.Path(place) / "steps").read_text().splitlines()]
measured = {
    "command": "bash benchmarks/first_verdict.sh PHOTOS",
    "commit": subprocess.check_output(["git", "-C", f"{place}/negvae", "rev-parse", "--short=10", "HEAD"], text=True).strip(),
    "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    "python": platform.python_version(),
    "torch": version("torch"),
    "photos": {name: len(list((pathlib.Path(place) / name).iterdir())) for name in ("good", "new")},
    "load of the machine, mean of 15 minutes": round(os.getloadavg()[2], 1),
    "seconds by step": {name: float(seconds) for name, seconds, _ in lines},
    "seconds of a processor by step": {name: float(busy) for name, _, busy in lines},
    "seconds to the first verdict": int(total),
    "seconds of a processor to the first verdict": round(sum(float(busy) for _, _, busy in lines[:5]), 1),
}
pathlib.Path(result).write_text(json.dumps(measured, indent=2) + "\n")
PYTHON
}

drawn() {
    python3 - "$place/all" << 'PYTHON'
import pathlib, random, struct, sys, zlib
folder, draw = pathlib.Path(sys.argv[1]), random.Random(0)
folder.mkdir()
for number in range(100):  # discs of any color and place, as PNG by the standard library alone
    x, y, r, color = draw.randint(20, 44), draw.randint(20, 44), draw.randint(8, 18), bytes(draw.randint(60, 255) for _ in "rgb")
    lines = b"".join(
        b"\0" + b"".join(color if (i - x) ** 2 + (j - y) ** 2 < r * r else b"\20\20\20" for i in range(64)) for j in range(64)
    )
    part = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(lines)) + part(b"IEND", b"")
    (folder / f"{number:03}.png").write_bytes(png)
PYTHON
}

split() { # every fifth image is new
    mkdir "$place/good" "$place/new"
    local number=0 part
    for file in "$photos"/*; do
        part=good
        ((number % 5 != 4)) || part=new
        cp "$file" "$place/$part/"
        number=$((number + 1))
    done
}

[ -n "$photos" ] || { drawn && photos=$place/all; }
split
echo "$(find "$place/good" -type f | wc -l) images to train on, $(find "$place/new" -type f | wc -l) to score"
step "clone" git clone --quiet "$repository" "$place/negvae"
step "environment" python3 -m venv "$place/venv"
step "install" "$place/venv/bin/pip" install --quiet --constraint "$place/negvae/constraints.txt" "$place/negvae"
cd "$place"
step "train" venv/bin/negvae train --data good --no-heatmaps --out run
step "score" venv/bin/negvae score run new --out scores.csv
total=$(($(date +%s) - start))
echo "$total s in all; the first verdict:"
head -2 scores.csv
kept
step "train with heat maps" venv/bin/negvae train --data good --out mapped
kept
