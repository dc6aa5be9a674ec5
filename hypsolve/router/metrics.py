"""Metrics of the proxy for Prometheus: counters, histograms, and the state of the router."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hypsolve.router.core import Ending, Router
from hypsolve.router.health import Condition
from hypsolve.router.waiting import WaitingRoom

SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0)


class _State(Collector):
    """Gauges, read from the router when they are asked for."""

    def __init__(self, router: Router, room: WaitingRoom) -> None:
        self._router, self._room = router, room

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges of all pipelines."""
        now_s, router = asyncio.get_running_loop().time(), self._router
        waiting = GaugeMetricFamily("hypsolve_waiting_requests", "Requests without a pipeline")
        waiting.add_metric([], len(self._room))
        yield waiting
        rows = {
            "up": (
                "1 if the pipeline is up",
                lambda p: router.condition(p, now_s) is Condition.UP,
            ),
            "in_flight_requests": ("Requests that have not ended", router.n_in_flight),
            "outstanding_seconds": ("Expected seconds of these", router.outstanding_s),
            "prompt_token_seconds": (
                "Estimated seconds per prompt token",
                lambda p: router.estimate(p).prompt_token_s,
            ),
            "output_token_seconds": (
                "Estimated seconds per output token",
                lambda p: router.estimate(p).output_token_s,
            ),
        }
        for name, (words, value) in rows.items():
            gauge = GaugeMetricFamily(f"hypsolve_pipeline_{name}", words, labels=["pipeline"])
            for p, pipeline in enumerate(router.pipelines):
                gauge.add_metric([pipeline.name], float(value(p)))
            yield gauge


class Metrics:
    """Counters and histograms of one proxy, in a registry of its own."""

    def __init__(self, router: Router, room: WaitingRoom) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_State(router, room))
        endings = Counter(
            "hypsolve_attempts", "Requests sent to a pipeline, by ending",
            ["pipeline", "ending"], registry=self._registry,
        )  # fmt: skip
        first = Histogram(
            "hypsolve_first_byte_seconds", "Seconds from arrival to the first byte sent on",
            ["pipeline"], buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        whole = Histogram(
            "hypsolve_answer_seconds", "Seconds from arrival to the end of the answer",
            ["pipeline"], buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        names = [each.name for each in router.pipelines]
        self._endings = [{e: endings.labels(name, str(e)) for e in Ending} for name in names]
        self._first = [first.labels(name) for name in names]
        self._whole = [whole.labels(name) for name in names]
        self._refused = Counter(
            "hypsolve_refused_requests", "Requests that the router itself refused, by status",
            ["status"], registry=self._registry,
        )  # fmt: skip
        self._retries = Counter(
            "hypsolve_retries", "Requests sent to another pipeline", registry=self._registry
        )

    def ended(self, pipeline: int, ending: Ending) -> None:
        """Count an attempt."""
        self._endings[pipeline][ending].inc()

    def answered(self, pipeline: int, first_s: float, whole_s: float) -> None:
        """Observe the seconds of an answer."""
        self._first[pipeline].observe(first_s)
        self._whole[pipeline].observe(whole_s)

    def refused(self, status: int) -> None:
        """Count a request that the router refused."""
        self._refused.labels(str(status)).inc()

    def retried(self) -> None:
        """Count a retry."""
        self._retries.inc()

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
