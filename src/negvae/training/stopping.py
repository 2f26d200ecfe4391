"""Reasons to end training before the last epoch."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from negvae.training.reporting import Clock

BUDGET = "budget"
"""The reason to stop when the budget of time is spent."""


class StopConditions:
    """The conditions that end training early: a signal, a caller's request or a spent budget.

    Within its `with` block, in the main thread, a SIGINT or SIGTERM is kept as a reason instead of ending the program;
    a second one ends it as usual.

    Args:
        should_stop: called at each check; returns the reason to stop, or "" to go on.
        budget: number of seconds from now after which to stop; None for no limit.

    >>> with StopConditions(lambda: "", budget=3600.0) as stop:
    ...     stop.reason()
    ''
    >>> StopConditions(lambda: "", budget=0.0).reason()
    'budget'
    """

    def __init__(self, should_stop: Callable[[], str], budget: float | None) -> None:
        self._should_stop, self._budget, self._clock = should_stop, budget, Clock()
        self._asked_for = ""
        self._handlers: dict[signal.Signals, Any] = {}

    def reason(self) -> str:
        """Return the reason to stop now (a signal's name, the caller's reason or "budget"), or "" to go on.

        A signal or a caller's reason remains the answer of every later call.
        """
        if wish := self._should_stop():
            self._keep(wish)
        if self._asked_for:
            return self._asked_for
        return BUDGET if self._budget is not None and self._clock.seconds() >= self._budget else ""

    def __enter__(self) -> StopConditions:
        """Begin to receive signals."""
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            for number in self._handlers:
                signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the earlier signal handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        caught = signal.Signals(number)
        self._keep(caught.name)
        signal.signal(caught, self._handlers[caught])

    def _keep(self, reason: str) -> None:
        self._asked_for = self._asked_for or reason
