"""The description of how images are decoded and fitted to a model. Nothing here imports torch or NumPy.

It is made once, when a run looks at its folder, and kept in the run's config.yaml. Training, calibration, scoring,
evaluation, reports and the detector decode by it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from negvae.messages import counted
from negvae.registry import choose

FITS = {
    "exact": "images must have the size already",
    "resize": "change the proportions",
    "crop": "keep the middle",
    "pad": "keep all, with the border's color around",
    "tile": "cut into overlapping tiles",
}
"""The ways to fit an image to the size that a model takes, each with its meaning."""
MAX_CHANNELS = 16
RULES = (
    "EXIF orientation is applied, transparency is laid over white, palettes and CMYK become RGB, and color profiles are"
    " ignored"
)
"""What else is done in decoding. A description with other rules is refused."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How images are decoded and fitted to a model.

    Attributes:
        fit: one of `FITS`.
        height: height of a model's input in pixels: of the image, or of a tile.
        width: width of a model's input in pixels.
        channels: number of channels, 1 to 16.
        bits: bits of a channel of the images, 8 or 16. Images of 16 bits are scaled to 8.
        low: value of 16 bits that becomes 0.
        high: value of 16 bits that becomes 255; values outside the two are clipped.
        longest: for tiles: images whose longer side is longer are reduced to this many pixels before they are cut; 0
            never reduces.
        overlap: for tiles: share of its side that a tile shares with each neighbor at least.
        rules: what else is done in decoding, for people to read.

    >>> Decoding(fit="tile", height=128, width=128, channels=3, longest=384).describe()
    '128x128 tiles of images reduced to at most 384 pixels, 3 channels'
    """

    fit: str
    height: int
    width: int
    channels: int
    bits: int = 8
    low: int = 0
    high: int = 65535
    longest: int = 0
    overlap: float = 0.25
    rules: str = RULES

    def __post_init__(self) -> None:
        """Refuse values that make no sense, with one line that says what would be right."""
        choose("fit", self.fit, FITS)
        whole = {
            name: getattr(self, name) for name in ("height", "width", "channels", "bits", "low", "high", "longest")
        }
        for name, value in whole.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"images: {name} is {value!r}: it must be a whole number")
        if min(self.height, self.width) < 1:
            raise ValueError(f"images: size is {self.width}x{self.height}: each side must be at least 1 pixel")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise ValueError(f"images: channels is {self.channels}: it must lie between 1 and {MAX_CHANNELS}")
        if self.bits not in (8, 16):
            raise ValueError(f"images: bits is {self.bits}: it must be 8 or 16")
        if not 0 <= self.low < self.high <= 65535:
            raise ValueError(f"images: the range is {self.low} to {self.high}: it must ascend within 0 to 65535")
        if self.longest and self.longest < max(self.height, self.width):
            raise ValueError(f"images: longest is {self.longest}: it must be 0, or at least a tile's side")
        if isinstance(self.overlap, bool) or not isinstance(self.overlap, int | float) or not 0 <= self.overlap <= 0.75:
            raise ValueError(f"images: overlap is {self.overlap!r}: it must be a share from 0 to 0.75")
        if self.rules != RULES:
            raise ValueError(f"images: they were decoded by other rules ({self.rules}): upgrade negvae")

    @property
    def tiled(self) -> bool:
        """Whether an image is cut into tiles."""
        return self.fit == "tile"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of a model's input."""
        return self.channels, self.height, self.width

    def describe(self) -> str:
        """Describe in a phrase what is made of images."""
        size = f"{self.width}x{self.height}"
        made = {
            "exact": f"{size} as they are",
            "resize": f"resized to {size}",
            "crop": f"cropped to {size}",
            "pad": f"padded to {size}",
            "tile": f"{size} tiles" + (f" of images reduced to at most {self.longest} pixels" if self.longest else ""),
        }[self.fit]
        depth = f", 16 bits from {self.low} to {self.high}" if self.bits == 16 else ""
        return f"{made}, {counted(self.channels, 'channel')}{depth}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, in order."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Decoding:
        """Make a description from the values that `to_dict` returns.

        Args:
            values: value for the name of each field.

        Returns:
            The description.

        Raises:
            ValueError: if a field is unknown, is missing or has a value that is refused.
        """
        known = [each.name for each in dataclasses.fields(cls)]
        for name in values:
            choose("field", str(name), known, "images")
        for name in ("fit", "height", "width", "channels"):
            if name not in values:
                raise ValueError(f"images: field {name} is missing")
        return cls(**values)
