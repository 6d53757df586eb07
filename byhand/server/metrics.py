"""/metrics: what the worker counts, and how long requests and tokens took, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from byhand.engine.worker import Worker

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
REQUEST_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

GAUGES = {
    "running": "runs that are computed now",
    "waiting": "runs that wait for a place",
    "idle": "live runs that stand still",
    "pages_total": "pages of the cache",
    "pages_used": "pages that runs hold",
    "pages_unused": "pages that nobody holds and whose prefix is known",
    "pages_free": "pages with nothing in them",
    "prefill_rate": "prompt tokens computed a second, over the last seconds",
    "decode_rate": "tokens generated a second, over the last seconds",
}
COUNTERS = {
    "prompt_tokens": "tokens of prompts",
    "cached_tokens": "tokens of prompts that were known already",
    "generated_tokens": "tokens generated",
    "passes": "passes through the model",
    "preemptions": "runs that gave their pages up to be computed again",
    "rejected": "runs refused because the server was full",
    "busy_seconds": "seconds spent in passes",
}


class _Engine(Collector):
    """The worker's own numbers, read when they are asked for."""

    def __init__(self, worker: Worker, live: Callable[[], int]) -> None:
        self._worker = worker
        self._live = live

    def collect(self) -> Iterator[Metric]:
        """One snapshot."""
        stats = self._worker.stats()
        for name, help_text in GAUGES.items():
            yield GaugeMetricFamily(f"byhand_{name}", help_text, value=getattr(stats, name))
        for name, help_text in COUNTERS.items():
            yield CounterMetricFamily(f"byhand_{name}", help_text, value=getattr(stats, name))
        finished = CounterMetricFamily("byhand_finished", "runs ended, by reason", labels=["reason"])
        for reason, count in sorted(stats.finished.items()):
            finished.add_metric([str(reason)], count)
        yield finished
        yield GaugeMetricFamily("byhand_live_connections", "open live connections", value=self._live())
        yield GaugeMetricFamily("byhand_ready", "1 when requests are taken", value=stats.state == "ready")


class Metrics:
    """What is measured of requests, beside what the worker counts."""

    def __init__(self, worker: Worker, live: Callable[[], int] = lambda: 0) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Engine(worker, live))
        self.requests = Counter(
            "byhand_requests", "requests answered", ["method", "path", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "byhand_request_seconds",
            "seconds from a request's head to the end of its answer",
            ["path"],
            buckets=REQUEST_SECONDS,
            registry=self._registry,
        )
        self.first_token = Histogram(
            "byhand_first_token_seconds",
            "seconds to a choice's first token",
            buckets=REQUEST_SECONDS,
            registry=self._registry,
        )
        self.between_tokens = Histogram(
            "byhand_between_tokens_seconds",
            "seconds between a choice's tokens",
            buckets=TOKEN_SECONDS,
            registry=self._registry,
        )

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self._registry)
