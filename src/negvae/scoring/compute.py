"""Functions of passes over any number of images: in blocks, by as many threads as there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from negvae.device import autocast, own_state
from negvae.fast.int8_decoder import QuantizedNetworks
from negvae.model import VAE
from negvae.scoring.blocks import block_size, blocks, filled, map_blocks, wider_size
from negvae.scoring.passes import Drawing, Draws, Pass
from negvae.scoring.references import References
from negvae.scoring.table import Score, ScoreFunction, names_of, score_of


@own_state()
def compute_scores(
    model: VAE,
    images: Tensor,
    scores: Sequence[str | Score | ScoreFunction],
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    draws: Drawing | None = None,
    references: References | None = None,
    ensemble: tuple[VAE, ...] = (),
    precision: str = "float32",
    quantized: QuantizedNetworks | None = None,
) -> dict[str, Tensor]:
    """Compute several scores from one pass of the encoder, and of the decoder if a score needs it.

    With `draws`, or with scores of the encoder alone, an image's scores depend on the image alone, to the last bit,
    on one machine (see `negvae.scoring.blocks`).

    Args:
        model: trained VAE, in evaluation mode.
        images: uint8 images, N x C x H x W, or rows of features, N x D x 1 x 1; on any device.
        scores: scores of `negvae.scoring.table.SCORES`, by name or as the functions that were registered.
        samples: number of posterior samples of every score that decodes.
        generator: generator of the posterior samples, on the model's device; None for one seeded with 0.
        draws: samples shared by all images, as many as each score takes, in place of `samples` and `generator`.
        references: statistics of training images, for scores that are measured against them.
        ensemble: further models trained in the same way, for "waic".
        precision: precision of the networks: "float32", which is the same arithmetic on every processor, "bfloat16",
            or "auto" for bfloat16 if the device computes in it. Scores are computed from the networks' output in
            double precision.
        quantized: the model's networks in int8, used in place of its own.

    Returns:
        N values (float32, or float64 for a model in float64; CPU) for each score by its name, in the order asked.

    Raises:
        ValueError: if a name is unknown, there are no posterior samples, or the model does not take the images; if a
            score cannot be computed in int8; or if networks that do not run in bfloat16 are asked to.
    """
    entries = [score_of(score) for score in scores]
    if quantized is not None:
        for entry in entries:
            refuse_in_int8(entry, quantized)
    if samples < 1:
        raise ValueError(f"samples is {samples}: it must be at least 1")
    block_draws = None
    if draws is None and any("decoder" in entry.needs for entry in entries):
        block_draws = _own_draws(model, samples, generator or torch.Generator(model.device).manual_seed(0))
    values = over_blocks(
        model, images, {entry.name: entry.read for entry in entries},
        draws=draws or _no_draws, block_draws=block_draws, references=references, ensemble=ensemble,
        precision=precision, quantized=quantized,
    )  # fmt: skip
    kind = next(model.parameters()).dtype
    return {name: value.to(kind) for name, value in values.items()}


def over_blocks(
    model: VAE,
    images: Tensor,
    functions: Mapping[str, Callable[[Pass], Tensor]],
    *,
    draws: Drawing,
    block_draws: Callable[[int], Drawing] | None = None,
    references: References | None = None,
    ensemble: tuple[VAE, ...] = (),
    precision: str = "float32",
    quantized: QuantizedNetworks | None = None,
) -> dict[str, Tensor]:
    """Return what functions of a pass give for any number of inputs, on the CPU.

    Args:
        model: trained VAE, in evaluation mode.
        images: N inputs as they are stored: uint8 images or rows of features.
        functions: functions from a pass over a block to one row for each input; all get the same pass.
        draws: source of the posterior samples, for all inputs alike.
        block_draws: function from the number of inputs of a block, padding left out, to the draws of that block, used
            in place of `draws`; it is called in the order of the inputs.
        references: statistics of training images, for scores that are measured against them.
        ensemble: further models trained in the same way, for "waic".
        precision: precision of the networks: "float32", "bfloat16" or "auto".
        quantized: the model's networks in int8, used in place of its own.

    Returns:
        What each function gave, N rows; an empty tensor if there are no inputs.
    """

    def drawn(count: int, size: int | None) -> Iterator[tuple[Tensor, int, Drawing]]:
        for part, inputs in blocks(model, images[:count], size):
            yield part, inputs, draws if block_draws is None else block_draws(inputs)

    def apply(block: tuple[Tensor, int, Drawing]) -> dict[str, Tensor]:
        part, count, drawing = block
        with torch.inference_mode(), autocast(precision, model.device):
            x = Pass(model, part, draws=drawing, references=references, ensemble=ensemble, quantized=quantized)
            return {name: function(x)[:count].cpu() for name, function in functions.items()}

    def computed(count: int, size: int | None) -> dict[str, Tensor]:
        parts = map_blocks(apply, drawn(count, size), model.device)
        empty = torch.empty(0, dtype=torch.float32, device="cpu")
        return {name: torch.cat([part[name] for part in parts]) if parts else empty for name in functions}

    size = None
    if block_draws is None and not ensemble:
        key = (precision, quantized is not None, *functions)
        size = wider_size(model, len(images), key, computed)
    return computed(len(images), size)


def refuse_in_int8(score: Score, quantized: QuantizedNetworks) -> None:
    """Refuse a score that cannot be computed in int8.

    Args:
        score: score to check.
        quantized: networks in int8.

    Raises:
        ValueError: if the score needs an ensemble, or a decoder that is not there.
    """
    if "ensemble" in score.needs:
        raise ValueError(f"score {score.name} takes an ensemble, which has no int8: use float32")
    if score.needs and quantized.decode is None:
        *allowed, last = names_of(lambda entry: not entry.needs)
        raise ValueError(
            f"score {score.name} needs the decoder, and the int8 of this model is of the encoder alone: ask for"
            f" {', '.join(allowed)} or {last}"
        )


def _own_draws(model: VAE, samples: int, generator: torch.Generator) -> Callable[[int], Drawing]:
    """Return a function that draws each input's own random numbers, in the order of the inputs, as rows of a block."""
    weights, size = next(model.parameters()), block_size(model)

    def of_block(count: int) -> Drawing:
        noises, additions = [], []
        for _ in range(samples):
            noise = torch.randn(count, model.latent_size, generator=generator, device=model.device, dtype=torch.float32)
            added = model.likelihood.target(
                torch.zeros(count, *model.shape, device=model.device, dtype=torch.float32), generator
            )
            noises.append(filled(noise.to(weights), size))
            additions.append(filled(added.to(weights), size))
        made = Draws(torch.stack(noises), torch.stack(additions))
        return lambda model, samples: made

    return of_block


def _no_draws(model: VAE, samples: int) -> Draws:
    raise ValueError("a score that was registered with needs=() is of the encoder alone, and this one decodes")
