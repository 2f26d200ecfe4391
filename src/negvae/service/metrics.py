"""Counts and times of the service in the text format of Prometheus, with the drift monitor of each model."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from negvae.service.batching import ScoredBatch
from negvae.service.models import Slot, is_same_stream

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
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
        # Kept here: an update of the library's own metrics takes longer than much of what a request takes.
        self.requests: Counts[tuple[str, int]] = Counts()
        self.seconds: dict[str, tuple[list[int], list[float]]] = {}
        self.images = Counter("negvae_images", "Images or rows scored.", ["model"], **made)
        self.errors = Counter("negvae_image_errors", "Uploaded images that could not be used.", ["model"], **made)
        self.alarms = Counter("negvae_alarms", "Outliers by the model's own rule.", ["model"], **made)
        self.levels = {name: np.zeros(len(LEVELS) + 1) for name in slots}
        self.sums = dict.fromkeys(slots, 0.0)
        self.batches = Histogram("negvae_batch_images", "Images scored together.", ["model"], buckets=SIZES, **made)
        Gauge("negvae_queue_images", "Images or rows that wait.", **made).set_function(waiting)
        for name in slots:
            for metric in (self.images, self.errors, self.alarms, self.batches):
                metric.labels(name)
        self._registry.register(_Requests(self))
        self._registry.register(_Streams(slots, self))

    def on_request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request; called in the event loop."""
        self.requests[route, status] += 1
        if route not in self.seconds:
            self.seconds[route] = [0] * (len(LATENCIES) + 1), [0.0]
        counts, total = self.seconds[route]
        counts[bisect_left(LATENCIES, seconds)] += 1
        total[0] += seconds

    def on_batch(self, batch: ScoredBatch) -> None:
        """Count a batch of scores, and show it to the slot's drift monitor; called in a thread beside the models'."""
        name, monitor, calibration = batch.slot.name, batch.slot.monitor, batch.model.calibration
        assert monitor is not None  # it is there since the model was first loaded
        if is_same_stream(monitor.calibration, calibration):
            judged = monitor.update(batch.scores, batch.groups)
            p_values, outliers = judged.p_values, judged.outliers
        else:  # another model has taken the place of this one, with a stream of its own
            p_values = calibration.p_values(batch.scores, batch.groups)
            outliers = calibration.is_outlier(batch.scores, batch.groups)
        self.images.labels(name).inc(len(batch.scores))
        self.batches.labels(name).observe(len(batch.scores))
        self.alarms.labels(name).inc(int(outliers.sum()))
        # All at once: an observation for each p-value would take longer than its score.
        self.levels[name] += np.bincount(np.searchsorted(LEVELS, p_values), minlength=len(LEVELS) + 1)
        self.sums[name] += float(p_values.sum())

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)


class _Requests:
    """A collector of the requests by route, and of their times."""

    def __init__(self, metrics: ServiceMetrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that the registry does not collect when the collector is registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Return the metrics as they are now."""
        requests = CounterMetricFamily("negvae_requests", "Requests answered.", labels=["route", "status"])
        for (route, status), count in self._metrics.requests.items():
            requests.add_metric([route, str(status)], count)
        seconds = HistogramMetricFamily(
            "negvae_request_seconds", "Time from a request to its answer.", labels=["route"]
        )
        for route, (counts, total) in self._metrics.seconds.items():
            seconds.add_metric([route], _buckets(LATENCIES, counts), total[0])
        yield from (requests, seconds)


def _buckets(bounds: Iterable[float], counts: Iterable[float]) -> list[tuple[str, float]]:
    """Return the bounds of a histogram, each with the number of values up to it."""
    return list(zip([*map(str, bounds), "+Inf"], np.cumsum(list(counts)).tolist(), strict=True))


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
            levels.add_metric([name], _buckets(LEVELS, self._metrics.levels[name]), self._metrics.sums[name])
            monitor = slot.monitor
            if monitor is None:
                continue
            share.add_metric([name], monitor.outliers / max(monitor.seen, 1))
            wealth.add_metric([name], monitor.martingale.wealth)
            limit.add_metric([name], 1 / monitor.martingale.alarm_rate)
            changes.add_metric([name], len(monitor.changes))
        yield from (ready, share, wealth, limit, changes, levels)
