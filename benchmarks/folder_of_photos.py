"""One sitting with a folder that somebody has: train, score, report and export, with no option but --data and --out.

    python benchmarks/folder_of_photos.py make FOLDER     # 500 photos, two broken files and one text file
    python benchmarks/folder_of_photos.py sit FOLDER OUT  # the four commands, with time and memory of each
    python benchmarks/folder_of_photos.py sit FOLDER OUT score report  # some of them, after the others

The photos are made by code: images of imagenet32 where NEGVAE_DATA has them, else random fields, enlarged with
texture and grain of their own, so that files have the sizes that cameras write. "sit" prints one line of JSON for each
command: wall and CPU seconds of the command, and its largest resident memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

COUNT = 500
SIZES = ((640, 480), (1024, 768), (1600, 1200), (1920, 1080), (3264, 2448), (4000, 3000))
SHARES = (0.15, 0.2, 0.2, 0.2, 0.15, 0.1)
PNG_EVERY = 5


def small_images(count: int, seed: int) -> np.ndarray:
    """Return small color images to enlarge, uint8, N x 32 x 32 x 3."""
    from negvae.data import load

    try:
        images = load("imagenet32", "train", fetch=False, limit=20_000).images.transpose(0, 2, 3, 1)
        return images[np.random.default_rng(seed).permutation(len(images))[:count]]
    except (FileNotFoundError, ValueError):
        return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def texture(random: np.random.Generator) -> Image.Image:
    """Return texture at two scales with grain, around gray 128, as large as the largest photo."""
    width = max(map(max, SIZES))
    pixels = np.full((width, width), 128, np.float32)
    for cells in (64, 256):
        field = random.normal(0, 8, (cells, cells)).astype(np.float32)
        pixels += np.asarray(Image.fromarray(field).resize((width, width), Image.Resampling.BICUBIC))
    pixels += random.integers(-4, 5, (width, width), np.int8)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("RGB")


def photo(small: np.ndarray, size: tuple[int, int], over: Image.Image, random: np.random.Generator) -> Image.Image:
    """Return one photo: a small image enlarged, with a piece of the texture over it."""
    whole = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    left, top = (int(random.integers(0, side - length + 1)) for side, length in zip(over.size, size, strict=True))
    return ImageChops.add(whole, over.crop((left, top, left + size[0], top + size[1])), offset=-128)


def make(folder: Path) -> None:
    """Write the folder."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    images, over = small_images(COUNT, 0), texture(random)
    for number in range(COUNT):
        size = SIZES[random.choice(len(SIZES), p=SHARES)]
        if random.random() < 0.3:
            size = size[::-1]
        made = photo(images[number], size, over, random)
        if number % PNG_EVERY == 0:
            made.save(folder / f"photo{number:03d}.png", compress_level=1)
        else:
            exif = Image.Exif()
            exif[0x0112] = int(random.choice([1, 1, 1, 6]))
            made.save(folder / f"photo{number:03d}.jpg", quality=88, exif=exif)
    whole = (folder / "photo001.jpg").read_bytes()
    (folder / "broken1.jpg").write_bytes(whole[: len(whole) // 3])
    (folder / "broken2.png").write_bytes(b"not an image at all")
    (folder / "notes.txt").write_text("bought in May\n")


def sit(folder: Path, out: Path, only: list[str]) -> None:
    """Run the four commands and print what each took."""
    run = out / "run"
    out.mkdir(parents=True, exist_ok=True)
    program = [sys.executable, "-c", "from negvae.cli import main; main()"]
    commands = {
        "train": ["train", "--data", folder, "--out", run],
        "score": ["score", run, folder, "--out", out / "scores.parquet"],
        "report": ["report", run, folder, "--out", out / "report.html"],
        "export": ["export", run],
    }
    for name in only or commands:
        arguments = commands[name]
        started = time.monotonic()
        process = subprocess.Popen([*program, *map(str, arguments)])
        _, status, used = os.wait4(process.pid, 0)
        row = {
            "command": name, "wall_s": round(time.monotonic() - started, 1),
            "cpu_s": round(used.ru_utime + used.ru_stime, 1), "memory_gb": round(used.ru_maxrss / 2**20, 2),
            "exit": os.waitstatus_to_exitcode(status),
        }  # fmt: skip
        print(json.dumps(row), flush=True)
        if row["exit"]:
            sys.exit(row["exit"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"] and len(sys.argv) == 3:
        make(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["sit"] and len(sys.argv) >= 4:
        sit(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    else:
        sys.exit(__doc__)
