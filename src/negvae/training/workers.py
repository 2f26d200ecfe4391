"""Workers that train one model together.

Every worker draws the random numbers of the whole batch and computes its share of the rows with them: rows rank,
rank + size, and so on, of the positives and of the negatives. Its gradients and losses are means over its rows;
weighted by the rows' number and added up over the workers they are the means over the batch. So the run is the one
that a single process would make, whatever the number of workers, which may change between checkpoints.

Batch norm alone is not shared out: each worker normalizes by the statistics of its own rows, as is usual. The running
statistics are averaged over the workers after every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Peers:
    """One of the workers, and how it speaks with the others.

    Attributes:
        rank: its number, from 0; the first one writes the files.
        size: the number of workers.
        add: adds a tensor up over all workers, in place; all of them must call it alike.
    """

    rank: int
    size: int
    add: Callable[[Tensor], None]

    @property
    def rows(self) -> slice:
        """Its share of a batch."""
        return slice(self.rank, None, self.size)

    def average(self, means: Tensor, batch: int) -> None:
        """Turn means over this worker's rows in place into means over the batch."""
        self.add(means.mul_(len(range(batch)[self.rows]) / batch))

    def any(self, *flags: bool) -> list[bool]:
        """Which flags are set at any worker."""
        counts = torch.tensor(flags, dtype=torch.float32)
        self.add(counts)
        return [count > 0 for count in counts.tolist()]

    def agree(self, *values: float) -> bool:
        """Whether all workers have the same values."""
        table = torch.zeros(self.size, len(values), dtype=torch.float64)
        table[self.rank] = torch.tensor(values, dtype=torch.float64)
        self.add(table)
        return bool((table == table[0]).all())
