"""Counts of a service in the text format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from serving.worker import Worker

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Requests by their answer, seconds, and how full the queue is.

    Args:
        worker: whose queue it is.
    """

    def __init__(self, worker: Worker) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "nnunet_requests", "Requests for a mask, by HTTP status", ["status"], registry=self.registry
        )
        self._seconds = Histogram(
            "nnunet_prediction_seconds", "Seconds from the start of a scan's prediction to its mask",
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000), registry=self.registry,
        )  # fmt: skip
        self._waited = Histogram(
            "nnunet_waiting_seconds", "Seconds that a scan waited for its turn",
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000), registry=self.registry,
        )  # fmt: skip
        Gauge("nnunet_places_taken", "Requests that send, wait or are worked on", registry=self.registry).set_function(
            lambda: worker.taken
        )
        Gauge("nnunet_places", "Requests that may be there together", registry=self.registry).set(
            len(worker.predictors) + worker.limits.queue
        )
        ProcessCollector(registry=self.registry)

    def count(self, status: int) -> None:
        """A request was answered."""
        self._requests.labels(status=str(status)).inc()

    def time(self, seconds: dict[str, float]) -> None:
        """What a mask took."""
        self._seconds.observe(seconds["predicted"])
        self._waited.observe(seconds["waited"])

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)
