"""How the learning rate changes in the course of a training."""

from __future__ import annotations

import math


def rise_and_fall(step: int, steps: int, rising: float) -> float:
    """Return the factor of the learning rate at a step: it rises linearly, and then falls to 0 like half a cosine.

    A constant rate leaves the weights of a short training where the noise of its last steps took them; one that falls
    comes as far in about half the steps (Loshchilov & Hutter 2017, without restarts).

    Args:
        step: number of steps taken before this one.
        steps: number of steps of the whole training.
        rising: share of the steps over which the rate rises.

    Returns:
        The factor, above 0 and at most 1 but for the last step, where it is 0.

    >>> [round(rise_and_fall(step, 100, 0.1), 2) for step in (0, 9, 54, 99)]
    [0.1, 1.0, 0.5, 0.0]
    """
    rise = max(rising * steps, 1)
    if step + 1 <= rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step + 1 - rise) / max(steps - rise, 1)))
