"""Checks of tensor shapes in every test: jaxtyping's dimensions, tried by beartype at each call.

Docstrings of the mathematics say shapes in words; here they are once more in a form that runs. Within one call a
letter stands for one size, so that `kl` of N x L means and M x L log-variances fails. The library itself does without
jaxtyping: `check_shapes` puts the checks around its functions when the tests begin.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from beartype.door import is_bearable
from jaxtyping import Float, jaxtyped
from torch import Tensor

IMAGES, CODES, EACH, ONE = "n c h w", "n l", "n", ""
SHAPES: dict[str, dict[str, str | tuple[str, ...]]] = {
    "negvae.model.priors:GaussianPrior.kl": {"mean": CODES, "log_var": CODES, "return": EACH},
    "negvae.model.priors:GaussianPrior.kl_excess": {"mean": CODES, "return": EACH},
    "negvae.model.priors:GaussianPrior.log_prob": {"z": "... l", "return": "..."},
    "negvae.model.priors:GaussianPrior.sample": {"return": CODES},
    "negvae.model.vae:Posterior.sample": {"noise": "... l", "return": "*samples n l"},
    "negvae.model.vae:VAE.encode": {"images": IMAGES, "return": (CODES, CODES)},
    "negvae.model.vae:VAE.decode": {"z": CODES, "return": IMAGES},
    "negvae.model.vae:VAE.generate": {"z": CODES, "return": IMAGES},
    "negvae.model.likelihoods:Bernoulli.target": {"images": IMAGES, "return": IMAGES},
    "negvae.model.likelihoods:Bernoulli.log_prob": {"output": IMAGES, "target": IMAGES, "return": EACH},
    "negvae.model.likelihoods:Bernoulli.excess": {"output": IMAGES, "target": IMAGES, "return": EACH},
    "negvae.model.likelihoods:Bernoulli.mean": {"output": IMAGES, "return": IMAGES},
    "negvae.model.likelihoods:Bernoulli.sample": {"output": IMAGES, "return": IMAGES},
    "negvae.model.likelihoods:Gaussian.target": {"images": IMAGES, "return": IMAGES},
    "negvae.model.likelihoods:Gaussian.log_prob": {"output": IMAGES, "target": IMAGES, "return": EACH},
    "negvae.model.likelihoods:Gaussian.excess": {"output": IMAGES, "target": IMAGES, "return": EACH},
    "negvae.model.likelihoods:Gaussian.mean": {"output": IMAGES, "return": IMAGES},
    "negvae.model.likelihoods:Gaussian.sample": {"output": IMAGES, "return": IMAGES},
    "negvae.model.likelihoods:QuantizedGaussian.target": {"images": IMAGES, "return": IMAGES},
    "negvae.model.likelihoods:QuantizedGaussian.sample": {"output": IMAGES, "return": IMAGES},
    "negvae.training.objectives:encoder_loss": {"return": ONE},
    "negvae.training.objectives:shared_losses": {
        "images": IMAGES, "target": IMAGES, "negatives": "m c h w", "noise": CODES, "return": (ONE, ONE, ONE, ONE),
    },
    "negvae.training.objectives:generator_loss": {"generated": IMAGES, "return": ONE},
    "negvae.training.objectives:train_step": {
        "images": IMAGES, "target": IMAGES, "noise": CODES, "return": (ONE, ONE, ONE, ONE),
    },
}  # fmt: skip


def check_shapes() -> None:
    """Put a check around each function of `SHAPES`, wherever modules of the library hold it."""
    for place, shapes in SHAPES.items():
        module, _, name = place.partition(":")
        owner: Any = import_module(module)
        *outer, name = name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        function = vars(owner)[name]
        checked = with_shapes(function, shapes)
        holders = [owner] if outer else [m for key, m in sys.modules.items() if key.startswith("negvae")]
        for holder in holders:
            if vars(holder).get(name) is function:
                setattr(holder, name, checked)


def with_shapes(function: Callable[..., Any], shapes: dict[str, str | tuple[str, ...]]) -> Callable[..., Any]:
    """Return `function` with a check of the tensors that it takes and gives.

    Args:
        function: any function of tensors.
        shapes: jaxtyping's dimensions by the argument's name, and of what is returned by "return"; a tuple of them
            where that is a tuple of tensors.

    Returns:
        The function; it raises TypeError where a shape is another.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*arguments: Any, **options: Any) -> Any:
        with jaxtyped("context"):
            given = signature.bind(*arguments, **options).arguments
            for name, dimensions in shapes.items():
                if name != "return" and given.get(name) is not None:
                    _check(function, name, given[name], dimensions)
            result = function(*arguments, **options)
            if "return" in shapes:
                _check(function, "the result", result, shapes["return"])
        return result

    return checked


@functools.cache
def _type_of(dimensions: str) -> Any:
    """The type of a tensor of these dimensions: one object, since beartype compiles a check for each that it meets."""
    return Float[Tensor, dimensions]


def _check(function: Callable[..., Any], name: str, value: Any, dimensions: str | tuple[str, ...]) -> None:
    parts = zip(value, dimensions, strict=True) if isinstance(dimensions, tuple) else [(value, dimensions)]
    for part, expected in parts:
        if not is_bearable(part, _type_of(expected)):
            shape = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise TypeError(f"{function.__qualname__}: {name} is {shape}, not of shape {expected!r}")
