"""Write maps of where images are out-of-distribution as pictures, one for each image, in one color scale for all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from negvae.data.batches import Batch
from negvae.data.fit import map_of_image
from negvae.data.formats import IMAGE_ENDINGS
from negvae.data.formats.encoded import HEATMAP, HEATMAP_KEY
from negvae.data.photos import seen_as
from negvae.data.pillow import upright
from negvae.data.tiling import blend, resized
from negvae.decoding import Decoding
from negvae.files import remove_leftovers, replacing, shortened
from negvae.messages import shown
from negvae.scoring.heatmaps import LARGEST

_LONGEST = 220
"""Bytes of an image's name that the name of its map keeps; file systems take 255, with a number and an ending."""


class MapWriter:
    """Writes a PNG for each image into a folder.

    A PNG has the image's own size and its name. If two images have one name, the later ones get a number, and
    images of a file with several of them get their index.

    Args:
        folder: folder to write into, which is created.
        maps: function from images as the run takes them to their maps, `negvae.scoring.heatmaps.Heatmaps` or
            `negvae.runs.patches.PatchMaps`.
        upright: whether images are turned upright, as their EXIF data says, as they are read. If not, their maps are,
            so that they lie over the images as they are seen.
        decoding: how images were fitted to the run; None if they were resized or taken as they are.
    """

    def __init__(
        self,
        folder: Path,
        maps: Callable[[torch.Tensor], NDArray[Any]],
        *,
        upright: bool = True,
        decoding: Decoding | None = None,
    ) -> None:
        self.folder, self.maps, self.upright, self.decoding = folder, maps, upright, decoding
        self.colored = True
        """Whether the pictures have the colors of maps, or are gray, from black (0) to white (`LARGEST` or more)."""
        self._used: set[str] = set()
        self._numbers: dict[str, int] = {}
        """The number that was last tried for each name of an image: those before it are taken."""
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)

    def write(self, batch: Batch, rows: NDArray[np.int64]) -> list[str]:
        """Write the maps of some images of a batch.

        Args:
            batch: images as they were read; the tiles of tiled ones are blended into one map.
            rows: numbers of the images in the batch, ascending.

        Returns:
            The name of each PNG in the folder.
        """
        names = []
        for row, values in zip(rows, whole_maps(self.maps, batch, rows), strict=True):
            path, index = batch.paths[row], batch.indices[row]
            form = own_form(path)
            name = self._name(path, index, form is None)
            if form is not None:
                size, orientation = form
                values = values if self.upright else np.ascontiguousarray(upright(values, orientation))
                values = resized(map_of_image(values, size, self.decoding)[None], size)[0]
            with replacing(self.folder / name, tidy=False) as temporary:
                drawn = picture(values, self.colored)
                drawn.save(temporary, "PNG", pnginfo=_title())
            names.append(name)
        return names

    def _name(self, path: str, index: int | None, packed: bool) -> str:
        stem = shortened(shown(Path(path).stem), _LONGEST) or "image"
        stem = f"{stem}-{index}" if packed and index is not None else stem
        number = self._numbers.get(stem, 1)
        name = _numbered(stem, number)
        while name.lower() in self._used:  # some file systems do not tell upper from lower case
            number += 1
            name = _numbered(stem, number)
        self._numbers[stem] = number
        self._used.add(name.lower())
        return name


def _title() -> PngInfo:
    """Return the text that says what a PNG is, so that a map in a folder of photos is not taken for one of them."""
    title = PngInfo()
    title.add_text(HEATMAP_KEY, HEATMAP)
    return title


def _numbered(stem: str, number: int) -> str:
    return f"{stem}-{number}.png" if number > 1 else f"{stem}.png"


def whole_maps(
    maps: Callable[[torch.Tensor], NDArray[Any]], batch: Batch, rows: NDArray[np.int64]
) -> list[NDArray[Any]]:
    """Compute the map of some images of a batch, blended from those of the tiles if images are tiled.

    Args:
        maps: function from images as the run takes them to their maps.
        batch: images as they were read.
        rows: numbers of the images in the batch, ascending.

    Returns:
        One map (H x W) for each image, in the size to which it was decoded.
    """
    images, owners = batch.inputs(rows)
    found = maps(torch.from_numpy(images))
    if owners is None:
        return list(found)
    return [blend(found[owners == place], batch.tilings[row]) for place, row in enumerate(rows)]


def picture(values: NDArray[Any], colored: bool = True) -> Image.Image:
    """Return a map as a picture: index 0 of its palette is 0, index 255 is `LARGEST` or more (-log10 of the p-value).

    Args:
        values: map, H x W.
        colored: whether the picture has a palette; if not, it is gray.

    Returns:
        The picture.

    >>> int(np.asarray(picture(np.array([[0.0, 3.0, 9.0]])))[0, 2])
    255
    """
    levels = np.clip(np.rint(np.asarray(values, np.float64) * (255 / LARGEST)), 0, 255).astype(np.uint8)
    image = Image.fromarray(levels)
    if colored:
        image.putpalette(palette().tobytes())
    return image


@functools.cache
def palette() -> NDArray[np.uint8]:
    """Return the colors of maps, 256 x 3: black, through red, to pale yellow."""
    from matplotlib import colormaps

    colors: NDArray[np.uint8] = np.rint(colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8)
    return colors


def own_form(path: str) -> tuple[tuple[int, int], int] | None:
    """Return the height and width of an image file as it is seen, and its orientation; None for other files.

    The orientation is what is still to be applied to its pixels as they are loaded (see `negvae.data.photos.seen_as`).
    """
    if not path.lower().endswith(IMAGE_ENDINGS):
        return None
    try:
        return seen_as(path)
    except (OSError, ValueError, SyntaxError):
        return None
