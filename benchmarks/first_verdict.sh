#!/bin/bash
# The time from `git clone` to the first verdict on a person's own folder: bash benchmarks/first_verdict.sh [PHOTOS] [REPOSITORY]
#
# PHOTOS is a folder of some 100 images, of which every fifth is scored and the others train; without one, 100 images of
# colored shapes are drawn. REPOSITORY is what is cloned; without one, the checkout that this file is in. Each step is
# printed with its seconds. The cache of pip counts: PIP_NO_CACHE_DIR=1 measures without one.
set -euo pipefail
photos=${1:-} repository=${2:-$(cd "$(dirname "$0")/.." && pwd)}
place=$(mktemp -d) && trap 'rm -rf "$place"' EXIT
unset PYTHONPATH
start=$(date +%s)

step() { # NAME COMMAND...
    local name=$1 began=$(date +%s.%N)
    shift
    "$@" > "$place/log" 2>&1 || { tail -5 "$place/log" >&2; exit 1; }
    printf '%7.1f s  %s: %s\n' "$(awk "BEGIN {print $(date +%s.%N) - $began}")" "$name" "$*"
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
step "train" venv/bin/negvae train --data good --out run
step "score" venv/bin/negvae score run new --out scores.csv
echo "$(($(date +%s) - start)) s in all; the first verdict:"
head -2 scores.csv
