"""Where negative samples come from."""

from negvae.negatives.notation import Spec, auxiliary_names, build_source, parse
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
)

__all__ = [
    "EVERY",
    "AddedNoise",
    "Augmented",
    "Auxiliary",
    "Generated",
    "Mixture",
    "NegativeBatch",
    "NegativeSource",
    "Spec",
    "UniformNoise",
    "auxiliary_names",
    "build_source",
    "parse",
    "refuse_overlap",
]
