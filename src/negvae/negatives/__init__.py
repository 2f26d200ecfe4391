"""Sources of negative samples."""

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
    as_declared,
    check_negatives,
    check_source,
    check_values,
    reads_model,
    unchanged,
    unchanged_images,
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
    "as_declared",
    "auxiliary_names",
    "build_source",
    "check_negatives",
    "check_source",
    "check_values",
    "parse",
    "reads_model",
    "refuse_overlap",
    "unchanged",
    "unchanged_images",
]
