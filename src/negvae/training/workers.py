"""Workers that train one model together.

Every worker draws the random numbers of the whole batch and computes its share of the rows with them: rows rank,
rank + size, and so on, of the positives and of the negatives. Its gradients and losses are means over its rows;
weighted by the number of rows and added up over the workers they are the means over the batch. So the result is that of
a single process, whatever the number of workers, which may change between checkpoints.

Batch norm takes the statistics of the whole batch (`negvae.training.batchnorm`). The workers are threads of one process
(`negvae.training.helpers`) or processes on a cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Peers:
    """One of the workers, with its connection to the others.

    Attributes:
        rank: number of this worker, from 0; the first one writes the files.
        size: number of workers.
        add: function that adds a tensor up over all workers, in place; all of them must call it in the same order.

    >>> list(range(7))[Peers(1, 3, add=lambda tensor: None).rows]
    [1, 4]
    """

    rank: int
    size: int
    add: Callable[[Tensor], None]

    @property
    def rows(self) -> slice:
        """Return this worker's share of a batch, as a slice of its rows."""
        return slice(self.rank, None, self.size)

    def fraction(self, batch: int) -> float:
        """Return this worker's share of a batch, as a fraction of its rows.

        >>> Peers(1, 2, add=lambda tensor: None).fraction(5)
        0.4
        """
        return len(range(batch)[self.rows]) / batch

    def average(self, means: Tensor, batch: int) -> None:
        """Turn means over this worker's rows into means over the batch, in place."""
        self.add(means.mul_(self.fraction(batch)))

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set at any worker."""
        counts = torch.tensor(flags, dtype=torch.float32)
        self.add(counts)
        return [count > 0 for count in counts.tolist()]

    def agree(self, *values: float) -> bool:
        """Return whether all workers have the same values."""
        table = torch.zeros(self.size, len(values), dtype=torch.float64)
        table[self.rank] = torch.tensor(values, dtype=torch.float64)
        self.add(table)
        return bool((table == table[0]).all())
