"""Find foreign images in a folder that nobody has sorted.

A folder of scikit-learn's digits, 16 x 16 pixels, into which 12 pieces of photographs and 8 negatives of digits have
slipped. The detector is fitted on the folder as it is, foreign images included, and ranks the files.

    python examples/find_outliers.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from negvae import NegVAEDetector

DIGITS, PIECES, NEGATIVES = 980, 12, 8


def make_folder(folder: Path) -> set[str]:
    """Write the PNG files; returns the names of the foreign images."""
    draw = np.random.default_rng(0)
    digits = (load_digits().images * (255 / 16)).round().astype(np.uint8)
    pictures = [Image.fromarray(digit).resize((16, 16), Image.Resampling.BICUBIC) for digit in digits]
    for photo in load_sample_images().images:
        gray = Image.fromarray(photo).convert("L").resize((160, 107))
        for _ in range(PIECES // 2):
            left, top = draw.integers(144), draw.integers(91)
            pictures.append(gray.crop((left, top, left + 16, top + 16)))
    foreign = pictures[len(digits) :]
    foreign += [Image.fromarray(255 - np.asarray(digit)) for digit in pictures[DIGITS : DIGITS + NEGATIVES]]
    mixed = [(picture, False) for picture in pictures[:DIGITS]] + [(picture, True) for picture in foreign]
    names = set()
    for number, index in enumerate(draw.permutation(len(mixed))):
        picture, is_foreign = mixed[index]
        name = f"{number:04d}.png"
        picture.save(folder / name)
        if is_foreign:
            names.add(name)
    return names


def main(folder: Path) -> None:
    """Make the folder, fit on it, and print the files that fit in least."""
    foreign = make_folder(folder)
    files = sorted(folder.glob("*.png"))
    detector = NegVAEDetector(contamination=len(foreign) / len(files), epochs=14, random_state=0)
    detector.fit(str(folder))
    scores = detector.ood_score(str(folder))
    order = np.argsort(-scores)
    print(f"{len(files)} files, {len(foreign)} of them foreign; the least typical:")
    for rank in order[: len(foreign)]:
        print(f"  {files[rank].name}  score {scores[rank]:8.2f}  {'foreign' if files[rank].name in foreign else ''}")
    called = {files[rank].name for rank in np.flatnonzero(detector.predict(str(folder)) == -1)}
    print(f"called outliers: {len(called)}; foreign among them: {len(called & foreign)} of {len(foreign)}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place))
