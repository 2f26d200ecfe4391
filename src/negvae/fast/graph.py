"""Training steps on a GPU that do not wait for the host: captured once as a CUDA graph, then replayed.

These networks are so small that launching a step's kernels one by one takes far longer than running them. A graph is
launched as one. Several sessions (such as the seeds of one experiment) are branches of the same graph, on streams of
their own: their kernels run side by side and fill the GPU, and each takes exactly the step that it takes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

WARM_UP = 3
"""The number of steps before the capture, in which libraries choose kernels and optimizers make their states."""


class Session(Protocol):
    """An object whose steps run on the device alone.

    Attributes:
        randomness: random generator that the steps draw from.
    """

    randomness: torch.Generator

    def step(self) -> None:
        """Take the next step."""


class CapturedSteps:
    """The steps of several sessions together, replayed from a graph as soon as it is captured.

    Args:
        sessions: sessions on one CUDA device, with the same number of steps in an epoch.
        device: the CUDA device.
    """

    def __init__(self, sessions: Sequence[Session], device: torch.device) -> None:
        self.sessions = sessions
        self.device = device
        self.streams = [torch.cuda.Stream(self.device) for _ in sessions]  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None
        self._eager = 0

    def step(self) -> None:
        """Take one step of every session."""
        if self.graph is not None:
            self.graph.replay()
            return
        self._branches()
        self._eager += 1
        if self._eager == WARM_UP:
            self.graph = self._capture()

    def _branches(self) -> None:
        """Take every session's step on its own stream, after all earlier and before all later work."""
        main = torch.cuda.current_stream(self.device)
        for session, stream in zip(self.sessions, self.streams, strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                session.step()
        for stream in self.streams:
            main.wait_stream(stream)

    def _capture(self) -> torch.cuda.CUDAGraph:
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        for session in self.sessions:
            graph.register_generator_state(session.randomness)
        with torch.cuda.graph(graph):
            self._branches()
        return graph
