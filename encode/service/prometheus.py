"""Serve the counters of a service to Prometheus; each scrape reads their current values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args
from wsgiref.types import WSGIApplication

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from wsa.encode.service.heartbeat import HEALTHY, Heartbeat, State


class _Service(Collector):
    def __init__(self, read: Callable[[], Heartbeat]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        heartbeat = self._read()
        for family, name, what, field in (
            (CounterMetricFamily, "wsa_passes", "Frames run through a model.", "passes"),
            (CounterMetricFamily, "wsa_passes_saved", "Frames copied instead of run.", "saved"),
            (GaugeMetricFamily, "wsa_backlog_frames", "Frames still to encode.", "todo_frames"),
            (
                GaugeMetricFamily,
                "wsa_segments_set_aside",
                "Segments that failed every attempt.",
                "set_aside",
            ),
        ):
            metric = family(name, what, labels=["model"])
            for model, work in heartbeat.models.items():
                metric.add_metric([model], getattr(work, field))
            yield metric
        segments = CounterMetricFamily(
            "wsa_segments", "Segments by what became of them.", labels=["model", "outcome"]
        )
        for model, work in heartbeat.models.items():
            segments.add_metric([model, "done"], work.done)
            segments.add_metric([model, "failed"], work.failed)
        yield segments
        yield _gauge(
            "wsa_frames_per_second", "Frames encoded in a second.", heartbeat.frames_per_second
        )
        yield _gauge("wsa_workers", "Workers that encode.", heartbeat.workers)
        yield _gauge("wsa_up", "1 while nothing is wrong.", heartbeat.state in HEALTHY)
        state = GaugeMetricFamily("wsa_state", "What the service does.", labels=["state"])
        for name in get_args(State):
            state.add_metric([name], name == heartbeat.state)
        yield state
        yield _gauge(
            "wsa_last_commit_timestamp_seconds", "Time of the last commit.", heartbeat.last_commit
        )
        yield CounterMetricFamily("wsa_errors", "Errors since the start.", value=heartbeat.errors)


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=value)


def metrics_app(read: Callable[[], Heartbeat]) -> WSGIApplication:
    """Return the WSGI application that answers `/metrics`."""
    registry = CollectorRegistry()
    registry.register(_Service(read))
    return make_wsgi_app(registry)
