"""Where negative samples come from."""

from negvae.negatives.notation import SOURCES, Spec, auxiliary_names, build_source, parse
from negvae.negatives.overlap import refuse_overlap
from negvae.negatives.sources import (
    EVERY,
    AddedNoise,
    Augmented,
    Auxiliary,
    Generated,
    Mixture,
    NegativeBatch,
    NegativeSource,
    UniformNoise,
    Zoomed,
)

__all__ = [
    "EVERY",
    "SOURCES",
    "AddedNoise",
    "Augmented",
    "Auxiliary",
    "Generated",
    "Mixture",
    "NegativeBatch",
    "NegativeSource",
    "Spec",
    "UniformNoise",
    "Zoomed",
    "auxiliary_names",
    "build_source",
    "parse",
    "refuse_overlap",
]
