"""Counts and times of the service in the text format of Prometheus, with the drift monitor of each model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from negvae.service.models import Slot

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
LEVELS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class ServiceMetrics:
    """The metrics of one service, in a registry of their own.

    Args:
        slots: slots of the models, by name.
        waiting: function that returns the number of images that wait.
    """

    def __init__(self, slots: Mapping[str, Slot], waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self._registry}
        self.requests = Counter("negvae_requests", "Requests answered.", ["route", "status"], **made)
        self.seconds = Histogram(
            "negvae_request_seconds", "Time from a request to its answer.", ["route"], buckets=LATENCIES, **made
        )
        self.images = Counter("negvae_images", "Images or rows scored.", ["model"], **made)
        self.errors = Counter("negvae_image_errors", "Uploaded images that could not be used.", ["model"], **made)
        self.alarms = Counter("negvae_alarms", "Images or rows called outliers.", ["model"], **made)
        self.levels = {name: np.zeros(len(LEVELS) + 1) for name in slots}
        self.sums = dict.fromkeys(slots, 0.0)
        self.batches = Histogram("negvae_batch_images", "Images scored together.", ["model"], buckets=SIZES, **made)
        # Looking up the child of a metric by its labels takes longer than counting.
        self._request = cache(lambda route, status: self.requests.labels(route, status))
        self._time = cache(lambda route: self.seconds.labels(route))
        Gauge("negvae_queue_images", "Images or rows that wait.", **made).set_function(waiting)
        for name in slots:
            for metric in (self.images, self.errors, self.alarms, self.batches):
                metric.labels(name)
        self._registry.register(_Streams(slots, self))

    def on_request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._request(route, status).inc()
        self._time(route).observe(seconds)

    def on_batch(self, slot: Slot, scores: NDArray[np.float32]) -> None:
        """Count a batch of scores, and show it to the slot's drift monitor; called in the thread that scores."""
        monitor = slot.monitor
        assert monitor is not None  # it is there since the model was first loaded
        judged = monitor.update(scores)
        self.images.labels(slot.name).inc(len(scores))
        self.batches.labels(slot.name).observe(len(scores))
        self.alarms.labels(slot.name).inc(int(judged.outliers.sum()))
        # All at once: an observation for each p-value would take longer than its score.
        places = np.searchsorted(LEVELS, judged.p_values)
        self.levels[slot.name] += np.bincount(places, minlength=len(LEVELS) + 1)
        self.sums[slot.name] += float(judged.p_values.sum())

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)


class _Streams:
    """A collector of each model's share of alarms, p-values, and the state of its drift monitor."""

    def __init__(self, slots: Mapping[str, Slot], metrics: ServiceMetrics) -> None:
        self._slots, self._metrics = slots, metrics

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that the registry does not collect when the collector is registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Return the metrics as they are now."""
        ready = GaugeMetricFamily("negvae_model_ready", "Whether the model is loaded.", labels=["model"])
        share = GaugeMetricFamily("negvae_alarm_share", "Share of images called outliers.", labels=["model"])
        wealth = GaugeMetricFamily("negvae_martingale_wealth", "Wealth of the test martingale.", labels=["model"])
        limit = GaugeMetricFamily("negvae_martingale_alarm_wealth", "Wealth that is an alarm.", labels=["model"])
        changes = CounterMetricFamily("negvae_changes", "Alarms of the test martingale.", labels=["model"])
        levels = HistogramMetricFamily("negvae_p_value", "P-values of what was scored.", labels=["model"])
        for name, slot in self._slots.items():
            ready.add_metric([name], float(slot.model is not None))
            counts = np.cumsum(self._metrics.levels[name]).tolist()
            buckets = list(zip([*map(str, LEVELS), "+Inf"], counts, strict=True))
            levels.add_metric([name], buckets, self._metrics.sums[name])
            monitor = slot.monitor
            if monitor is None:
                continue
            share.add_metric([name], monitor.outliers / max(monitor.seen, 1))
            wealth.add_metric([name], monitor.martingale.wealth)
            limit.add_metric([name], 1 / monitor.martingale.alarm_rate)
            changes.add_metric([name], len(monitor.changes))
        yield from (ready, share, wealth, limit, changes, levels)
