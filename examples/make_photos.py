"""Draw a folder of photos to try negvae on: gears on a table, and an inbox in which some photos have a fault.

Photos have mixed sizes and formats, and the gears mixed places, sizes, turns and light, as photos of parts have. The
inbox has new good photos and faulty ones, whose file names say what is wrong with them.

    python examples/make_photos.py FOLDER [--photos 240] [--width 640]
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

FAULTS = ("blurred", "crack", "dark", "empty", "nut", "oil")
GOOD, EACH = 20, 2
"""Good gears in the inbox, and photos with each fault: of the camera, the lamp, the part or its place."""


def table(width: int, height: int, draw: np.random.Generator) -> Image.Image:
    """Draw a table: smooth stripes of wood with grain."""
    stripes = draw.normal(0, 1, (6, 2)).astype(np.float32)
    wood = np.asarray(Image.fromarray(stripes).resize((width, height), Image.Resampling.BICUBIC))
    grain = draw.normal(0, 4, (height, width))
    shade = 12 * wood + grain
    pixels = np.stack([150 + shade, 116 + shade, 84 + 0.8 * shade], 2)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def gear(center: tuple[float, float], radius: float, turn: float) -> list[tuple[float, float]]:
    """Return the outline of a gear with twelve teeth."""
    points = []
    for tooth in range(12):
        for part, reach in ((0.0, 0.82), (0.1, 1.0), (0.5, 1.0), (0.6, 0.82)):
            angle = turn + 2 * np.pi * (tooth + part) / 12
            points.append((center[0] + reach * radius * np.cos(angle), center[1] + reach * radius * np.sin(angle)))
    return points


def photo(width: int, height: int, fault: str, draw: np.random.Generator) -> Image.Image:
    """Draw one photo of a gear, with a fault if one is named."""
    picture = table(width, height, draw)
    pen, side = ImageDraw.Draw(picture), min(width, height)
    radius, turn, angle = side * draw.uniform(0.34, 0.4), *draw.uniform(0, 2 * np.pi, 2)
    x, y = (length * draw.uniform(0.46, 0.54) for length in (width, height))
    steel = int(draw.integers(165, 185))

    def disc(size: float, color: tuple[int, ...], at: tuple[float, float] = (x, y)) -> None:
        pen.ellipse((at[0] - size, at[1] - size, at[0] + size, at[1] + size), fill=color)

    if fault == "nut":  # a square nut, not a gear
        corners = [turn + np.pi / 2 * corner for corner in range(4)]
        pen.polygon([(x + radius * np.cos(a), y + radius * np.sin(a)) for a in corners], fill=(steel, steel, steel + 6))
    elif fault != "empty":
        pen.polygon(gear((x, y), radius, turn), fill=(steel, steel, steel + 6))
        disc(0.62 * radius, (steel - 28, steel - 28, steel - 20))
    if fault != "empty":
        disc(0.24 * radius, (96, 76, 56))
    if fault == "oil":
        disc(0.35 * radius, (58, 44, 20), (x + 0.6 * radius * np.cos(angle), y + 0.6 * radius * np.sin(angle)))
    if fault == "crack":
        out, aside = np.linspace(0.28, 0.85, 12), np.cumsum(draw.normal(0, 0.03, 12))
        across, along = out * np.cos(angle) - aside * np.sin(angle), out * np.sin(angle) + aside * np.cos(angle)
        path = [(x + radius * a, y + radius * b) for a, b in zip(across, along, strict=True)]
        pen.line(path, fill=(40, 40, 44), width=max(2, side // 60))
    picture = picture.filter(ImageFilter.GaussianBlur(side / (40 if fault == "blurred" else 500)))
    light = draw.uniform(0.92, 1.08) * (0.4 if fault == "dark" else 1)
    return picture.point(lambda value: min(255, round(value * light)))


def save(picture: Image.Image, path: Path, draw: np.random.Generator) -> None:
    """Write a photo as JPEG, or one in five as PNG."""
    picture.save(path.with_suffix(".png" if draw.random() < 0.2 else ".jpg"))


def main() -> None:
    """Write photos/ and inbox/."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder in which photos/ and inbox/ are made")
    parser.add_argument("--photos", type=int, default=240, help="number of good photos")
    parser.add_argument("--width", type=int, default=640, help="width of a typical photo in pixels")
    options = parser.parse_args()
    draw = np.random.default_rng(0)

    def size() -> tuple[int, int]:
        width = round(options.width * draw.choice([0.8, 1, 1.25, 2]))
        return (width, round(0.75 * width)) if draw.random() < 0.8 else (round(0.75 * width), width)

    photos, inbox = options.folder / "photos", options.folder / "inbox"
    for folder in (photos, inbox):
        folder.mkdir(parents=True, exist_ok=True)
    for number in range(options.photos):
        save(photo(*size(), "", draw), photos / f"gear-{number:03d}", draw)
    for number in range(GOOD):
        save(photo(*size(), "", draw), inbox / f"good-{number:02d}", draw)
    for fault in FAULTS:
        for number in range(EACH):
            save(photo(*size(), fault, draw), inbox / f"{fault}-{number}", draw)
    print(f"{options.photos} photos in {photos}; {GOOD} good and {EACH * len(FAULTS)} faulty ones in {inbox}")


if __name__ == "__main__":
    main()
